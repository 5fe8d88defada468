"""Copies of adapters' folders that nobody but the server changes: what a worker reads again is what it read first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sluice-adapters-"
LOCK = "lock"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "ATTRIBUTION", WEIGHTS)
"""What a worker reads of an adapter's folder. Training leaves much more there."""
MAX_OTHER_BYTES = 256 * 1024 * 1024
"""Of a file beside the weights."""
CHUNK_BYTES = 1 << 20


class NotCopied(Exception):
    """Why a folder cannot be served, as a sentence."""


@dataclass(frozen=True)
class Copy:
    """One content of an adapter's folder."""

    digest: str
    """Of names and bytes of its files."""
    folder: Path


class AdapterCopies:
    """Below one folder for temporary files, which is made with the first copy and goes with the process.

    `add` and `release` may be called in any thread.
    """

    def __init__(self) -> None:
        self._root: Path | None = None
        self._lock = threading.Lock()
        self._holders: Counter[str] = Counter()
        self._lock_file: int | None = None

    def add(self, folder: Path, *, max_bytes: int, within: Path | None = None) -> Copy:
        """Copies the folder. The copy stays until `release` is called once.

        ``max_bytes`` is for the weights. Files must lie in ``within``, also where they are links. Raises `NotCopied`.
        """
        with self._lock:
            root = self._made_root()
            place = Path(tempfile.mkdtemp(prefix="new-", dir=root))
            try:
                digest = _copy(folder, place, max_bytes, within)
                # The folder's own name stays: clients see it as the model's root.
                kept = root / digest / (folder.resolve().name or "adapter")
                if not self._holders[digest]:
                    shutil.rmtree(root / digest, ignore_errors=True)
                    kept.parent.mkdir()
                    place.rename(kept)
                else:
                    kept = next((root / digest).iterdir())
            except OSError as error:
                raise NotCopied(f"{folder.name} cannot be copied: {error.strerror or error}.") from error
            finally:
                shutil.rmtree(place, ignore_errors=True)
            self._holders[digest] += 1
            return Copy(digest, kept)

    def release(self, digest: str) -> None:
        with self._lock:
            self._holders[digest] -= 1
            if self._holders[digest] <= 0:
                del self._holders[digest]
                if self._root is not None:
                    shutil.rmtree(self._root / digest, ignore_errors=True)

    def close(self) -> None:
        """Remove all."""
        with self._lock:
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)
            if self._lock_file is not None:
                os.close(self._lock_file)
            self._root = self._lock_file = None
            self._holders.clear()

    def _made_root(self) -> Path:
        if self._root is None:
            try:
                _remove_abandoned(Path(tempfile.gettempdir()))
                self._root = Path(tempfile.mkdtemp(prefix=PREFIX))
                self._lock_file = _locked(self._root / LOCK, os.O_CREAT)
            except OSError as error:
                raise NotCopied(f"There is no folder for temporary files: {error}. Set TMPDIR.") from error
        return self._root


def read_files(folder: Path) -> list[Path]:
    """Those of an adapter's folder that a worker reads."""
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})


def _copy(folder: Path, place: Path, max_bytes: int, within: Path | None) -> str:
    """Returns the digest."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NotCopied(f"{folder.name} has no {name}, which the folder of a PEFT adapter holds.")
    digest = hashlib.blake2b(digest_size=16)
    for path in read_files(folder):
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise NotCopied(f"{path.name} is a link that leads out of the folder of adapters.")
        digest.update(path.name.encode() + b"\0")
        digest.update(_copy_file(path, place / path.name, max_bytes if path.name == WEIGHTS else MAX_OTHER_BYTES))
    return digest.hexdigest()


def _copy_file(path: Path, to: Path, max_bytes: int) -> bytes:
    """Returns the digest of what was written, which is the file as it was at one time."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as source, to.open("xb") as target:
        before = os.fstat(source.fileno())
        if before.st_size > max_bytes:
            raise NotCopied(f"{path.name} has {before.st_size} bytes, which is more than the limit of {max_bytes}.")
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or to.stat().st_size != after.st_size:
        raise NotCopied(f"{path.name} changed while it was read. Load the adapter again when the file is complete.")
    return digest.digest()


def _locked(path: Path, flags: int = 0) -> int:
    """An open file that this process has locked. Raises OSError if another has."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove_abandoned(parent: Path) -> None:
    """Folders of servers that were killed: nobody holds their locks."""
    for folder in parent.glob(PREFIX + "*"):
        try:
            fd = _locked(folder / LOCK)
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)
