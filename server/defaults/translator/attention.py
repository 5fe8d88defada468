"""The self-attention that stands in for the recurrent cells of the decoder, and its training against them.

Dimension key
    B  sentences    T  target tokens    D  features    C  candidate tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.defaults.translator.teacher import DECODER_LAYERS, EPSILON, HEADS, WIDTH, Teacher, mix

IDENTITY = 0.1
"""Share of the identity in the metric of a layer's errors."""
CANDIDATES = 8
"""Likeliest tokens of each position that joint training compares."""


class SelfAttention(nn.Module):
    """Causal self-attention with residual and norm; the children's names are those of a Marian decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({part + "_proj": nn.Linear(WIDTH, WIDTH) for part in ("q", "k", "v", "out")})
        self.self_attn_layer_norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def project(self, x_BTD: Tensor, part: str) -> Tensor:
        projected: Tensor = self.self_attn[part + "_proj"](x_BTD)
        return projected

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads = (*x_BTD.shape[:2], HEADS, WIDTH // HEADS)
        query, key, value = (self.project(x_BTD, part).view(heads).transpose(1, 2) for part in "qkv")
        seen = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).tril()
        added = self.project(mix(query, key, value, seen), "out")
        normed: Tensor = self.self_attn_layer_norm(x_BTD + added.float())
        return normed


class Student(nn.Module):
    """The attention of all decoder layers. The rest of the model is the teacher's."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SelfAttention() for _ in range(DECODER_LAYERS))
        for number, layer in enumerate(self.layers, start=1):
            self._begin_like_the_cell(layer, teacher, f"decoder_l{number}_rnn")

    @staticmethod
    @torch.no_grad()
    def _begin_like_the_cell(layer: nn.Module, teacher: Teacher, name: str) -> None:
        """Values are what the cell adds to its state; the norm is the cell's."""
        assert isinstance(layer, SelfAttention)
        for part, projection in layer.self_attn.items():
            assert isinstance(projection, nn.Linear)
            projection.bias.zero_()
            if part == "v_proj":
                projection.weight.copy_(teacher.weights[name + "_W"].T)
            elif part == "out_proj":
                projection.weight.copy_(0.5 * torch.eye(WIDTH))
        layer.self_attn_layer_norm.weight.copy_(teacher.weights[name + "_ffn_ln_scale"][0])
        layer.self_attn_layer_norm.bias.copy_(teacher.weights[name + "_ffn_ln_bias"][0])

    def forward(self, teacher: Teacher, target_BT: Tensor, encoded_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """The decoder's last output for every token of a given target."""
        mask = mask_BS[:, None, None, :].bool()
        x = teacher.target_inputs(target_BT)
        for number, (layer, source) in enumerate(zip(self.layers, teacher.source(encoded_BSD), strict=True), start=1):
            x = teacher.after_cell(number, layer(x), source, mask)
        return x


@dataclass
class Batch:
    """Sentences of similar length, and what the teacher computes for them."""

    target_BT: Tensor
    """Token ids with their end; what follows is the end token too and counts nowhere."""
    counts_BT: Tensor
    """Which of them count."""
    encoded_BSD: Tensor
    mask_BS: Tensor
    inputs: list[Tensor]
    """Of each decoder layer, ``[B, T, D]``."""
    cells: list[Tensor]
    outputs_BTD: Tensor
    _candidates_C: Tensor | None = None

    @property
    def is_short(self) -> bool:
        """Whether its numbers are bfloat16."""
        return self.encoded_BSD.dtype == torch.bfloat16

    @classmethod
    @torch.no_grad()
    def of(cls, teacher: Teacher, sources: list[list[int]], targets: list[list[int]], dtype: torch.dtype) -> Batch:
        ids, mask = padded(sources)
        target, counts = padded(targets)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            encoded = teacher.encode(ids, mask)
            states = teacher.forced(target, encoded, mask)
        return cls(
            target_BT=target,
            counts_BT=counts.bool(),
            encoded_BSD=encoded.to(dtype),
            mask_BS=mask,
            inputs=[state.inputs.to(dtype) for state in states],
            cells=[state.cell.to(dtype) for state in states],
            outputs_BTD=states[-1].outputs.to(dtype),
        )

    @torch.no_grad()
    def candidates(self, teacher: Teacher) -> Tensor:
        """Ids of the tokens that the teacher finds likeliest anywhere, and of the target, in order: ``[C]``."""
        if self._candidates_C is None:
            target = self.target_BT[self.counts_BT]
            likeliest = teacher.logits(self.outputs_BTD[self.counts_BT].float()).topk(CANDIDATES).indices
            self._candidates_C = torch.unique(torch.cat([likeliest.flatten(), target]))
        return self._candidates_C


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids filled up with end tokens, and which of them are real."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(longest)[None] < lengths[:, None]).long()


def distance(found_BTD: Tensor, wanted_BTD: Tensor, counts_BT: Tensor) -> Tensor:
    """The mean squared error as a share of the wanted values' mean square."""
    found, wanted = found_BTD[counts_BT].float(), wanted_BTD[counts_BT].float()
    return (found - wanted).square().mean() / wanted.square().mean()


def metrics(teacher: Teacher, batches: list[Batch]) -> list[Tensor]:
    """For each layer, a matrix ``[D, D]`` that turns errors of the cell's output into what they do to the next tokens.

    It is a root of the mean outer product of the gradients of the target's likelihood, with a little of the identity.
    """
    sums = [torch.zeros(WIDTH, WIDTH) for _ in range(DECODER_LAYERS)]
    for batch in batches:
        counts = batch.counts_BT
        nudges = [torch.zeros(*counts.shape, WIDTH, requires_grad=True) for _ in sums]
        states = teacher.forced(batch.target_BT, batch.encoded_BSD.float(), batch.mask_BS, nudges)
        candidates = batch.candidates(teacher)
        rows, offsets = teacher.output_rows(candidates)
        logits = functional.linear(states[-1].outputs[counts], rows) + offsets
        places = torch.searchsorted(candidates, batch.target_BT[counts])
        gradients = torch.autograd.grad(functional.cross_entropy(logits, places, reduction="sum"), nudges)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient[counts].T @ gradient[counts]
    scaled = [total * WIDTH / total.trace() + IDENTITY * torch.eye(WIDTH) for total in sums]
    return [torch.linalg.cholesky(matrix) for matrix in scaled]


def layer_losses(student: Student, layer: int, metric_DD: Tensor, batches: list[Batch]) -> Iterator[Tensor]:
    """One layer alone: from the teacher's input of the cell to the cell's output."""
    for batch in batches:
        found = student.layers[layer](batch.inputs[layer].float())
        yield ((found - batch.cells[layer].float())[batch.counts_BT] @ metric_DD).square().mean()


@torch.no_grad()
def feed_forward_errors(student: Student, teacher: Teacher, layer: int, batches: list[Batch]) -> None:
    """Give the next layer what follows from the student's output of this one, so that it learns to mend its errors."""
    if layer + 1 == DECODER_LAYERS:
        return
    for batch in batches:
        cell = student.layers[layer](batch.inputs[layer].float())
        source = teacher.source(batch.encoded_BSD.float())[layer]
        outputs = teacher.after_cell(layer + 1, cell, source, batch.mask_BS[:, None, None, :].bool())
        batch.inputs[layer + 1] = outputs.to(batch.inputs[layer + 1].dtype)


def joint_losses(student: Student, teacher: Teacher, batches: list[Batch]) -> Iterator[Tensor]:
    """All layers at once: the divergence of next tokens among the batch's candidates, and the distance of states."""
    for batch in batches:
        # Casts are not cached: a cast of a weight would outlive the weight's change.
        with torch.autocast("cpu", torch.bfloat16, enabled=batch.is_short, cache_enabled=False):
            found = student(teacher, batch.target_BT, batch.encoded_BSD, batch.mask_BS)
        rows, offsets = teacher.output_rows(batch.candidates(teacher))
        wanted = functional.linear(batch.outputs_BTD[batch.counts_BT].float(), rows) + offsets
        given = functional.linear(found[batch.counts_BT], rows) + offsets
        divergence = functional.kl_div(
            given.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        yield divergence + distance(found, batch.outputs_BTD, batch.counts_BT)


@torch.no_grad()
def agreement(student: Student, teacher: Teacher, batches: list[Batch]) -> float:
    """The share of positions at which the student's likeliest token is the teacher's, the target given to both."""
    same = total = 0
    for batch in batches:
        found = student(teacher, batch.target_BT, batch.encoded_BSD, batch.mask_BS)[batch.counts_BT]
        wanted = batch.outputs_BTD[batch.counts_BT]
        same += int((teacher.logits(found.float()).argmax(-1) == teacher.logits(wanted.float()).argmax(-1)).sum())
        total += int(batch.counts_BT.sum())
    return same / total
