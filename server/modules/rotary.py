"""Rotary positions as tables, made by the module's own code.

Dimension key: P positions, R rotated pairs of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from server.modules.attention import Rotary
from server.modules.unsupported import Unsupported


class RotaryTables:
    """One table for each type of layer, made when it is first asked for."""

    def __init__(
        self,
        module: nn.Module | None,
        config: Any,
        lengths: Sequence[int],
        device: torch.device,
    ) -> None:
        """``lengths``: of sequences whose factors differ, ascending; each has the positions below it in every table."""
        self._module = module
        self._layer_types = getattr(config, "layer_types", None)
        self._lengths = lengths
        self._device = device
        self._is_by_type = module is not None and "layer_type" in inspect.signature(module.forward).parameters
        self._tables: dict[str, Rotary] = {}

    def of_layer(self, index: int) -> Rotary | None:
        if self._module is None:
            return None
        layer_type = self._layer_types[index] if self._is_by_type and self._layer_types else ""
        if layer_type not in self._tables:
            self._tables[layer_type] = self._make(self._module, layer_type)
        return self._tables[layer_type]

    def _make(self, module: nn.Module, layer_type: str) -> Rotary:
        options = {"layer_type": layer_type} if self._is_by_type else {}
        parts = [self._of_length(module, length, options) for length in self._lengths]
        cos, sin = (torch.cat(tables) for tables in zip(*parts, strict=True))
        return Rotary(cos_PR=cos, sin_PR=sin)

    def _of_length(self, module: nn.Module, size: int, options: dict[str, str]) -> list[Tensor]:
        """Cosines and sines for a sequence of ``size`` tokens."""
        positions = torch.arange(size, device=self._device)[None]
        with torch.no_grad():
            tables = module(torch.zeros(1, 1, 1, device=self._device), positions, **options)
        if not (isinstance(tables, tuple) and len(tables) == 2 and all(table.dim() == 3 for table in tables)):
            raise Unsupported("its rotary positions are not one cosine and one sine for each place")
        return [self._first_half(table[0]) for table in tables]

    def _first_half(self, table: Tensor) -> Tensor:
        first, second = table.float().chunk(2, dim=-1)
        if table.shape[-1] % 2 or not torch.equal(first, second):
            raise Unsupported("its rotary positions do not pair the halves of a head")
        return first.contiguous()
