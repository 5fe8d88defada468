"""Where the time of a step goes, by wrapping the product's own functions from outside while it is measured.

What the wrapped functions call one another is counted once, for the innermost. A class that this version of the
product does not have is left out, and its time is then its caller's.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from torch import nn

PARTS = ("linears", "head", "attention", "norms", "rest of the forward pass", "sampling", "scheduler and engine")
LINEARS, HEAD, ATTENTION, NORMS, FORWARD, SAMPLING, ENGINE = PARTS

Naming = Callable[[Any], str]


class PartTimer:
    """Exclusive seconds by part, while `patched`."""

    def __init__(self, vocab_size: int) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._vocab_size = vocab_size
        self._running: list[str] = []
        """The part that runs and those that called it; empty while nothing is measured."""
        self._mark = 0.0

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Time all parts; the product is as it was afterwards."""
        undo: list[Callable[[], None]] = []
        try:
            for owner, name, naming in self._targets():
                original = vars(owner)[name]
                setattr(owner, name, self._timed(original, naming))
                undo.append(functools.partial(setattr, owner, name, original))
            if (chain := _find("server.native.chain.Chain")) is not None:
                undo.append(functools.partial(setattr, chain, "run", chain.run))
                chain.run = self._chain(chain.run)
            yield
        finally:
            for restore in reversed(undo):
                restore()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time until the end; what no wrapped function takes is the engine's."""
        self._running = [ENGINE]
        self._mark = perf_counter()
        yield
        self._switch()
        self._running = []

    def _switch(self) -> None:
        now = perf_counter()
        self.seconds[self._running[-1]] += now - self._mark
        self._mark = now

    def _timed(self, original: Callable[..., Any], naming: Naming) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **options: Any) -> Any:
            if not self._running:
                return original(*args, **options)
            self._switch()
            self._running.append(naming(args[0] if args else None))
            try:
                return original(*args, **options)
            finally:
                self._switch()
                self._running.pop()

        return timed

    def _chain(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A chain of kernels tells the time of each kind itself."""

        @functools.wraps(original)
        def timed(chain: Any, *args: Any) -> Any:
            if not self._running:
                return original(chain, *args)
            before = chain.seconds
            result = original(chain, *args)
            self._switch()
            for part, seconds in chain.seconds.items():
                self.seconds[part] += seconds - before[part]
                self.seconds[self._running[-1]] -= seconds - before[part]
            return result

        return timed

    def _targets(self) -> Iterator[tuple[Any, str, Naming]]:
        """Owner, attribute, and how to name the part when it is called on something."""
        for path, name in (("server.native.linear.Linear", "__call__"), ("torch.nn.Linear", "forward")):
            if (found := _find(path)) is not None and name in vars(found):
                yield found, name, self._linear
        for path, names, part in (
            ("server.engine.attention.backend.AttentionBackend", ("begin", "attend", "attend_packed"), ATTENTION),
            ("server.engine.model_runner.ModelRunner", ("forward",), FORWARD),
            ("server.engine.choosing.Chooser", ("choose",), SAMPLING),
        ):
            base = _find(path)
            for owner in () if base is None else (base, *_subclasses(base)):
                yield from ((owner, name, _always(part)) for name in names if name in vars(owner))
        for owner in _subclasses(nn.Module):
            if owner.__name__.endswith("Norm") and "forward" in vars(owner):
                yield owner, "forward", _always(NORMS)
        for module, name in _functions("server.native.ops", "norm"):
            yield module, name, _always(NORMS)

    def _linear(self, linear: nn.Module) -> str:
        return HEAD if linear.out_features == self._vocab_size else LINEARS


def _always(part: str) -> Naming:
    return lambda _: part


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _subclasses(base: type) -> list[type]:
    """All of them, each once."""
    found = {}
    for each in base.__subclasses__():
        found[each] = None
        found |= dict.fromkeys(_subclasses(each))
    return list(found)


def _functions(module: str, word: str) -> list[tuple[Any, str]]:
    """The module's own functions with the word in their name, wherever our modules have imported them to."""
    home = importlib.import_module(module)
    own = [value for name, value in vars(home).items() if word in name and getattr(value, "__module__", "") == module]
    ours = [each for name, each in sys.modules.items() if name.startswith("server.") and each is not None]
    return [(each, name) for each in ours for name, value in vars(each).items() if any(value is one for one in own)]
