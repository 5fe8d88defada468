"""Which way through a module is the fastest that is right: each is tried on a few texts first.

Of a module it knows what the outputs prove: where texts may lie end to end, whether its layers are those of BERT, and
whether its head reads first tokens alone.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from server.encoder import precision, quality
from server.encoder.attention import num_calls
from server.encoder.flat import FlatForward, Numbering, numbering_after, plain_numbering
from server.encoder.forward import Forward, PaddedForward
from server.encoder.fused import FusedLayers, MakeProduct, recognise
from server.encoder.grouping import ONE_BY_ONE, Grouping
from server.encoder.trial import Frame, Trial, end_tokens, run_alone
from server.errors import ConfigurationError
from server.module_state import ModuleState
from server.modules import products
from server.modules.adapted import Part, Parts, layer_parts, numbered, whole_parts
from server.modules.attention_calls import ATTENTION, configs, set_attention
from server.modules.layout import Layer
from server.modules.unsupported import FORWARD_FAILURES, Unsupported
from server.native.linear import Linear
from server.number_types import Quantize
from server.out_of_memory import raise_if_memory
from server.protocol import Encode

log = logging.getLogger("sluice.encoder")

NO_FRAME = Frame()


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How an encoder is to run."""

    executor: str = "auto"
    """``compat`` pads, ``generic`` lays texts end to end, ``fused`` has its own layers too; ``auto`` tries."""
    dtype: torch.dtype | None = None
    """Of the products in the layers; None for the module's own."""
    quantize: Quantize = "none"
    has_tf32: bool = False
    """On a GPU, compute float32 products with ten bits of each factor's fraction."""
    may_narrow: bool = False
    """Whether fused layers may run their products in bfloat16 if that is much faster here and keeps the labels."""


@dataclass(frozen=True)
class _Plan:
    """How texts go through the module without padding."""

    core: str
    """Name of the submodule whose output is every token's vector."""
    numbering: Numbering
    is_fused: bool = False
    reads_first_only: bool = False


def build_forward(
    module: Any,
    *,
    pad_token_id: int | None,
    max_model_len: int,
    wishes: Wishes,
    pack: Callable[[nn.Module], Any],
    frame: Frame = NO_FRAME,
    sample: Sequence[Encode] = (),
    measure: quality.Measure = quality.OF_SCORES,
) -> Forward:
    """The module as ``wishes`` want it; ``pack`` does whatever linears are left. The module is changed."""
    yardstick = PaddedForward(module, pad_token_id, ONE_BY_ONE)
    dtype = wishes.dtype or module.dtype
    is_reduced = wishes.quantize != "none" or dtype != module.dtype or wishes.has_tf32
    exact = measure.read(yardstick, sample) if sample and (is_reduced or wishes.may_narrow) else None
    trial = run_alone(yardstick, frame, max_model_len)
    plan = _find_plan(module, trial, wishes.executor)
    grouping = ONE_BY_ONE if plan is not None else find_grouping(module, pad_token_id, trial)
    reason = None
    if wishes.may_narrow and exact is not None and plan is not None and plan.is_fused:
        is_narrow, reason = _narrowing(module, plan, lambda ours: measure.compare(measure.read(ours, sample), exact))
        dtype = torch.bfloat16 if is_narrow else dtype
        log.info("products in %s: %s", _name(dtype), reason)
    try:
        _reduce(module, plan, dtype, wishes.quantize)
        forward: Forward = PaddedForward(module, pad_token_id, grouping)
        if plan is not None:
            forward, _ = _install(module, plan, partial(products.pack, dtype=dtype, quantize=wishes.quantize))
    except ValueError as error:
        raise ConfigurationError(f"{error} Set quantize to none.") from error
    forward.dtype, forward.dtype_reason = dtype, reason
    if wishes.has_tf32:
        # From here on: the trials before compare results that must agree to the last bits of float32.
        torch.set_float32_matmul_precision("high")
    if exact is not None and is_reduced:
        width = _width(wishes, dtype)
        log.info("products in %s: %s", width, measure.compare(measure.read(forward, sample), exact))
    pack(module)
    forward.remember()
    if forward.flat is not None and plan is not None:
        forward.flat.parts = numbered(forward.flat.parts or _own_parts(module, plan))
    return forward


def _width(wishes: Wishes, dtype: torch.dtype) -> str:
    if wishes.quantize != "none":
        return wishes.quantize
    return "tf32" if wishes.has_tf32 and dtype == torch.float32 else _name(dtype)


def _narrowing(
    module: Any, plan: _Plan, compare: Callable[[Forward], quality.Quality | quality.Nearness]
) -> tuple[bool, str]:
    """Whether the fused layers run in bfloat16, and why or why not. The module is as before."""
    layers = recognise(module.get_submodule(plan.core))
    assert layers is not None, "a fused plan is of layers that were recognised"
    factor = precision.speed_up(layers[0].sublayers[-1].first.linears[0].get_parameter("weight"))
    if slow := precision.too_slow(factor):
        return False, slow
    forward, undo = _install(module, plan, partial(products.pack, dtype=torch.bfloat16))
    try:
        found = compare(forward)
    finally:
        undo()
    if problem := precision.wrong(found):
        return False, problem
    return True, f"bfloat16 is {factor:.1f} times as fast here, and {found}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def find_grouping(module: Any, pad_token_id: int | None, trial: Trial) -> Grouping:
    """The largest batches in which each text gets what it gets alone."""
    ends = [None, *end_tokens(module.config)[:1]]
    padded = [Grouping("padded", each, checked) for checked in trial.checked_lengths for each in ends]
    for grouping in (*padded, *(Grouping("equal lengths", each) for each in ends)):
        problem = _problem(PaddedForward(module, pad_token_id, grouping), trial)
        if problem is None:
            return grouping
        log.info("%s, %s", grouping, problem)
    return ONE_BY_ONE


def _problem(forward: Forward, trial: Trial) -> str | None:
    """What is wrong with the logits of the trial's texts together."""
    try:
        with torch.inference_mode():
            return trial.problem(forward.logits(trial.batch))
    except Unsupported as error:
        return str(error)
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        return f"it fails with a {type(error).__name__}"


def _reduce(module: Any, plan: _Plan | None, dtype: torch.dtype, quantize: Quantize) -> None:
    """Products in fewer bits, but for layers that make their own."""
    is_ours = plan is not None and plan.is_fused
    if not is_ours and (quantize != "none" or dtype != module.dtype):
        products.reduce_linears(module.base_model, dtype, quantize)


def _install(module: Any, plan: _Plan, make: MakeProduct) -> tuple[FlatForward, Callable[[], None]]:
    """Attention calls are ours from here on, and for a fused plan the layers are."""
    before = [(config, config._attn_implementation) for config in configs(module)]
    core = original = module.get_submodule(plan.core)
    found: Parts = {}
    if plan.is_fused:
        parts = recognise(original)
        assert parts is not None, "a fused plan is of layers that were recognised"
        layers = [products.with_products(each, make) for each in parts]
        core = FusedLayers(layers, reads_first_only=plan.reads_first_only)
        # Of products for proofs, nothing is asked but to compute.
        found = layer_parts(module.base_model, parts, cast("list[Layer[Linear]]", layers))
        module.set_submodule(plan.core, core)
    set_attention(module, ATTENTION)

    def undo() -> None:
        module.set_submodule(plan.core, original)
        for config, name in before:
            config._attn_implementation = name

    forward = FlatForward(module, core, plan.numbering, "fused" if plan.is_fused else "generic")
    forward.parts = found
    return forward, undo


def _own_parts(module: Any, plan: _Plan) -> Parts:
    """Of layers that are the module's own, after their linears were packed. A pooler is no part of the core."""
    place = plan.core.removeprefix(module.base_model_prefix).removeprefix(".")
    parts = {name: part for name, part in whole_parts(module.base_model).items() if isinstance(part, Part)}
    return {name: part for name, part in parts.items() if name.startswith(place) and not name.startswith("pooler.")}


def pads(executor: str, device: torch.device) -> bool:
    """Whether no other way than padding is tried."""
    # On a GPU a launch for every text would cost more than padding does.
    return executor == "compat" or (executor == "auto" and device.type != "cpu")


def _find_plan(module: Any, trial: Trial, executor: str) -> _Plan | None:
    """The best plan that gives what each text alone gives; None for padding."""
    if pads(executor, module.device):
        return None
    reasons: dict[str, None] = {}
    plans = (plan for plan in _flat_plans(module, trial) if _passes(module, plan, trial, reasons))
    flat = next(plans, None)
    if flat is None:
        _require(executor, ("generic", "fused"), reasons)
        log.info("texts are not laid end to end: %s", "; ".join(reasons) or "they would need positions")
        return None
    if executor == "generic" or recognise(module.get_submodule(flat.core)) is None:
        _require(executor, ("fused",), {"its layers are not laid out like BERT's": None})
        return flat
    fused = replace(flat, is_fused=True)
    first_only = replace(fused, reads_first_only=True)
    reasons.clear()
    candidates = [first_only, fused] if trial.is_of_texts else [fused]
    best = next((plan for plan in candidates if _passes(module, plan, trial, reasons)), None)
    if best is None:
        _require(executor, ("fused",), reasons)
        log.info("layers stay transformers' own: with ours %s", "; ".join(reasons))
    return best or flat


def _require(executor: str, names: Sequence[str], reasons: Iterable[str]) -> None:
    if executor in names:
        raise ConfigurationError(
            f"The model cannot run in the {executor} executor: {'; '.join(reasons)}. Set executor to auto."
        )


def _flat_plans(module: Any, trial: Trial) -> Iterator[_Plan]:
    if "position_ids" not in inspect.signature(module.forward).parameters or trial.unchecked_switch is not None:
        return
    prefix = module.base_model_prefix
    padding_id = getattr(module.config, "pad_token_id", None)
    numberings = [plain_numbering] + ([] if padding_id is None else [numbering_after(padding_id)])
    stacks = [
        f"{prefix}.{name}"
        for name, child in module.base_model.named_children()
        if any(isinstance(part, nn.ModuleList) for part in child.children())
    ]
    for core in (*stacks, prefix):
        for numbering in numberings:
            yield _Plan(core, numbering)


def _passes(module: Any, plan: _Plan, trial: Trial, reasons: dict[str, None]) -> bool:
    """Whether the texts together give what each gives alone; else why not goes to ``reasons``."""
    forward, undo = _install(module, plan, products.PlainProduct)
    state = ModuleState(module)
    try:
        problem = _problem(forward, trial)
        if problem is None and not plan.is_fused and num_calls() == 0:
            problem = "it does not call the attention interface"
    finally:
        changed = state.restore()
        undo()
    if problem is None and changed:
        problem = f"a step changes its {changed[0]}"
    if problem is not None:
        reasons[problem] = None
    return problem is None
