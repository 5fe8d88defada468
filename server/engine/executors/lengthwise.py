"""Rotary factors by sequence, for modules that choose them by the greatest position of a call.

transformers' modules look at all positions that they are called with: alone that is the sequence so far, in a step it
is whatever the step holds. Which modules do so is found by calling them, not by their configs.

Dimension key: T tokens of a step, laid end to end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.lengths import LengthRule
from server.errors import EXIT_MODEL, ConfigurationError
from server.module_state import ModuleState
from server.out_of_memory import raise_if_memory

NUM_PROBED = 4
"""Positions whose factors are compared."""

PROBE_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


class Span(NamedTuple):
    """Tokens of one sequence in a step."""

    first: int
    """Position of the first one."""
    size: int
    deciding_length: int
    """See `LengthRule`."""


class _Call(NamedTuple):
    """Tokens of a step that are given to the module together."""

    tokens: list[int]
    greatest: int | None
    """A position that is added, so that it decides; None where the tokens' own greatest one does."""


class Lengthwise:
    """The rotary modules of a model, answering each token of a step by its own sequence."""

    def __init__(self, rule: LengthRule, parts: Sequence[nn.Module]) -> None:
        self.rule = rule
        self._calls: list[_Call] | None = None
        for part in parts:
            _StepRotary(self, part)

    @property
    def calls(self) -> list[_Call] | None:
        """Those of the running step; None between steps, when a call's own positions decide."""
        return self._calls

    @contextmanager
    def step(self, spans: Sequence[Span]) -> Iterator[None]:
        """While the module runs over these tokens."""
        self._calls = _calls(self.rule, spans)
        try:
            yield
        finally:
            self._calls = None


class _StepRotary:
    """Stands in for the forward of ``part``."""

    def __init__(self, owner: Lengthwise, part: nn.Module) -> None:
        self._owner = owner
        self._forward: Callable[..., Any] = part.forward
        part.forward = self
        # After the line above, or restoring would undo it.
        self._state = ModuleState(part)

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **options: Any) -> Any:
        calls = self._owner.calls
        if calls is None:
            return self._fresh(x, position_ids, *args, **options)
        parts = [self._part(x, position_ids, call, *args, **options) for call in calls]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([token for call in calls for token in call.tokens], device=position_ids.device).argsort()
        if isinstance(parts[0], Tensor):
            return torch.cat(parts, dim=1)[:, order]
        return tuple(torch.cat(leaves, dim=1)[:, order] for leaves in zip(*parts, strict=True))

    def _part(self, x: Tensor, position_ids: Tensor, call: _Call, *args: Any, **options: Any) -> Any:
        ids = position_ids
        if len(call.tokens) != position_ids.shape[-1]:
            ids = position_ids[..., torch.tensor(call.tokens, device=position_ids.device)]
        if call.greatest is None:
            return self._fresh(x, ids, *args, **options)
        ids = torch.cat((ids, torch.full_like(ids[..., :1], call.greatest)), dim=-1)
        return _first(self._fresh(x, ids, *args, **options), len(call.tokens))

    def _fresh(self, *args: Any, **options: Any) -> Any:
        """As of a module that has never seen another sequence: some keep the factors of the longest one."""
        try:
            return self._forward(*args, **options)
        finally:
            self._state.restore()


def spans_step(lengthwise: Lengthwise | None, spans: Callable[[], Sequence[Span]]) -> Any:
    """A context for one forward pass; ``spans`` is called only where they matter."""
    return nullcontext() if lengthwise is None else lengthwise.step(spans())


def install(module: PreTrainedModel, max_model_len: int) -> Lengthwise | None:
    """Make ``module`` choose rotary factors by sequence. None where it has one set for all served lengths.

    Raises ConfigurationError where its parts follow different rules.
    """
    config = module.config.get_text_config(decoder=True)
    layer_types = sorted(set(getattr(config, "layer_types", None) or ()))
    parts = [part for part in module.modules() if _is_rotary(part)]
    rules = {id(part): rule for part in parts if (rule := _rule_of(part, layer_types, max_model_len))}
    if not rules:
        return None
    if len(set(rules.values())) > 1:
        raise ConfigurationError(
            f"{type(module).__name__} cannot be served: parts of it change their rotary factors at different lengths "
            f"({', '.join(str(rule.switch) for rule in rules.values())} tokens). "
            f"Set max_model_len to {min(rule.switch for rule in rules.values())} or less.",
            exit_code=EXIT_MODEL,
        )
    return Lengthwise(next(iter(rules.values())), [part for part in parts if id(part) in rules])


def _is_rotary(part: nn.Module) -> bool:
    """Whether it makes factors of positions and of nothing else."""
    names = list(inspect.signature(part.forward).parameters)
    return names[1:2] == ["position_ids"] and set(names[2:]) <= {"layer_type"} and not any(part.children())


def _rule_of(part: nn.Module, layer_types: Sequence[str], max_model_len: int) -> LengthRule | None:
    takes_type = "layer_type" in inspect.signature(part.forward).parameters
    rules = set()
    for options in [{"layer_type": each} for each in layer_types] if takes_type else [{}]:
        state = ModuleState(part)
        try:
            rules.add(_probe(part, state, options, max_model_len))
        except PROBE_FAILURES as error:
            raise_if_memory(error)
            # A type of layer that this part does not serve.
            continue
        finally:
            state.restore()
    rules.discard(None)
    if len(rules) > 1:
        raise ConfigurationError(
            "The model cannot be served: its types of layers change their rotary factors at different lengths. "
            f"Set max_model_len to {min(rule.switch for rule in rules if rule)} or less.",
            exit_code=EXIT_MODEL,
        )
    return next(iter(rules), None)


@torch.inference_mode()
def _probe(part: nn.Module, state: ModuleState, options: dict[str, str], max_model_len: int) -> LengthRule | None:
    device = next((buffer.device for buffer in part.buffers()), torch.device("cpu"))
    x = torch.zeros(1, 1, 1, device=device)

    def factors(greatest: int) -> list[Tensor]:
        """Of the first positions, in a call whose greatest position is this one."""
        state.restore()
        ids = torch.tensor([[*range(NUM_PROBED), greatest]], device=device)
        found = _first(part(x, ids, **options), NUM_PROBED)
        return [leaf.clone() for leaf in (found if isinstance(found, tuple) else (found,))]

    def differ(one: list[Tensor], other: list[Tensor]) -> bool:
        return not all(map(torch.equal, one, other))

    short, low, high = factors(NUM_PROBED), NUM_PROBED, max_model_len - 1
    if high <= low or not differ(short, factors(high)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if differ(short, factors(middle)):
            high = middle
        else:
            low = middle
    return LengthRule(switch=high, is_by_prompt=differ(factors(high), factors(2 * high + 1)))


def _first(found: Any, count: int) -> Any:
    return found[:, :count] if isinstance(found, Tensor) else tuple(leaf[:, :count] for leaf in found)


def _calls(rule: LengthRule, spans: Sequence[Span]) -> list[_Call]:
    """Which tokens go together, and what decides for them."""
    groups: dict[tuple[str, int], list[int]] = {}
    start = 0
    for span in spans:
        for i in range(span.size):
            groups.setdefault(_key(rule, span.deciding_length, span.first + i), []).append(start + i)
        start += span.size
    return [_Call(tokens, None if kind == "own" else value) for (kind, value), tokens in groups.items()]


def _key(rule: LengthRule, deciding_length: int, position: int) -> tuple[str, int]:
    """Equal for tokens of one call: the greatest position that is set for them, or one that they have themselves."""
    if deciding_length and (not rule.is_by_prompt or position < deciding_length):
        return "set", deciding_length - 1
    return ("own", position) if rule.is_by_prompt and position >= rule.switch else ("own", 0)
