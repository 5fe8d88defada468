"""How often each token was seen, kept up to date token by token. Knows no penalty."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from server.engine.batch_inputs import IntArray
from server.engine.processors.base import Start

Scope = Literal["prompt", "output", "both", "decoder"] | int
"""Which tokens count; an integer is the last so many of prompt and output.

The prompt is the text that the client gave: of an encoder-decoder model, the source. ``decoder`` is what the decoder
has read and written: its own prompt and the output.
"""


class TokenCounts:
    """Token ids and their counts, as arrays that grow and shrink with what is counted."""

    def __init__(self, token_ids: IntArray) -> None:
        unique, counts = np.unique(token_ids, return_counts=True)
        self._ids = unique.astype(np.int64)
        self._counts = counts.astype(np.float32)
        self._size = len(unique)
        self._index = {token_id: i for i, token_id in enumerate(unique.tolist())}

    @property
    def ids(self) -> IntArray:
        """Each token once, in any order; valid until the next change."""
        return self._ids[: self._size]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        index = self._index.get(token_id)
        if index is not None:
            self._counts[index] += 1
            return
        if self._size == len(self._ids):
            spare = max(16, self._size)
            self._ids = np.concatenate([self._ids, np.zeros(spare, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(spare, dtype=np.float32)])
        self._index[token_id] = self._size
        self._ids[self._size] = token_id
        self._counts[self._size] = 1
        self._size += 1

    def remove(self, token_id: int) -> None:
        """Take back one `add`."""
        index = self._index[token_id]
        self._counts[index] -= 1
        if self._counts[index] > 0:
            return
        del self._index[token_id]
        self._size -= 1
        if index < self._size:  # the last one takes its place
            moved = int(self._ids[self._size])
            self._ids[index], self._counts[index] = moved, self._counts[self._size]
            self._index[moved] = index

    def copy(self) -> Self:
        twin = type(self).__new__(type(self))
        twin._ids, twin._counts = self._ids.copy(), self._counts.copy()
        twin._size, twin._index = self._size, self._index.copy()
        return twin


class ScopedCounts:
    """Counts of the tokens that a penalty looks at: those in its scope, but for those of a template."""

    def __init__(self, start: Start, scope: Scope) -> None:
        self._is_growing = scope != "prompt"
        self._window: deque[int | None] | None = None
        """The last tokens, None for those of a template."""
        if isinstance(scope, int):
            self._window = deque([*_counted(start, start.input_ids), *start.output_ids.tolist()], maxlen=scope)
            token_ids: Iterable[int] = (token_id for token_id in self._window if token_id is not None)
        else:
            prompt_ids = start.prompt_ids if scope == "decoder" else start.input_ids
            prompt = (token_id for token_id in _counted(start, prompt_ids) if token_id is not None)
            token_ids = [
                *(prompt if scope != "output" else ()),
                *(start.output_ids.tolist() if scope != "prompt" else ()),
            ]
        self._seen = TokenCounts(np.array(list(token_ids), dtype=np.int64))

    @property
    def ids(self) -> IntArray:
        return self._seen.ids

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._seen.counts

    def accept(self, token_id: int) -> None:
        """The output grew by ``token_id``."""
        if not self._is_growing:
            return
        self._seen.add(token_id)
        if self._window is None:
            return
        if len(self._window) == self._window.maxlen and (oldest := self._window[0]) is not None:
            self._seen.remove(oldest)
        self._window.append(token_id)

    def fork(self) -> Self:
        if not self._is_growing:
            return self
        twin = type(self).__new__(type(self))
        twin._is_growing, twin._seen = True, self._seen.copy()
        twin._window = None if self._window is None else self._window.copy()
        return twin


def _counted(start: Start, prompt_ids: IntArray) -> list[int | None]:
    """The prompt's tokens, None for those of a template."""
    token_ids: list[int | None] = prompt_ids.tolist()
    for first, stop in start.context.template_spans:
        token_ids[first:stop] = [None] * len(token_ids[first:stop])
    return token_ids
