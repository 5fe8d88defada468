"""How the texts of one step lie: end to end in one row without padding, and where each one's tokens are.

Dimension key
    B  texts in the step
    T  tokens of all texts
    R  tokens that go on after the last layer
    L  tokens of the longest
    H  hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Queries:
    """Tokens ``start`` to ``stop - 1`` of all texts' tokens, which attend to all tokens of their own texts."""

    def __init__(self, texts: Texts, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        starts = np.array(texts.starts, dtype=np.int64)
        self.first_text = int(np.searchsorted(starts, start, side="right")) - 1
        end = int(np.searchsorted(starts, stop, side="left"))
        of_texts = starts[self.first_text : end + 1]
        self.lengths: list[int] = np.diff(np.clip(of_texts, start, stop)).tolist()
        """How many tokens each text has among them, from ``first_text`` on."""
        self.starts = np.clip(of_texts, start, stop) - start
        """Of each text's queries, and the end of the last, counted from ``start``."""
        self.key_starts = of_texts - start
        """Of each text, and the end of the last, counted from ``start``: negative where it begins before."""
        self.places = np.maximum(start - of_texts[:-1], 0)
        """Of each text's first query within it."""

    def __len__(self) -> int:
        """Texts."""
        return len(self.lengths)


class Texts:
    """The lengths of a step's texts and what follows from them."""

    def __init__(
        self, lengths: Sequence[int], device: torch.device | str = "cpu", *, first_only: Sequence[bool] = ()
    ) -> None:
        """``first_only``: for each text whether only its first token goes on after the last layer; empty: none."""
        self.lengths = list(lengths)
        self._first_only = list(first_only) or [False] * len(self.lengths)
        self._device = device
        self._starts = np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> list[int]:
        """Where each text begins, and where the last one ends."""
        return self._starts.tolist()  # type: ignore[no-any-return]

    @cached_property
    def starts_tensor(self) -> Tensor:
        """The same for kernels, on the CPU."""
        return torch.from_numpy(self._starts)

    @property
    def is_first_only(self) -> bool:
        """Whether only the first tokens of all texts go on."""
        return all(self._first_only)

    @property
    def has_first_only(self) -> bool:
        """Whether some tokens do not go on."""
        return any(self._first_only)

    @cached_property
    def wanted_lengths(self) -> list[int]:
        """Tokens of each text that go on."""
        return [1 if first else length for first, length in zip(self._first_only, self.lengths, strict=True)]

    @cached_property
    def wanted_starts_tensor(self) -> Tensor:
        """As `starts_tensor`, of the tokens that go on."""
        return torch.from_numpy(np.concatenate(([0], np.cumsum(self.wanted_lengths))).astype(np.int64))

    @cached_property
    def wanted_places(self) -> Tensor:
        """``[R]``: places of the tokens that go on."""
        offsets = self._starts[:-1] - self.wanted_starts_tensor.numpy()[:-1]
        places = np.arange(sum(self.wanted_lengths)) + np.repeat(offsets, self.wanted_lengths)
        return torch.from_numpy(places).to(self._device)

    @cached_property
    def positions(self) -> np.ndarray:
        """Of each token within its text: ``[T]``."""
        return np.arange(self._starts[-1]) - np.repeat(self._starts[:-1], self.lengths)

    @cached_property
    def mask(self) -> np.ndarray:
        """``[B, L]``: 1 for a token, 0 behind a text's end."""
        return (np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]).astype(np.int64)

    @cached_property
    def _padded_places(self) -> Tensor:
        """``[B * L]``: a place behind a text's end is its first token's, so that a text has nothing of another."""
        within = np.where(self.mask, np.arange(max(self.lengths)), 0)
        return torch.from_numpy((self._starts[:-1, None] + within).ravel()).to(self._device)

    def pad(self, hidden_TH: Tensor) -> Tensor:
        """``[B, L, H]``"""
        return hidden_TH.index_select(0, self._padded_places).view(len(self), -1, hidden_TH.shape[-1])
