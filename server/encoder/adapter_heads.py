"""An adapter's own head: what makes logits of the vectors of its texts.

transformers' module of the task is the yardstick. Where its layers follow one another, products of ours compute the
same in a tenth of the time.

Dimension key
    B  texts
    R  tokens that go on after the last layer
    L  tokens of the longest text
    H  hidden size
    N, K  outputs and inputs of a linear layer
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from server.encoder.forward import logits_of
from server.modules.adapted import LayerChange, NotShared, Part, packed_changes
from server.modules.texts import Texts
from server.modules.unsupported import FORWARD_FAILURES
from server.native.adapted import AdaptedRows, Deltas, Runs, adapting
from server.native.linear import Linear
from server.out_of_memory import raise_if_memory

log = logging.getLogger("sluice.encoder")

TRIED_LENGTHS = (3, 5, 1)
TOLERANCE = 1e-4
"""Largest difference from the yardstick, as a part of its largest logit or of 1."""

BETWEEN: tuple[Callable[[Tensor], Tensor], ...] = (torch.tanh, torch.relu, functional.gelu)
"""What heads call between their layers."""

Stage = Callable[[Tensor], Tensor]


class AdapterHead(ABC):
    """Logits of texts from their vectors, in float32. A text's logits do not depend on the others."""

    reads_first_only: bool
    """Whether it reads each text's first token alone."""
    num_bytes: int
    """Of the weights that are its own."""

    @abstractmethod
    def logits(self, hidden_RH: Tensor, texts: Texts) -> Tensor:
        """As `Forward.logits`; ``hidden_RH`` has all tokens, or the first ones where it reads no more."""


class GivenVectors(nn.Module):
    """In place of a base model: it makes ``hidden_BLH`` of whatever it is given."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler
        self.hidden_BLH = torch.empty(0)

    def forward(self, *_args: Any, **_options: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(self.hidden_BLH)
        return BaseModelOutputWithPooling(last_hidden_state=self.hidden_BLH, pooler_output=pooled)


class ModuleHead(AdapterHead):
    """transformers' own module, one text at a time."""

    reads_first_only = False

    def __init__(self, module: nn.Module, given: GivenVectors) -> None:
        self._module, self._given = module, given
        self.num_bytes = sum(parameter.numel() * parameter.itemsize for parameter in module.parameters())

    def logits(self, hidden_RH: Tensor, texts: Texts) -> Tensor:
        rows = [self._one(part_TH[None]) for part_TH in torch.split(hidden_RH, texts.lengths)]
        if rows[0].dim() == 1:
            return torch.stack(rows)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _one(self, hidden_1LH: Tensor) -> Tensor:
        self._given.hidden_BLH = hidden_1LH.float()
        ids = torch.ones(hidden_1LH.shape[:2], dtype=torch.int64, device=hidden_1LH.device)
        return logits_of(self._module(input_ids=ids, attention_mask=ids))[0]


class ChainedHead(AdapterHead):
    """Layers one after another."""

    def __init__(self, stages: Sequence[Stage], *, reads_first_only: bool, num_bytes: int = 0) -> None:
        self._stages = stages
        self.reads_first_only = reads_first_only
        self.num_bytes = num_bytes

    def logits(self, hidden_RH: Tensor, texts: Texts) -> Tensor:
        x = hidden_RH.float()
        if self.reads_first_only and len(x) != len(texts):
            x = x[torch.tensor(texts.starts[:-1], device=x.device)]
        for stage in self._stages:
            x = stage(x)
        return x if self.reads_first_only else texts.pad(x)


class BaseHead:
    """What the heads of a base's adapters have of the base, read when the first one needs it."""

    def __init__(self, read: Callable[[], Mapping[str, Tensor]]) -> None:
        """``read`` gives the parameters behind the core, by name."""
        self._read = read
        self._values: Mapping[str, Tensor] | None = None
        self._products: dict[str, Linear] = {}

    def value(self, name: str) -> Tensor:
        """Raises `NotShared` where the base has none."""
        if self._values is None:
            self._values = self._read()
        if name not in self._values:
            raise NotShared(f"neither it nor its base has {name}")
        return self._values[name]

    def product(self, name: str) -> Linear:
        """The linear layer of that name, packed once for all adapters."""
        if name not in self._products:
            weight_NK = self.value(f"{name}.weight").float()
            assert self._values is not None
            self._products[name] = linear = Linear(weight_NK, self._values.get(f"{name}.bias"))
            linear.number = 0
        return self._products[name]


class Head:
    """The head of one adapter, from its parts."""

    def __init__(
        self, skeleton: Any, saved: Mapping[str, Tensor], changes: Mapping[str, LayerChange], base: BaseHead
    ) -> None:
        """``skeleton`` is a module of the task without values, which stays as it is.

        Raises `NotShared` where ``saved`` and ``changes`` are not those of its head.
        """
        self._saved, self._changes, self._base = saved, changes, base
        core = skeleton.base_model
        self._given = GivenVectors(copy.deepcopy(getattr(core, "pooler", None)))
        # The core is not copied.
        self._module: nn.Module = copy.deepcopy(skeleton, {id(core): self._given})
        names = [name for name, _ in self._module.named_parameters()]
        if unknown := sorted({*saved} - {*names}):
            raise NotShared(f"it brings {unknown[0]}, which is no part of a head")
        self._fill({name: saved[name] if name in saved else base.value(name) for name in names})

    @staticmethod
    def linears_of(skeleton: Any) -> set[str]:
        """Names of the linear layers behind the core."""
        core = {id(part) for name, part in skeleton.base_model.named_modules() if not f"{name}.".startswith("pooler.")}
        return {name for name, part in skeleton.named_modules() if type(part) is nn.Linear and id(part) not in core}

    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, change in self._changes.items():
            weight, bias = f"{name}.weight", f"{name}.bias"
            values[weight], changed = change.merged(values[weight].float(), values.get(bias))
            if changed is not None:
                values[bias] = changed
        try:
            self._module.load_state_dict({name: value.float() for name, value in values.items()}, assign=True)
        except RuntimeError as error:
            raise NotShared(f"its head does not fit ({str(error).splitlines()[-1].strip()[:200]})") from error
        self._module.requires_grad_(False).eval()

    @torch.inference_mode()
    def build(self, hidden_size: int) -> AdapterHead:
        """The fastest way that gives what the module gives. Raises `NotShared` where the module itself fails."""
        slow = ModuleHead(self._module, self._given)
        texts = Texts(TRIED_LENGTHS)
        hidden_TH = torch.randn(sum(TRIED_LENGTHS), hidden_size, generator=torch.Generator().manual_seed(0))
        try:
            expected = slow.logits(hidden_TH, texts)
            fast = self._chained(texts.pad(hidden_TH))
        except FORWARD_FAILURES as error:
            raise_if_memory(error)
            raise NotShared(f"its head fails ({type(error).__name__}: {error})") from error
        if fast is not None and _is_near(fast.logits(hidden_TH, texts), expected, texts):
            return fast
        log.info("a head of an adapter stays transformers' own")
        return slow

    def _chained(self, hidden_BLH: Tensor) -> ChainedHead | None:
        """None where the module is more than layers one after another."""
        calls, logits = self._record(hidden_BLH)
        for reads_first_only, x in ((True, hidden_BLH[:, 0]), (False, hidden_BLH)):
            stages: list[Stage] = []
            num_bytes = 0
            for name, part, given, made in calls:
                between = _between(x, given)
                if between is None:
                    break
                stage, own_bytes = self._stage(name, part)
                stages += [*between, stage]
                num_bytes += own_bytes
                x = made
            if calls and torch.equal(x, logits):
                return ChainedHead(stages, reads_first_only=reads_first_only, num_bytes=num_bytes)
        return None

    def _record(self, hidden_BLH: Tensor) -> tuple[list[tuple[str, nn.Module, Tensor, Tensor]], Tensor]:
        """Each layer's call in order, with what it was given and what it made; and the logits."""
        calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
        hooks = [
            part.register_forward_hook(lambda part, args, made, name=name: calls.append((name, part, args[0], made)))
            for name, part in _layers(self._module)
        ]
        self._given.hidden_BLH = hidden_BLH
        ids = torch.ones(hidden_BLH.shape[:2], dtype=torch.int64)
        try:
            return calls, logits_of(self._module(input_ids=ids, attention_mask=ids))
        finally:
            for hook in hooks:
                hook.remove()

    def _stage(self, name: str, part: nn.Module) -> tuple[Stage, int]:
        """What computes one layer, and the bytes that no other adapter has."""
        if type(part) is not nn.Linear:
            return part, sum(parameter.numel() * parameter.itemsize for parameter in part.parameters())
        if f"{name}.weight" in self._saved or f"{name}.bias" in self._saved:
            linear = Linear(part.weight, part.bias)
            return linear, linear.weight_bytes
        linear = self._base.product(name)
        if name not in self._changes:
            return linear, 0
        whole = Part(product=linear, start=0, stop=linear.num_rows)
        deltas = packed_changes({name: whole}, {name: self._changes[name]})
        return _adapted(linear, deltas), deltas.num_bytes


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that change what they are given."""
    without_effect = (nn.Dropout, nn.Identity, GivenVectors)
    for name, part in module.named_modules():
        if not any(part.children()) and not isinstance(part, without_effect):
            yield name, part


def _between(x: Tensor, given: Tensor) -> list[Stage] | None:
    """What makes of ``x`` what a layer is given: nothing, or one function; None for anything else."""
    if torch.equal(x, given):
        return []
    return next(([function] for function in BETWEEN if torch.equal(function(x), given)), None)


def _adapted(linear: Linear, deltas: Deltas) -> Stage:
    def stage(x: Tensor) -> Tensor:
        num_rows = x.numel() // linear.in_features
        with adapting({num_rows: Runs([AdaptedRows(0, num_rows, deltas)])}):
            return linear(x)

    return stage


def _is_near(ours: Tensor, theirs: Tensor, texts: Texts) -> bool:
    """Behind a text's end anything may stand."""
    if ours.shape != theirs.shape:
        return False
    difference = (ours - theirs).abs()
    if ours.dim() == 3:
        difference = difference[torch.from_numpy(texts.mask).bool()]
    return bool(difference.max() <= TOLERANCE * max(1.0, float(theirs.abs().max())))
