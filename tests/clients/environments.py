"""An environment of its own for every client: what one needs, another forbids. Made once, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice-tests" / "clients"
INSTALL_TIMEOUT_S = 900


def python_with(name: str, requirements: Sequence[str], *, beside_project: bool = False) -> Path:
    """The interpreter of an environment that holds ``requirements``; a changed list is another environment.

    ``beside_project``: it finds the packages of this one too, after its own. For what needs torch and transformers:
    installed again they take gigabytes, and another version computes other numbers.
    """
    seen = [sysconfig.get_path("purelib")] if beside_project else []
    folder = CACHE / f"{name}-{_digest(*requirements, *seen)}"
    python = folder / "bin" / "python"
    is_whole = folder / "whole"
    if not is_whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if seen:
            own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
            (own / "beside.pth").write_text("\n".join(seen))
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        _run(install, folder)
        is_whole.touch()
    return python


def node_with(name: str, packages: Path) -> Path:
    """A folder with the node modules that ``package.json`` and its lock file in ``packages`` name."""
    files = [packages / "package.json"]
    folder = CACHE / f"{name}-{_digest(*(file.read_text() for file in files))}"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund"], folder)
        (folder / "whole").touch()
    return folder


def _run(command: Sequence[str | Path], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder.name} cannot be installed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
