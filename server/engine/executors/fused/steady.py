"""Does a packed decoder give a row bitwise the same result among other rows? Asked of its parts, and of it as a whole.

Dimension key: M rows, K width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from server.engine.batch_inputs import Row
from server.engine.executors.fused.runner import logits
from server.engine.executors.paged import PagedRunner
from server.engine.model_runner import ModelRunner
from server.modules.layout import Decoder
from server.native.linear import Linear

PROBED_ROWS = 300
PROBED_SLICES = ((0, 1), (5, 6), (0, 2), (3, 10), (1, 17), (0, 31), (2, 33), (40, 73), (100, 229), (0, 257))
"""Parts of the rows that must come out as they do among all."""

PROBED_LOGITS = 34
"""Rows that want logits: their number is that of the running sequences."""

CHUNK = 32
OTHER_CHUNK = 19
"""Tokens of a prompt that the whole decoder computes at once."""


@torch.inference_mode()
def unsteady(decoder: Decoder[Linear]) -> str | None:
    """Which part gives a row another result among other rows, as the end of a sentence; else None."""
    if not all(linear.is_row_invariant for linear in decoder.products()):
        # What a probe finds steady by luck is not.
        return "its products have no kernels whose rows do not depend on one another"
    head = decoder.head
    generator = torch.Generator().manual_seed(0)
    for name, part, width, num_rows in _distinct(decoder):
        x_MK = torch.randn(num_rows, width, generator=generator).to(head.device, head.dtype)
        expected = part(x_MK)
        for start, stop in PROBED_SLICES:
            if stop <= num_rows and not torch.equal(part(x_MK[start:stop].contiguous()), expected[start:stop]):
                return f"its {name} gives a row another result among {stop - start} rows than among {num_rows}"
    return None


def _distinct(decoder: Decoder[Linear]) -> Iterator[tuple[str, Callable[[Tensor], Tensor], int, int]]:
    """Parts by name, each with the width and the number of the rows that it is tried on."""
    seen: set[object] = set()
    for sublayer in (sublayer for layer in decoder.layers for sublayer in layer.sublayers):
        for role, linear in sublayer.products:
            kind = (role, linear.in_features, linear.out_features)
            if kind not in seen:
                seen.add(kind)
                yield f"{role} product", linear, linear.in_features, PROBED_ROWS
        norm = sublayer.norm or sublayer.post_norm
        if norm is not None and norm.is_centred not in seen:
            seen.add(norm.is_centred)
            yield "norm", norm, norm.weight_D.shape[0], PROBED_ROWS
    yield "head", partial(logits, decoder), decoder.head.in_features, PROBED_LOGITS


@torch.inference_mode()
def mixes_rows(runner: PagedRunner, sequences: Sequence[Sequence[int]]) -> str | None:
    """The same for whole passes: sequences alone and together, and cut otherwise. Needs blocks for all of them."""
    if not runner.backend.is_row_invariant:
        return "its attention has no kernel whose rows do not depend on one another"
    everyone = range(len(sequences))
    together = _run(runner, sequences, everyone, CHUNK)
    cut_otherwise = _run(runner, sequences, everyone, OTHER_CHUNK)
    for i in everyone:
        if not torch.equal(_run(runner, sequences, [i], CHUNK)[i], together[i]):
            return "its attention gives a sequence another result among other sequences"
        if not torch.equal(cut_otherwise[i][-1], together[i][-1]):
            return "its attention gives a sequence another result where it is computed in other parts"
    return None


def _run(
    runner: ModelRunner, sequences: Sequence[Sequence[int]], chosen: Sequence[int], num_tokens: int
) -> dict[int, Tensor]:
    """Each chosen sequence's logits of every chunk's last token."""
    found: dict[int, list[Tensor]] = {i: [] for i in chosen}
    for start in range(0, max(len(sequences[i]) for i in chosen), num_tokens):
        rows = [
            Row(
                key=i,
                token_ids=sequences[i][start : start + num_tokens],
                num_computed=start,
                block_table=_blocks(sequences, i, runner.block_size),
            )
            for i in chosen
            if start < len(sequences[i])
        ]
        for row, logits_V in zip(rows, runner.forward(rows), strict=True):
            found[row.key].append(logits_V)
    return {i: torch.stack(parts) for i, parts in found.items()}


def _blocks(sequences: Sequence[Sequence[int]], index: int, block_size: int) -> range:
    sizes = [-(-len(ids) // block_size) for ids in sequences]
    return range(sum(sizes[:index]), sum(sizes[: index + 1]))
