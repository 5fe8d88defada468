"""Virtual environments for tools that the project's own environment does not hold; made once and kept in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluice-tests"


def programs(name: str, *requirements: str, beside_ours: bool = False) -> Path:
    """Folder of the programs of an environment with these packages.

    ``beside_ours``: it sees the packages of this interpreter too, the server among them, in the versions they have.
    """
    folder = CACHE / name
    stamp = folder / "installed"
    content = "\n".join((sys.version, sys.prefix if beside_ours else "", *requirements))
    if not stamp.exists() or stamp.read_text() != content:
        venv.create(folder, clear=True, with_pip=True)
        if beside_ours:
            _see_ours(folder)
        command = [
            folder / "bin/python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ]
        subprocess.run([*command, *requirements], check=True, timeout=1800)
        stamp.write_text(content)
    return folder / "bin"


def _see_ours(folder: Path) -> None:
    [packages] = (folder / "lib").glob("python*/site-packages")
    # As a site folder, so that an editable install in it counts.
    ours = sysconfig.get_paths()["purelib"]
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
