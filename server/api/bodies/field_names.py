"""Errors about a field that has another name in a client's dialect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import SluiceError
from server.sentences import Names


@contextmanager
def field_names(names: Names) -> Iterator[None]:
    """Errors raised inside are written with ``names``: ours, and what the client calls it."""
    try:
        yield
    except SluiceError as error:
        error.dialects.append(names)
        raise
