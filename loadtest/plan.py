"""What one run of the bench measures, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Value = TypeVar("Value")

COMMON_FLAGS = ("--prompt-lookup", "off", "--kv-cache-gib", "2.5")
"""Guessing tokens would make a step more than one token long; two servers share the memory."""
VARIANTS: dict[str, tuple[str, ...]] = {"plain": (), "int8": ("--quantize", "int8")}
"""The servers that are compared: the model in its own dtype, and quantised."""
DETERMINISTIC = {"plain": (), "deterministic": ("--deterministic",)}


@dataclass(frozen=True)
class Plan:
    """Where and how often; what a part measures is the part's own."""

    model: str
    rounds: int = 3
    is_quick: bool = False
    """Runs everything once with next to no work: to see that it runs."""
    seed: int = 0
    serve_flags: Sequence[str] = field(default_factory=tuple)

    def pick(self, full: Value, quick: Value) -> Value:
        return quick if self.is_quick else full

    def variants(self, wanted: dict[str, tuple[str, ...]] | None = None) -> dict[str, list[str]]:
        """The flags of each server."""
        return {name: [*COMMON_FLAGS, *flags, *self.serve_flags] for name, flags in (wanted or VARIANTS).items()}
