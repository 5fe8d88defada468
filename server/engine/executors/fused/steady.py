"""Does a packed decoder give a row bitwise the same result among other rows? Asked of its parts, and of it as a whole.

Dimension key: M rows, K width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from server.engine.batch_inputs import Row
from server.engine.executors.fused.layout import Decoder
from server.engine.executors.fused.packing import ROLES
from server.engine.executors.fused.parts import Norm
from server.engine.model_runner import ModelRunner
from server.native.linear import Linear

PROBED_ROWS = 300
PROBED_SLICES = ((0, 1), (5, 6), (0, 2), (3, 10), (1, 17), (0, 31), (40, 73), (100, 229), (0, 257))
"""Parts of the rows that must come out as they do among all."""

CHUNK = 32
"""Tokens of a prompt that the whole decoder computes at once."""


@torch.inference_mode()
def unsteady(decoder: Decoder[Linear]) -> str | None:
    """Which part gives a row another result among other rows, as the end of a sentence; else None."""
    table = decoder.embedding.table_VD
    generator = torch.Generator().manual_seed(0)
    for name, part, width in _distinct(decoder):
        # What a probe finds steady by luck is not: only our own kernels promise it.
        if isinstance(part, Linear) and not getattr(part, "is_row_invariant", False):
            return f"its {name} has no kernel whose rows do not depend on one another"
        x_MK = torch.randn(PROBED_ROWS, width, generator=generator).to(table.device, table.dtype)
        expected = part(x_MK)
        for start, stop in PROBED_SLICES:
            if not torch.equal(part(x_MK[start:stop].contiguous()), expected[start:stop]):
                return f"its {name} gives a row another result among {stop - start} rows than among {PROBED_ROWS}"
    return None


def _distinct(decoder: Decoder[Linear]) -> Iterator[tuple[str, Linear | Norm, int]]:
    seen: set[object] = set()
    for layer in decoder.layers:
        for role in ROLES:
            linear: Linear = getattr(layer, role)
            kind = (role, linear.in_features, linear.out_features)
            if kind not in seen:
                seen.add(kind)
                yield f"{role} product", linear, linear.in_features
        if (norm := layer.attention_norm or layer.attention_post_norm) is not None and norm.is_centred not in seen:
            seen.add(norm.is_centred)
            yield "norm", norm, norm.weight_D.shape[0]
    yield "head", decoder.head, decoder.head.in_features


@torch.inference_mode()
def mixes_rows(runner: ModelRunner, sequences: Sequence[Sequence[int]]) -> str | None:
    """The same for whole passes: sequences alone and together, in chunks. Needs blocks for all of them."""
    if runner.attention != "native":
        return "its attention has no kernel whose rows do not depend on one another"
    together = _run(runner, sequences, range(len(sequences)))
    for i in range(len(sequences)):
        if not torch.equal(_run(runner, sequences, [i])[i], together[i]):
            return "its attention gives a sequence another result among other sequences"
    return None


def _run(runner: ModelRunner, sequences: Sequence[Sequence[int]], chosen: Sequence[int]) -> dict[int, Tensor]:
    """Each chosen sequence's logits of every chunk's last token."""
    found: dict[int, list[Tensor]] = {i: [] for i in chosen}
    for start in range(0, max(len(sequences[i]) for i in chosen), CHUNK):
        rows = [
            Row(
                key=i,
                token_ids=sequences[i][start : start + CHUNK],
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
