"""Which rows of a step are attended together, and which blocks each looks at. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from server.engine.batch_inputs import BatchInputs

MIN_SAVED_BLOCKS = 16
"""On a CPU, another group costs as much as gathering and attending about this many blocks of padding."""
MIN_SAVED_BLOCKS_GPU = 1024
"""On a GPU, another group costs five launches and three copies from the host, and padding next to nothing."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One row of the step and the part of its block table that a layer looks at."""

    start: int
    """Index of its first new token in T."""
    num_new: int
    num_computed: int
    first_block: int
    """Blocks before this one lie outside the window of every new token."""
    blocks: np.ndarray[tuple[int], np.dtype[np.int64]]


def spans_of(inputs: BatchInputs, window: int | None, block_size: int) -> list[Span]:
    spans: list[Span] = []
    start = 0
    for row in inputs.rows:
        num_new = len(row.token_ids)
        first = 0 if window is None else max(0, row.num_computed - window + 1) // block_size
        stop = (row.num_computed + num_new - 1) // block_size + 1
        blocks = np.asarray(row.block_table[first:stop], dtype=np.int64)
        spans.append(
            Span(start=start, num_new=num_new, num_computed=row.num_computed, first_block=first, blocks=blocks)
        )
        start += num_new
    return spans


def grouped(spans: list[Span], most_blocks: int, device_type: str) -> list[list[Span]]:
    """Split by length where that saves more padding than another group costs; keep the order where it does not."""
    min_saved = MIN_SAVED_BLOCKS if device_type == "cpu" else MIN_SAVED_BLOCKS_GPU
    by_length = sorted(spans, key=lambda span: len(span.blocks), reverse=True)
    groups: list[list[Span]] = []
    for i, span in enumerate(by_length):
        longest = len(groups[-1][0].blocks) if groups else 0
        saved = (longest - len(span.blocks)) * (len(by_length) - i)
        if not groups or saved >= min_saved or longest * (len(groups[-1]) + 1) > most_blocks:
            groups.append([])
        groups[-1].append(span)
    return [sorted(group, key=lambda span: span.start) for group in groups]
