"""API keys and what each may do. Only their hashes are kept: a memory dump or a log holds none."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from server.errors import ConfigurationError

Scope = Literal["use", "metrics", "admin"]
"""``use``: everything that clients ask for; ``metrics``: numbers of the server; ``admin``: everything."""

VARIABLE = "SLUICE_API_KEYS"
LEAST_CHARACTERS = 16
HASHED = "sha256:"
_SOUND_KEY = re.compile(r"[!-~]+")
_SOUND_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """One of them."""

    digest: bytes
    scopes: frozenset[Scope]

    @property
    def id(self) -> str:
        """For logs: tells keys apart and gives none away."""
        return self.digest.hex()[:8]

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class Keys:
    """All that are accepted; none means that the server is open."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, digest: bytes) -> Key | None:
        """The key with this SHA-256, compared with every one, so that the time taken says nothing."""
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def load(file: str | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """Of the file, one a line, and of the variable, between commas. Raises `ConfigurationError`.

    An entry is a key or ``sha256:`` and its hash, and after a space its scopes between commas; without any, ``use``.
    """
    said = environment.get(VARIABLE, "")
    keys = [_parse(text, VARIABLE) for text in said.split(",") if text.strip()]
    if said and not keys:
        raise ConfigurationError(f"{VARIABLE} has no keys. Separate keys by commas, or unset it.")
    if file is not None:
        lines = [line.strip() for line in _read(file).splitlines()]
        found = [_parse(line, f"{file}: line {n}") for n, line in enumerate(lines, start=1) if line and line[0] != "#"]
        if not found:
            raise ConfigurationError(f"{file} has no keys. Write one key per line, or unset api_keys_file.")
        keys += found
    return Keys(keys)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(f"api_keys_file is {file}, which cannot be read: {reason}.") from None


def _parse(entry: str, where: str) -> Key:
    """An entry without its text in any message: it is a secret."""
    key, *rest = entry.split()
    names = [name for name in ",".join(rest).split(",") if name] or ["use"]
    for name in names:
        if name not in get_args(Scope):
            raise ConfigurationError(f"{where}: a key has the scopes {', '.join(get_args(Scope))}, and no other.")
    scopes: frozenset[Scope] = frozenset(name for name in get_args(Scope) if name in names)
    if key.startswith(HASHED):
        if not _SOUND_HASH.fullmatch(key.removeprefix(HASHED)):
            raise ConfigurationError(f"{where}: after {HASHED} come 64 digits from 0 to f.")
        return Key(bytes.fromhex(key.removeprefix(HASHED)), scopes)
    if len(key) < LEAST_CHARACTERS or not _SOUND_KEY.fullmatch(key):
        raise ConfigurationError(
            f"{where}: a key needs at least {LEAST_CHARACTERS} characters, all of them ASCII. "
            "Make one with: openssl rand -hex 32"
        )
    return Key(digest_of(key), scopes)
