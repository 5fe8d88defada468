"""Replayed steps on the CPU: the graph is a recording of operators, everything else is what a GPU would run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from server.engine.attention.cuda_flash_attn import FlashAttention
from server.engine.attention.cuda_flashinfer import FlashInferAttention
from server.engine.attention.cuda_paged import PagedAttention
from server.engine.attention.cuda_varlen import VarlenAttention
from server.engine.batch_inputs import Row
from server.engine.executors import cuda_graphs
from server.engine.executors.cuda_graphs import GraphRunner, row_buckets, table_width, with_graphs
from server.engine.executors.generic import GenericRunner, probe
from server.modules.attention_calls import ATTENTION, set_attention
from tests.engine import paged_kernels
from tests.engine.recorded_graph import RecordedGraph
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

torch.set_num_threads(1)

CPU = torch.device("cpu")
NUM_BLOCKS = 40
BACKENDS = [(VarlenAttention, 4), (FlashInferAttention, 4), (FlashAttention, 256)]
MAX_ROWS = 8


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    paged_kernels.install(monkeypatch)
    with torch.inference_mode():
        yield


def generic_runner(
    backend: type[PagedAttention] = VarlenAttention, block_size: int = 4, family: str = "llama"
) -> GenericRunner:
    module = tiny_decoder(family)
    set_attention(module, ATTENTION)
    specs = probe(module)
    attention = backend(specs, NUM_BLOCKS, block_size, torch.float32, CPU)
    return GenericRunner(module, specs, attention, num_blocks=NUM_BLOCKS, block_size=block_size, vocab_size=VOCAB_SIZE)


def with_recorded(
    runner: GenericRunner, make_graph: Callable[[], RecordedGraph] = RecordedGraph, max_rows: int = MAX_ROWS
) -> GraphRunner:
    assert isinstance(runner.backend, PagedAttention)
    return GraphRunner(runner, runner.backend, make_graph, max_rows)


TABLES = [list(range(i * 10, i * 10 + 10)) for i in range(4)]
PROMPTS = (7, 3, 14, 1)


def prompt_rows() -> list[Row]:
    return [
        Row(key=i, token_ids=range(3, 3 + length), num_computed=0, block_table=TABLES[i])
        for i, length in enumerate(PROMPTS)
    ]


def single_rows(step: int, sequences: Sequence[int]) -> list[Row]:
    """The ``step``-th token after each prompt."""
    return [
        Row(key=i, token_ids=[20 + 7 * step + i], num_computed=PROMPTS[i] + step, block_table=TABLES[i])
        for i in sequences
    ]


@pytest.mark.parametrize(
    ("backend", "block_size", "family"),
    [*((*backend, "llama") for backend in BACKENDS), (VarlenAttention, 4, "mistral")],
)
def test_replayed_steps_give_the_logits_of_plain_ones(
    backend: type[PagedAttention], block_size: int, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While sequences grow over the ends of blocks, three of them are padded to four rows, and two need no padding."""
    if backend is FlashAttention:
        monkeypatch.setattr(cuda_graphs, "SMALLEST_WIDTH", 2)
    plain = generic_runner(backend, block_size, family)
    graphs: list[RecordedGraph] = []

    def make() -> RecordedGraph:
        graphs.append(RecordedGraph())
        return graphs[-1]

    replayed = with_recorded(generic_runner(backend, block_size, family), make)
    torch.testing.assert_close(replayed.forward(prompt_rows()), plain.forward(prompt_rows()))
    for step in range(6):
        for sequences in ((0, 2, 3), (1, 2)):
            rows = single_rows(step, sequences)
            expected = plain.forward(rows)
            torch.testing.assert_close(replayed.forward(rows), expected, rtol=0, atol=1e-4)
    assert [graph.num_replays for graph in graphs] == [6, 6]
    assert replayed.num_graphs == 2


def test_padding_writes_to_no_block_of_a_sequence() -> None:
    runner = generic_runner()
    replayed = with_recorded(runner)
    replayed.forward(prompt_rows())
    pools = runner.backend._pools  # type: ignore[attr-defined]
    for step in range(3):
        before = [pool.clone() for pool in pools]
        rows = single_rows(step, (0, 1, 3))
        replayed.forward(rows)
        written = {(row.block_table[row.num_computed // 4], row.num_computed % 4) for row in rows}
        written.add((runner.backend.spare_block, 0))  # type: ignore[attr-defined]
        for pool, old in zip(pools, before, strict=True):
            changed = (pool != old).any(-1).any(-1).any(0).nonzero().tolist()
            assert {tuple(place) for place in changed} <= written
    assert runner.num_blocks == runner.backend.spare_block  # type: ignore[attr-defined]


def test_only_steps_of_single_tokens_with_logits_have_graphs() -> None:
    replayed = with_recorded(generic_runner(), max_rows=2)
    replayed.forward(prompt_rows())
    single = single_rows(0, (0, 1))
    mixed = [*single[:1], Row(key=1, token_ids=[4, 5], num_computed=3, block_table=TABLES[1])]
    silent = [Row(key=0, token_ids=[4], num_computed=7, block_table=TABLES[0], num_logits=0), single[1]]
    for rows, num_logits in ((mixed, 2), (silent, 1), (single_rows(0, (0, 1, 2)), 3)):
        assert replayed.forward(rows).shape == (num_logits, VOCAB_SIZE)
        assert replayed.num_graphs == 0
    replayed.forward(single)
    assert replayed.num_graphs == 1


def test_a_failed_row_in_the_middle_of_a_prompt_is_told_and_forgotten_by_the_next_replayed_step() -> None:
    runner = generic_runner()
    replayed = with_recorded(runner)
    replayed.forward(prompt_rows())
    weight = runner._module.model.layers[0].self_attn.k_proj.weight
    weight[0, 0] = torch.inf
    replayed.forward([Row(key=1, token_ids=[4, 5], num_computed=3, block_table=TABLES[1], num_logits=0)])
    assert list(replayed.failed_rows) == [0]
    weight[0, 0] = 0.5
    replayed.forward(single_rows(0, (0, 2)))
    assert list(replayed.failed_rows) == []


def test_steps_of_a_shape_share_one_graph_and_its_tensors() -> None:
    runner = generic_runner()
    replayed = with_recorded(runner)
    replayed.forward(prompt_rows())
    for step in range(6):
        for sequences in ((0, 1, 2), (0, 1, 2, 3), (1, 2, 3)):
            replayed.forward(single_rows(step, sequences))
    assert replayed.num_graphs == 1
    assert len(runner.backend._static) == 1  # type: ignore[attr-defined]


def test_logits_outlive_the_next_step() -> None:
    replayed = with_recorded(generic_runner())
    replayed.forward(prompt_rows())
    for step in range(3):
        replayed.forward(single_rows(step, (0, 1)))
    first = replayed.forward(single_rows(3, (0, 1)))
    kept = first.clone()
    replayed.forward(single_rows(4, (0, 1)))
    assert torch.equal(first, kept)


def test_a_recording_that_fails_turns_graphs_off_and_the_step_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(RecordedGraph):
        def capture(self, run: Callable[[], Tensor]) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    plain, replayed = generic_runner(), with_recorded(generic_runner(), Failing)
    for runner in (plain, replayed):
        runner.forward(prompt_rows())
    for step in range(2):
        rows = single_rows(step, (0, 1, 2))
        torch.testing.assert_close(replayed.forward(rows), plain.forward(rows))
    assert caplog.text.count("CUDA graphs are off: a recorded step fails: operation not permitted") == 1


def test_memory_that_runs_out_in_a_recording_turns_graphs_off_and_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(RecordedGraph):
        def capture(self, run: Callable[[], Tensor]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    plain, replayed = generic_runner(), with_recorded(generic_runner(), Failing)
    for runner in (plain, replayed):
        runner.forward(prompt_rows())
    rows = single_rows(0, (0, 1, 2))
    torch.testing.assert_close(replayed.forward(rows), plain.forward(rows))
    assert "CUDA graphs are off: memory ran out in a recorded step" in caplog.text
    assert "Lower kv_cache_gib, or set cuda_graphs to false." in caplog.text


def test_a_graph_that_holds_on_to_its_first_step_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    class Frozen(RecordedGraph):
        def replay(self) -> Tensor:
            return self._result

    plain, replayed = generic_runner(), with_recorded(generic_runner(), Frozen)
    for runner in (plain, replayed):
        runner.forward(prompt_rows())
    for step in range(3):
        rows = single_rows(step, (0, 1, 2))
        torch.testing.assert_close(replayed.forward(rows), plain.forward(rows), rtol=0, atol=1e-4)
    assert "CUDA graphs are off: replayed steps give other logits" in caplog.text
    assert replayed.num_graphs == 0


def test_numbers_of_rows_and_widths_have_few_sizes() -> None:
    assert row_buckets(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert row_buckets(1) == [1]
    assert row_buckets(130) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 130]
    assert [table_width(n) for n in (1, 8, 9, 32, 33, 4096)] == [8, 8, 32, 32, 128, 8192]


def test_graphs_are_for_cuda_and_for_attention_that_can_be_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sluice.engine")
    runner = generic_runner()
    settings = SimpleNamespace(name="tiny", cuda_graphs=True, max_running=4)
    assert with_graphs(runner, settings) is runner  # type: ignore[arg-type]
    runner.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    assert isinstance(with_graphs(runner, settings), GraphRunner)  # type: ignore[arg-type]
    settings.cuda_graphs = False
    assert with_graphs(runner, settings) is runner  # type: ignore[arg-type]
    settings.cuda_graphs = True
    runner.backend = SimpleNamespace(name="torch", can_record=False)  # type: ignore[assignment]
    runner.attention = "torch"
    assert with_graphs(runner, settings) is runner  # type: ignore[arg-type]
    assert "model tiny runs without CUDA graphs: attention torch has none" in caplog.text
