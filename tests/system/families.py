"""Folders of tiny models of many families, and a real server over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server

NUM_NEW = 24
"""Tokens that are compared."""


def written(root: Path, families: Iterable[str], write: Callable[[Path, str], Path]) -> dict[str, Path]:
    """A folder of each family, by name."""
    return {family: write(root / family, family) for family in families}


@contextmanager
def serving(folders: dict[str, Path]) -> Iterator[ServerProcess]:
    """A server whose models have the names of their families."""
    flags = [flag for family, folder in folders.items() for flag in ("--model", f"{family}={folder}")]
    with running_server(*flags, *TINY_SETTINGS) as server:
        yield server
