"""The operator's topics: word lists in a folder, which requests can penalise by name. Knows neither HTTP nor requests.

One UTF-8 file ``<topic>.txt`` a topic, one phrase a line; a line that begins with ``#`` is a comment. Files may change
at any time: a bad one is told and logged, and the topic stays as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from server.errors import ConfigurationError
from server.phrases import folded

log = logging.getLogger("sluice.topics")

SUFFIX = ".txt"
MAX_FILE_BYTES = 1024 * 1024
MAX_PHRASE_CHARACTERS = 256
MAX_TOPIC_PHRASES = 5_000
MAX_PHRASES = 20_000
"""Of all topics together."""
CHECK_INTERVAL_S = 2.0

_NAME = re.compile(r"\w[\w-]{0,63}")


class BadTopic(Exception):
    """A file that cannot be a topic. The message goes on after the file's name, and holds no path."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One word list as it was last read without fault."""

    phrases: tuple[str, ...] = ()
    version: str | None = None
    """Digest of the file; None where no version was ever good."""
    error: str | None = None
    """What is wrong with the file as it is now."""
    signature: tuple[int, ...] | None = None
    """Of the file that was last looked at, good or bad: the same means that it need not be read again."""


class Topics:
    """All topics of one folder; none without a folder."""

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._topics: dict[str, Topic] = {}

    @property
    def phrases(self) -> Mapping[str, tuple[str, ...]]:
        """The phrases of each topic that has ever been good."""
        return {name: topic.phrases for name, topic in self._topics.items() if topic.version is not None}

    def describe(self) -> list[dict[str, Any]]:
        """What operators and clients may know."""
        return [
            {"name": name, "num_phrases": len(topic.phrases), "version": topic.version, "error": topic.error}
            for name, topic in self._topics.items()
        ]

    def load(self) -> None:
        """Read the folder for the first time, when a bad file ends the server. Not for the event loop."""
        self.reload()
        for name, topic in self._topics.items():
            if topic.error is not None:
                raise ConfigurationError(f"The topic {self._folder}/{name}{SUFFIX} {topic.error}.")

    def reload(self) -> None:
        """Read what has changed. Not for the event loop; the topics change all at once."""
        if self._folder is None:
            return
        before, self._topics = self._topics, _read_folder(self._folder, self._topics)
        for name, topic in self._topics.items():
            _tell(name, before.get(name, Topic()), topic)
        for name in before.keys() - self._topics.keys():
            log.info("topic removed", extra={"fields": {"topic": name}})

    async def watch(self, interval_s: float = CHECK_INTERVAL_S) -> None:
        """Follow the folder's changes until cancelled."""
        while self._folder is not None:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.reload)


def _tell(name: str, before: Topic, after: Topic) -> None:
    if after.error is not None and after.error != before.error:
        log.error("topic not loaded", extra={"fields": {"topic": name, "error": after.error, "kept": after.version}})
    elif after.error is None and after != before:
        fields = {"topic": name, "version": after.version, "num_phrases": len(after.phrases)}
        log.info("topic loaded", extra={"fields": fields})


def _read_folder(folder: Path, known: Mapping[str, Topic]) -> dict[str, Topic]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(SUFFIX))
    except OSError as error:
        # A folder that is away for a moment, such as a volume that is mounted anew, takes no topic with it.
        reason = f"cannot be read: its folder cannot be listed ({error.strerror})"
        return {name: replace(topic, error=reason, signature=None) for name, topic in known.items()}
    found: dict[str, Topic] = {}
    room = MAX_PHRASES
    for file_name in names:
        if file_name.startswith("."):
            continue
        name = file_name.removesuffix(SUFFIX)
        found[name] = _read(folder / file_name, known.get(name, Topic()), room)
        room -= len(found[name].phrases)
    return found


def _read(path: Path, known: Topic, room: int) -> Topic:
    """The topic as its file is now; as it was, with an error, where the file is not good."""
    signature = None
    try:
        if not _NAME.fullmatch(path.name.removesuffix(SUFFIX)):
            raise BadTopic("has an invalid name: use at most 64 letters, digits, - and _")
        with _opened(path) as file:
            signature = _signature(file)
            if signature == known.signature:
                return known
            data = file.read(MAX_FILE_BYTES + 1)
            if signature != _signature(file):
                raise BadTopic("is being written")
        phrases = _phrases(data)
    except OSError as error:
        return replace(known, error=f"cannot be read: {error.strerror}", signature=None)
    except BadTopic as error:
        return replace(known, error=str(error), signature=signature)
    if len(phrases) > room:
        error_now = f"is too large: all topics together may have at most {MAX_PHRASES} phrases"
        return replace(known, error=error_now, signature=None)
    return Topic(phrases=phrases, version=hashlib.sha256(data).hexdigest()[:12], signature=signature)


def _opened(path: Path) -> BinaryIO:
    """The file, wherever in the folder a symbolic link leads: a volume of Kubernetes is made of them."""
    target = Path(os.path.realpath(path, strict=True))
    if not target.is_relative_to(path.parent.resolve()):
        raise BadTopic("is outside the folder")
    # A pipe would wait for its writer for ever, but for NONBLOCK.
    file = os.fdopen(os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadTopic("is no file")
    return file


def _signature(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _phrases(data: bytes) -> tuple[str, ...]:
    """The phrases of a file's bytes, each once, in order."""
    if len(data) > MAX_FILE_BYTES:
        raise BadTopic(f"has more than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_line = data.count(b"\n", 0, error.start) + 1
        raise BadTopic(f"is not UTF-8 in line {bad_line}") from None
    found: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        phrase = line.strip()
        if not phrase or phrase.startswith("#"):
            continue
        if len(phrase) > MAX_PHRASE_CHARACTERS:
            raise BadTopic(f"has more than {MAX_PHRASE_CHARACTERS} characters in line {number}")
        if not phrase.isprintable() or not folded(phrase):
            raise BadTopic(f"has no plain text in line {number}")
        found[phrase] = None
    if not found:
        raise BadTopic("has no phrase")
    if len(found) > MAX_TOPIC_PHRASES:
        raise BadTopic(f"has more than {MAX_TOPIC_PHRASES} phrases")
    return tuple(found)
