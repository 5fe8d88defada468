"""Errors about a field that has another name in a client's dialect, told under that name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from server.errors import SluiceError


@contextmanager
def field_names(names: Mapping[str, str]) -> Iterator[None]:
    """``names``: ours, and what the client calls it."""
    # Not after a number: "3 inputs" are things, and no field.
    words = re.compile(rf"(?<!\d )\b({'|'.join(map(re.escape, names)) or '(?!)'})\b")
    try:
        yield
    except SluiceError as error:
        if error.param is not None:
            head, dot, rest = error.param.partition(".")
            # What the client has in place of a field may be told in several words, of which the first is the field.
            error.param = names.get(head, head).partition(" ")[0] + dot + rest
        error.message = words.sub(lambda word: names[word[0]], error.message)
        raise
