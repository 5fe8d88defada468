"""Attention windows of thousands of tokens, made short while a check runs.

A wrong window shows only in a sequence that is longer than the window. Computing such a sequence can take longer than
loading the model, so the check shortens the windows of the module and of the runner alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from server.modules.attention import LayerSpec
from server.modules.attention_calls import configs

CONFIG_NAMES = ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size")
"""Fields of decoders' configs that are the length of a sliding window or of an attention chunk."""

SHORTEST = 10
STEP = 8
"""The shortest window becomes 10 tokens long, the next one 18 and so on: different windows stay different."""


def named_windows(config: PreTrainedConfig) -> list[int]:
    """Tokens of each window that a decoder's config names."""
    values = [getattr(config, name, None) for name in CONFIG_NAMES]
    return sorted({value for value in values if isinstance(value, int) and value > 0})


class ShortWindows:
    """Which window becomes how short. Empty, and false, if there is nothing to shorten."""

    def __init__(self, windows: Iterable[int] = ()) -> None:
        self._lengths = {window: SHORTEST + STEP * i for i, window in enumerate(sorted(set(windows)))}

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def length(self, window: int) -> int:
        """What a window becomes. One token more or less than the config's stays one token more or less.

        >>> short = ShortWindows([4096, 1024])
        >>> short.length(1024), short.length(4096), short.length(4097)
        (10, 18, 19)
        """
        if not self._lengths:
            return window
        nearest = min(self._lengths, key=lambda named: abs(named - window))
        return max(1, window - nearest + self._lengths[nearest])

    def specs(self, specs: Sequence[LayerSpec]) -> list[LayerSpec]:
        """The layers with short windows. A layer without a window has none afterwards."""
        return [
            spec if spec.window is None else dataclasses.replace(spec, window=self.length(spec.window))
            for spec in specs
        ]

    @contextmanager
    def set_in(self, module: nn.Module) -> Iterator[None]:
        """Within, the configs and parts of ``module`` have the short windows."""
        owners = {id(owner): vars(owner) for owner in (*configs(module), *module.modules())}
        found = [
            (fields, name, value)
            for fields in owners.values()
            for name, value in fields.items()
            if self._is_window(name, value)
        ]
        for fields, name, value in found:
            fields[name] = self.length(value)
        try:
            yield
        finally:
            for fields, name, value in found:
                fields[name] = value

    def _is_window(self, name: str, value: Any) -> bool:
        """Some modules add 1 to what the config says."""
        if type(value) is not int or not ("window" in name or "chunk" in name):
            return False
        return any(abs(value - window) <= 1 for window in self._lengths)
