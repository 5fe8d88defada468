"""Which way through a module is the fastest that is right: each is tried on three texts before it is taken.

Of a module it knows what the outputs prove: where texts may lie end to end, whether its layers are those of BERT, and
whether its head reads first tokens alone.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from server.encoder import quality
from server.encoder.attention import ATTENTION, Unsupported, num_calls
from server.encoder.forward import FlatForward, Forward, Numbering, PaddedForward, numbering_after, plain_numbering
from server.encoder.fused import FusedLayer, FusedLayers, MakeProduct, recognise
from server.encoder.products import packed_product, plain_product, reduce_linears
from server.errors import ConfigurationError
from server.native.linear import Quantize
from server.protocol import Encode

log = logging.getLogger("sluice.encoder")

PROBE_LENGTHS = (3, 40, 150)
"""Of the texts of a trial. The last is longer than the usual windows of local attention."""

TOLERANCES = {torch.float32: 1e-4}
COARSE_TOLERANCE = 5e-2
"""Largest difference from each text alone, as a part of the largest logit or of 1."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How an encoder is to run."""

    executor: str = "auto"
    """``compat`` pads, ``generic`` lays texts end to end, ``fused`` has its own layers too; ``auto`` tries."""
    dtype: torch.dtype | None = None
    """Of the products in the layers; None for the module's own."""
    quantize: Quantize = "none"


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
    sample: Sequence[Encode] = (),
    measure: quality.Measure = quality.OF_SCORES,
) -> Forward:
    """The module as ``wishes`` want it; ``pack`` does whatever linears are left. The module is changed."""
    padded = PaddedForward(module, pad_token_id)
    dtype = wishes.dtype or module.dtype
    is_reduced = wishes.quantize != "none" or dtype != module.dtype
    exact = measure.read(padded, sample) if sample and is_reduced else None
    plan = _find_plan(module, padded, max_model_len, wishes.executor)
    try:
        forward = _apply(module, padded, plan, dtype, wishes.quantize)
    except ValueError as error:
        raise ConfigurationError(f"{error} Set quantize to none.") from error
    if exact is not None:
        width = str(dtype).removeprefix("torch.") if wishes.quantize == "none" else wishes.quantize
        log.info("products in %s: %s", width, measure.compare(measure.read(forward, sample), exact))
    pack(module)
    return forward


def _apply(module: Any, padded: PaddedForward, plan: _Plan | None, dtype: torch.dtype, quantize: Quantize) -> Forward:
    """The module changed to this plan, with such products."""
    forward: Forward = padded
    if plan is not None and plan.is_fused:
        forward, _ = _install(module, plan, packed_product(dtype, quantize), dtype)
    else:
        if quantize != "none" or dtype != module.dtype:
            reduce_linears(module.base_model, dtype, quantize)
        if plan is not None:
            forward, _ = _install(module, plan, plain_product, dtype)
    forward.dtype = dtype
    return forward


def _install(module: Any, plan: _Plan, make: MakeProduct, dtype: torch.dtype) -> tuple[FlatForward, Callable[[], None]]:
    """Attention calls are ours from here on, and for a fused plan the layers are."""
    before = [(config, config._attn_implementation) for config in _configs(module)]
    core = original = module.get_submodule(plan.core)
    if plan.is_fused:
        parts = recognise(original)
        assert parts is not None, "a fused plan is of layers that were recognised"
        layers = [FusedLayer(each, make, dtype) for each in parts]
        core = FusedLayers(layers, reads_first_only=plan.reads_first_only)
        module.set_submodule(plan.core, core)
    for config, _ in before:
        config._attn_implementation = ATTENTION

    def undo() -> None:
        module.set_submodule(plan.core, original)
        for config, name in before:
            config._attn_implementation = name

    return FlatForward(module, core, plan.numbering, "fused" if plan.is_fused else "generic"), undo


def _find_plan(module: Any, padded: PaddedForward, max_model_len: int, executor: str) -> _Plan | None:
    """The best plan that gives what each text alone gives; None for padding."""
    # Elsewhere a launch for every text would cost more than padding does.
    is_refused = executor == "compat" or (executor == "auto" and module.device.type != "cpu")
    if is_refused:
        return None
    batch = _probe(module, max_model_len)
    with torch.inference_mode():
        expected = [padded.logits([command])[0] for command in batch]
        reasons: dict[str, None] = {}
        plans = (plan for plan in _flat_plans(module) if _passes(module, plan, batch, expected, reasons))
        flat = next(plans, None)
        if flat is None:
            _require(executor, ("generic", "fused"), reasons)
            log.info("texts are padded: end to end, %s", "; ".join(reasons) or "they would need positions")
            return None
        if executor == "generic" or recognise(module.get_submodule(flat.core)) is None:
            _require(executor, ("fused",), {"its layers are not laid out like BERT's": None})
            return flat
        fused = replace(flat, is_fused=True)
        first_only = replace(fused, reads_first_only=True)
        reasons.clear()
        candidates = [first_only, fused] if expected[0].dim() == 1 else [fused]
        best = next((plan for plan in candidates if _passes(module, plan, batch, expected, reasons)), None)
        if best is None:
            _require(executor, ("fused",), reasons)
            log.info("layers stay transformers' own: with ours %s", "; ".join(reasons))
        return best or flat


def _require(executor: str, names: Sequence[str], reasons: Iterable[str]) -> None:
    if executor in names:
        raise ConfigurationError(
            f"The model cannot run in the {executor} executor: {'; '.join(reasons)}. Set executor to auto."
        )


def _flat_plans(module: Any) -> Iterator[_Plan]:
    if "position_ids" not in inspect.signature(module.forward).parameters:
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


def _passes(
    module: Any, plan: _Plan, batch: Sequence[Encode], expected: Sequence[Tensor], reasons: dict[str, None]
) -> bool:
    """Whether the texts together give what each gives alone; else why not goes to ``reasons``."""
    forward, undo = _install(module, plan, plain_product, torch.float32)
    try:
        logits = forward.logits(batch)
        is_ours = plan.is_fused or num_calls() > 0
        problem = _difference(logits, expected) if is_ours else "it does not call the attention interface"
    # A trial may fail in any way that a module can fail; only ours are faults.
    except (Unsupported, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        problem = str(error) if isinstance(error, Unsupported) else f"it fails with a {type(error).__name__}"
    finally:
        undo()
    if problem is not None:
        reasons[problem] = None
    return problem is None


def _difference(logits: Tensor, expected: Sequence[Tensor]) -> str | None:
    tolerance = TOLERANCES.get(logits.dtype, COARSE_TOLERANCE)
    for ours, alone in zip(logits, expected, strict=True):
        if ours.dim() != alone.dim():
            return "its output has another shape"
        worst = float((ours[: len(alone)].float() - alone.float()).abs().max())
        if not worst <= tolerance * max(1.0, float(alone.float().abs().max())):
            return f"its logits differ by {worst:.2g} from those of each text alone"
    return None


def _probe(module: Any, max_model_len: int) -> list[Encode]:
    vocab_size = module.get_input_embeddings().weight.shape[0]
    padding_id = getattr(module.config, "pad_token_id", None)
    generator = torch.Generator().manual_seed(0)
    batch = []
    for length in PROBE_LENGTHS:
        size = (min(length, max_model_len),)
        token_ids = torch.randint(vocab_size, size, generator=generator).tolist()
        if padding_id is not None and len(token_ids) > 9:
            # As a text may hold it: some models count their positions without it.
            token_ids[7] = padding_id
        batch.append(Encode(str(length), token_ids))
    return batch


def _configs(module: nn.Module) -> list[Any]:
    """Every config object that a part of the module reads its attention implementation from."""
    return list({id(part.config): part.config for part in module.modules() if hasattr(part, "config")}.values())
