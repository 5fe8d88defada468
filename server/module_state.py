"""What a forward pass leaves behind in a module, and the way back.

A few families change themselves while they run: a block-sparse model swaps its attention for another after a short
text, rotary tables are rebuilt for the longest text so far. What the next text gets must not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MISSING = object()
SIMPLE = (bool, int, float, str, bytes, type(None))


class ModuleState:
    """A module's plain attributes, submodules, buffers and configs as they are when this is made."""

    def __init__(self, module: nn.Module) -> None:
        parts = {name: part for name, part in module.named_modules() if not _is_plain(part)}
        configs = {id(part.config): part.config for part in parts.values() if hasattr(part, "config")}
        owners = [*parts.items(), *(("config", config) for config in configs.values())]
        self._spaces = [space for name, owner in owners for space in _spaces(name, vars(owner))]
        self._buffers = [(name, buffer, _version(buffer), buffer.clone()) for name, buffer in module.named_buffers()]

    def restore(self) -> list[str]:
        """Put back what has changed since; returns its names. Hooks and the choice of attention are not state."""
        changed = [name for space in self._spaces for name in space.restore()]
        for number, (name, buffer, version, saved) in enumerate(self._buffers):
            if version is not None and _version(buffer) == version:
                continue
            if not torch.equal(buffer, saved):
                with torch.inference_mode():
                    buffer.copy_(saved)
                changed.append(name)
            self._buffers[number] = (name, buffer, _version(buffer), saved)
        return changed


class _Namespace:
    """The attributes of one object, or the entries of one dictionary."""

    def __init__(self, name: str, entries: dict[Any, Any]) -> None:
        self._name = name
        self._entries = entries
        self._saved = {key: value for key, value in entries.items() if not _is_chosen(key)}
        self._num_entries = len(entries)

    def restore(self) -> Iterator[str]:
        entries = self._entries
        for key, value in self._saved.items():
            found = entries.get(key, MISSING)
            if found is value:
                continue
            entries[key] = value
            if not _is_same(found, value):
                yield f"{self._name}.{key}"
        if len(entries) != self._num_entries:
            for key in [key for key in entries if key not in self._saved and not _is_chosen(key)]:
                del entries[key]
                yield f"{self._name}.{key}"


class _Items:
    """The items of one list."""

    def __init__(self, name: str, items: list[Any]) -> None:
        self._name = name
        self._items = items
        self._saved = list(items)

    def restore(self) -> Iterator[str]:
        is_same = len(self._items) == len(self._saved) and all(map(_is, self._items, self._saved))
        if not is_same:
            self._items[:] = self._saved
            yield self._name


def _spaces(name: str, entries: dict[str, Any]) -> Iterator[_Namespace | _Items]:
    yield _Namespace(name, entries)
    for key, value in entries.items():
        if _is_chosen(key):
            continue
        if isinstance(value, dict):
            yield _Namespace(f"{name}.{key}", value)
        elif isinstance(value, list):
            yield _Items(f"{name}.{key}", value)


def _version(buffer: Tensor) -> int | None:
    """Rises with every change; None where torch does not count."""
    return None if buffer.is_inference() else buffer._version


def _is(one: Any, other: Any) -> bool:
    return one is other


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return isinstance(one, SIMPLE) and isinstance(other, SIMPLE) and one == other


def _is_chosen(key: Any) -> bool:
    """Hooks, and the attention that a config names: whoever runs the module sets them."""
    return isinstance(key, str) and ("_hooks" in key or key.startswith("_attn_implementation"))


def _is_plain(part: nn.Module) -> bool:
    """Linears, norms and the like keep nothing of a call; containers are looked at by what they hold."""
    return type(part).__module__.startswith(("torch.nn.", "server.native.")) and not isinstance(
        part, nn.ModuleList | nn.Sequential
    )
