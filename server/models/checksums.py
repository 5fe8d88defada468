"""SHA256SUMS: the manifest that `sha256sum` writes. A folder that has one is loaded only as the manifest says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from server.models.describe import refuse

MANIFEST = "SHA256SUMS"
READ = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Endings of files that loading may read."""
_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")


def check_folder(folder: Path) -> None:
    """Refuse the folder if a file is not what its manifest says, is missing, or is not in it. Without one: nothing."""
    path = folder / MANIFEST
    if not path.exists():
        return
    digests = _read(path)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix in READ and file.is_file() and name not in digests:
            raise refuse(f"{file} is not in {path}. Add its line with sha256sum, or remove the file.")
    for name, digest in digests.items():
        if _digest(folder / name, path) != digest:
            raise refuse(f"{folder / name} is not the file that {path} names: its SHA-256 differs. Fetch it again.")


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise refuse(f"{path} cannot be read ({error}). Write it with sha256sum.") from error
    digests = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _LINE.fullmatch(line)
        if entry is None:
            raise refuse(f"{path}, line {number}: it is not a SHA-256 and a file name. Write it with sha256sum.")
        digests[entry["name"].removeprefix("./")] = entry["digest"].lower()
    if not digests:
        raise refuse(f"{path} names no file. Write it with sha256sum, or remove it.")
    return digests


def _digest(file: Path, manifest: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        raise refuse(f"{file} is missing, and {manifest} names it. Fetch it again.") from None
    except OSError as error:
        raise refuse(f"{file} cannot be read ({error.strerror}). Fetch it again.") from error
