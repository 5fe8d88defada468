"""Each layer by itself against the module's own: what goes in is the same, so what comes out must be.

Logits at the end of many layers say little in 16 bits; a layer's own step does. This runs while the module still has
the layer's weights, before they are released.

Dimension key: T tokens of the observed sequence, D width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine import batch_inputs
from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import Row
from server.engine.executors.fused.runner import attending
from server.modules.layout import Embedding, Layer
from server.modules.operations import operations, run
from server.modules.unsupported import Unsupported
from server.native.linear import Linear

STEP_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.005, torch.bfloat16: 0.03}
"""Largest error of what a layer adds, as a part of it."""

ROUNDING = {torch.float32: 1e-6, torch.float16: 7e-4, torch.bfloat16: 6e-3}
"""What rounding the hidden states themselves may cost, as a part of them."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A sequence and the hidden states between the module's layers: ``states_TD[i]`` go into layer i."""

    token_ids: Sequence[int]
    states_TD: list[Tensor]


@torch.inference_mode()
def observe(module: PreTrainedModel, layers: nn.ModuleList, token_ids: Sequence[int]) -> Observed:
    """Run the plain module on ``token_ids`` and write down what its layers see."""
    with watching(layers) as states:
        ids = torch.tensor([list(token_ids)], device=module.device)
        module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return Observed(token_ids=token_ids, states_TD=states)


@contextmanager
def watching(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    """The states before, between and after the layers, once the module has run within on one text."""
    states: list[Tensor] = []

    def before(_layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        states.append((args[0] if args else options["hidden_states"])[0].clone())

    def after(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        states.append((output if isinstance(output, Tensor) else output[0])[0].clone())

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(after))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
    if len(states) != len(layers) + 1:
        raise Unsupported("its layers do not run once each")


class LayerCheck:
    """Compares layers with what was observed. Every method raises `Unsupported` where one differs."""

    def __init__(self, observed: Observed, backend: AttentionBackend, block_size: int, device: torch.device) -> None:
        self._states_TD = observed.states_TD
        self._backend = backend
        blocks = range(-(-len(observed.token_ids) // block_size))
        row = Row(key=0, token_ids=list(observed.token_ids), num_computed=0, block_table=blocks)
        self._inputs = batch_inputs.build([row], block_size, device)
        backend.begin(self._inputs)

    @torch.inference_mode()
    def embedding(self, embedding: Embedding) -> None:
        ours_TD = embedding(self._inputs.token_ids_T, self._inputs.position_ids_T)
        compare(ours_TD, torch.zeros_like(ours_TD), self._states_TD[0], "its embedding gives")

    @torch.inference_mode()
    def layer(self, layer: Layer[Linear], index: int) -> None:
        before_TD, after_TD = self._states_TD[index : index + 2]
        attend = attending(self._backend, self._inputs.rotary_ids_T)
        ours_TD, _ = run(operations(layer, index), before_TD, attend)
        compare(ours_TD, before_TD, after_TD, f"its layer {index} computes")


def compare(ours_TD: Tensor, before_TD: Tensor, theirs_TD: Tensor, what: str) -> None:
    """What a layer makes of ``before_TD``. Raises `Unsupported` where ours is not theirs.

    The median of the tokens decides in 16 bits, where single tokens have hidden states of thousands.
    """
    dtype = theirs_TD.dtype
    ours_TD, before_TD, theirs_TD = ours_TD.float(), before_TD.float(), theirs_TD.float()
    allowed_T = STEP_TOLERANCE[dtype] * (theirs_TD - before_TD).norm(dim=-1)
    allowed_T += ROUNDING[dtype] * torch.maximum(theirs_TD.norm(dim=-1), before_TD.norm(dim=-1))
    excess_T = (ours_TD - theirs_TD).norm(dim=-1) / allowed_T.clamp_min(1e-30)
    excess = float(excess_T.max() if dtype == torch.float32 else excess_T.median())
    if not excess <= 1.0:
        raise Unsupported(f"{what} something else than its layout says ({excess:.2g} times the tolerance)")
