"""Steps of single tokens as CUDA graphs: recorded once, then started with one call instead of hundreds.

A step is padded to one of a few numbers of rows and to one of a few widths of block tables, and its tensors are
copied into those of its graph. Padding rows write to a block that belongs to no sequence. Everything else, such as a
step with a piece of a prompt, runs as if there were no graphs.

Dimension key: R rows of a step, V vocabulary size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from server.config import ModelConfig
from server.engine import batch_inputs
from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import BatchInputs, Row
from server.engine.executors.paged import PagedRunner
from server.engine.executors.wrapping import WrappingRunner
from server.engine.model_runner import ModelRunner
from server.out_of_memory import is_memory_error

log = logging.getLogger("sluice.engine")

SMALLEST_WIDTH = 8
WIDTH_FACTOR = 4

NUM_WARM_UPS = 2
"""Libraries take their scratch memory and choose their kernels in the first calls, which must not be recorded."""

NUM_CHECKED = 2
"""The first step shows that recording changed nothing; the second, that nothing of the first was recorded with it."""

TOLERANCE = 0.05
"""Largest difference of logits in 16 bits, as a part of their range: another number of rows, another rounding."""


class Graph(Protocol):
    """Work over tensors that stay where they are."""

    def capture(self, run: Callable[[], Tensor]) -> None:
        """Record what ``run`` does. It may run several times or not at all."""

    def replay(self) -> Tensor:
        """Do it. The result is overwritten by the next replay of any graph."""


class CudaGraph:
    """Of torch. Graphs with one ``pool`` share the memory of what lies between inputs and results."""

    def __init__(self, pool: tuple[int, int]) -> None:
        self._pool = pool
        self._graph = torch.cuda.CUDAGraph()
        self._result: Tensor | None = None

    def capture(self, run: Callable[[], Tensor]) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph, pool=self._pool):  # type: ignore[arg-type]
            self._result = run()

    def replay(self) -> Tensor:
        assert self._result is not None
        self._graph.replay()
        return self._result


def with_graphs(runner: PagedRunner, config: ModelConfig) -> ModelRunner:
    """``runner``, its steps of single tokens replayed where its device and its attention allow it."""
    if runner.device.type != "cuda" or not config.cuda_graphs:
        return runner
    if runner.length_rule is not None and not runner.has_rotary_tables:
        log.info("model %s runs without CUDA graphs: its rotary factors follow from the step's sequences", config.name)
        return runner
    if not runner.backend.can_record:
        log.info("model %s runs without CUDA graphs: attention %s has none", config.name, runner.attention)
        return runner
    pool = torch.cuda.graph_pool_handle()
    return GraphRunner(runner, runner.backend, lambda: CudaGraph(pool), config.max_running)


def row_buckets(max_rows: int) -> list[int]:
    """Numbers of rows that have graphs: powers of two, and from 16 on the middle between two.

    >>> row_buckets(70)
    [1, 2, 4, 8, 16, 24, 32, 48, 64, 70]
    """
    sizes = [1, 2, 4, 8]
    while sizes[-1] < max_rows:
        power = 1 << (sizes[-1].bit_length() - 1)
        sizes.append(power * 2 if sizes[-1] > power or power < 16 else power + power // 2)
    return [size for size in sizes if size < max_rows] + [max_rows]


def table_width(num_blocks: int) -> int:
    """The width of block tables for sequences of up to ``num_blocks`` blocks."""
    width = SMALLEST_WIDTH
    while width < num_blocks:
        width *= WIDTH_FACTOR
    return width


@dataclass(kw_only=True)
class _Recorded:
    """A graph and the tensors that it reads."""

    graph: Graph
    inputs: BatchInputs
    num_checks: int = NUM_CHECKED
    """Of its next steps, how many are compared with plain ones."""


class GraphRunner(WrappingRunner):
    """Replays what ``runner`` computes, with ``backend`` planning for it. A graph is made when it is first needed."""

    def __init__(
        self, runner: PagedRunner, backend: AttentionBackend, make_graph: Callable[[], Graph], max_rows: int
    ) -> None:
        super().__init__(runner)
        self._compute = runner.compute
        self._backend = backend
        self._make_graph = make_graph
        self._buckets = row_buckets(max_rows)
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._is_off = False

    @property
    def num_graphs(self) -> int:
        return len(self._recorded)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        if self._is_off or not self._has_graph(rows):
            return self._plain(rows)
        self.failed_rows = ()
        try:
            logits_RV, recorded = self._replay(rows)
        except (RuntimeError, ValueError) as error:
            # Without graphs there is more memory. If the plain step fails too, it is the engine that makes room.
            advice = " Lower kv_cache_gib, or set cuda_graphs to false." if is_memory_error(error) else ""
            reason = "memory ran out in a recorded step" if advice else "a recorded step fails"
            self._turn_off(f"{reason}: {error}{advice}")
            return self._plain(rows)
        if recorded.num_checks == 0:
            return logits_RV
        recorded.num_checks -= 1
        plain_RV = self._plain(rows)
        if _agree(logits_RV, plain_RV):
            return logits_RV
        self._turn_off("replayed steps give other logits")
        return plain_RV

    def _has_graph(self, rows: Sequence[Row]) -> bool:
        is_plain = all(len(row.token_ids) == 1 and row.num_logits == 1 and row.context.adapter is None for row in rows)
        return is_plain and len(rows) <= self._buckets[-1]

    def _plain(self, rows: Sequence[Row]) -> Tensor:
        logits_RV = self._runner.forward(rows)
        self.failed_rows = self._runner.failed_rows
        return logits_RV

    def _turn_off(self, reason: str) -> None:
        log.warning("CUDA graphs are off: %s", reason)
        self._is_off = True
        self._recorded.clear()

    def _replay(self, rows: Sequence[Row]) -> tuple[Tensor, _Recorded]:
        num_rows = next(size for size in self._buckets if size >= len(rows))
        width = table_width(max(row.num_computed for row in rows) // self.block_size + 1)
        padding = Row(key=-1, token_ids=[0], num_computed=0, block_table=[self._backend.spare_block])
        padded = [*rows, *[padding] * (num_rows - len(rows))]
        inputs = batch_inputs.build(padded, self.block_size, self.device)
        recorded = self._recorded.get((num_rows, width))
        if recorded is None:
            recorded = _Recorded(graph=self._make_graph(), inputs=inputs)
            self._begin(recorded, inputs, width)
            static = recorded.inputs
            recorded.graph.capture(lambda: self._compute(static))
            self._recorded[num_rows, width] = recorded
        else:
            self._begin(recorded, inputs, width)
        # A copy, because a runner may be asked for several parts of a step before any of them is read.
        return recorded.graph.replay()[: len(rows)].clone(), recorded

    def _begin(self, recorded: _Recorded, inputs: BatchInputs, width: int) -> None:
        """Fill the graph's tensors with the step's. ``wanted_R`` is every row in all of them."""
        static = recorded.inputs
        if static is not inputs:
            static.token_ids_T.copy_(inputs.token_ids_T)
            static.position_ids_T.copy_(inputs.position_ids_T)
            static.rotary_ids_T.copy_(inputs.rotary_ids_T)
            static.slots_T.copy_(inputs.slots_T)
        self._backend.begin_static(replace(static, rows=inputs.rows), width)


def _agree(ours_RV: Tensor, theirs_RV: Tensor) -> bool:
    """Whether the rows that are finite are close, and the others are not finite in both."""
    finite_R = theirs_RV.isfinite().all(-1)
    if not torch.equal(ours_RV.isfinite().all(-1), finite_R):
        return False
    ours_RV, theirs_RV = ours_RV[finite_R], theirs_RV[finite_R]
    spread_R = theirs_RV.amax(-1) - theirs_RV.amin(-1)
    return bool(((ours_RV - theirs_RV).abs().amax(-1) <= TOLERANCE * spread_R).all())
