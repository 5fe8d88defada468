"""Does a runner give the model's own logits? Three short sequences against a plain forward pass of the same weights.

Dimension key: T tokens of one sequence, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.batch_inputs import Row
from server.engine.model_runner import ModelRunner

MAX_CHECKED_WINDOW = 512
"""A longer sliding window is not exceeded: the check would take longer than loading the model."""

FLOAT32_TOLERANCE = 1e-4
"""Largest difference of logits, as a part of their range."""

MIN_COSINE = 0.98
"""In 16 bits: between the centred logits of a row."""

TOP_TOLERANCE = 0.05
"""In 16 bits: how far our most likely token may lie below the reference's, as a part of the logits' range."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Token ids and what the plain model makes of them."""

    sequences: list[list[int]]
    logits_TV: list[Tensor]
    """float32, on the CPU"""

    @property
    def vocab_size(self) -> int:
        return self.logits_TV[0].shape[1]

    def num_blocks(self, block_size: int) -> int:
        return sum(-(-len(ids) // block_size) for ids in self.sequences)


def sequence_lengths(max_model_len: int, window: int | None) -> list[int]:
    """A short one, one of two blocks, and one that leaves the sliding window behind."""
    longest = 70 if window is None or window > MAX_CHECKED_WINDOW else window + 40
    return [min(length, max_model_len) for length in (6, 41, longest)]


@torch.inference_mode()
def reference(module: PreTrainedModel, max_model_len: int) -> Reference:
    """Run the plain module. Only before its linears are packed is this an independent witness."""
    text_config = module.config.get_text_config(decoder=True)
    lengths = sequence_lengths(max_model_len, getattr(text_config, "sliding_window", None))
    vocab_size = module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return Reference(sequences=sequences, logits_TV=[_plain_logits(module, ids) for ids in sequences])


def _plain_logits(module: PreTrainedModel, token_ids: list[int]) -> Tensor:
    ids = torch.tensor([token_ids], device=module.device)
    logits: Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[0].float().cpu()


@torch.inference_mode()
def difference(runner: ModelRunner, expected: Reference) -> str | None:
    """Run the sequences packed together, in chunks and token by token. None if all is right, else what is wrong."""
    tables = _block_tables(expected, runner.block_size)
    done = [0] * len(expected.sequences)
    problem: str | None = None
    for targets in _targets([len(ids) for ids in expected.sequences]):
        rows = [
            Row(key=i, token_ids=ids[done[i] : target], num_computed=done[i], block_table=tables[i])
            for i, (ids, target) in enumerate(zip(expected.sequences, targets, strict=True))
            if target > done[i]
        ]
        logits = runner.forward(rows).cpu()
        for row, ours in zip(rows, logits, strict=True):
            done[row.key] = targets[row.key]
            theirs = expected.logits_TV[row.key][done[row.key] - 1]
            problem = problem or _compare(ours, theirs, runner.dtype)
    for i in range(len(tables)):
        runner.release(i)
    return problem


def _targets(lengths: Sequence[int]) -> list[list[int]]:
    """How many tokens of each sequence are computed after each step: prefill, resume, then two single tokens each."""
    return [
        [max(1, lengths[0] - 2), max(1, lengths[1] // 2 - 3), max(1, lengths[2] - 12)],
        [max(1, lengths[0] - 1), max(1, lengths[1] - 2), max(1, lengths[2] - 2)],
        [lengths[0], max(1, lengths[1] - 1), max(1, lengths[2] - 1)],
        list(lengths),
    ]


def _block_tables(expected: Reference, block_size: int) -> list[list[int]]:
    """Tables with the blocks of all sequences interleaved, backwards."""
    free = list(range(expected.num_blocks(block_size)))
    tables: list[list[int]] = [[] for _ in expected.sequences]
    while free:
        for table, ids in zip(tables, expected.sequences, strict=True):
            if len(table) * block_size < len(ids):
                table.append(free.pop())
    return tables


def _compare(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> str | None:
    if not ours.isfinite().all():
        return "logits are not finite"
    spread = float(theirs.max() - theirs.min())
    if dtype == torch.float32:
        worst = float((ours - theirs).abs().max())
        return (
            None if worst <= FLOAT32_TOLERANCE * spread else f"logits differ by {worst:.2g} of a range of {spread:.2g}"
        )
    cosine = float(torch.cosine_similarity(ours - ours.mean(), theirs - theirs.mean(), dim=0))
    missed = float(theirs.max() - theirs[ours.argmax()])
    if cosine < MIN_COSINE or missed > TOP_TOLERANCE * spread:
        return f"logits have a cosine of {cosine:.4f} and the top token misses by {missed:.2g} of {spread:.2g}"
    return None
