"""The children of a module by the names that families of models give them; a child without a known name is refused."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from server.modules.unsupported import Unsupported

IDLE = (nn.Dropout, nn.Identity)
"""Does nothing in a model that is not trained."""


class Children:
    """Hands out the children of ``module``; `finish` raises `Unsupported` where one was not asked for."""

    def __init__(self, module: nn.Module) -> None:
        self._class = type(module).__name__
        self._left = {name: child for name, child in module.named_children() if not isinstance(child, IDLE)}

    def find(self, *names: str) -> nn.Module | None:
        """The child under the first of ``names`` that there is."""
        return next((self._left.pop(name) for name in names if name in self._left), None)

    def take(self, *names: str) -> nn.Module:
        child = self.find(*names)
        if child is None:
            raise Unsupported(f"its {self._class} has no {names[0]}")
        return child

    def take_all(self, *names: str) -> tuple[nn.Module, ...]:
        return tuple(self.take(name) for name in names)

    def has(self, name: str) -> bool:
        return name in self._left

    def finish(self, *ignored: str) -> None:
        if unknown := self._left.keys() - set(ignored):
            raise Unsupported(f"its {self._class} has a part {min(unknown)} that is not known here")


def first_attribute(module: object, names: Iterable[str], default: float) -> float:
    """The first of a module's or config's numbers that is set."""
    found = (getattr(module, name, None) for name in names)
    return next((float(value) for value in found if value is not None), default)
