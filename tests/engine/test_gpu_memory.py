"""Models that share a GPU agree on what each takes, whichever looks first, and leave room for their largest step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from server.client.supervisor import Supervisor
from server.config import ModelConfig, ServeConfig
from server.engine import memory
from server.engine.executors import build_runner
from server.engine.executors.subject import Subject
from server.engine.memory import GIB, CudaShare
from server.errors import ConfigurationError
from tests.api.scripted import ready
from tests.engine.fake_runner import FakeRunner
from tests.tiny_models import tiny_decoder

TOTAL = 80 * GIB
DEVICE = torch.device("cuda", 1)


class Card:
    """A GPU on which processes come and go. Its allocator keeps what it has until its cache is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.others = 0
        self.allocated = self.reserved = self.peak = 0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, TOTAL))
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty_cache)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: self.reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    @property
    def free(self) -> int:
        return TOTAL - self.others - self.reserved

    def _empty_cache(self) -> None:
        self.reserved = self.allocated

    def _reset(self, device: torch.device) -> None:
        self.peak = self.allocated


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def test_two_models_take_no_more_than_the_card_whichever_looks_first(card: Card) -> None:
    share = CudaShare(num_models=2)
    weights, peak = 10 * GIB, 3 * GIB
    at_once = [share.room(DEVICE, weights, peak) for _ in range(2)]
    card.others = weights + peak + at_once[0]
    later = share.room(DEVICE, weights, peak)
    assert at_once[0] == at_once[1] == later
    assert 2 * (weights + peak + later) <= 0.9 * TOTAL


def test_what_other_programs_hold_is_not_taken(card: Card) -> None:
    card.others = 70 * GIB
    assert CudaShare().room(DEVICE, 0, GIB) == 9 * GIB


def test_a_model_larger_than_its_share_gets_no_cache_and_is_refused_in_words(card: Card) -> None:
    share = CudaShare(num_models=2)
    assert share.room(DEVICE, 50 * GIB, 0) == 0
    config = ModelConfig(name="large", path="unused")
    with pytest.raises(ConfigurationError, match=r"large has no room.*0\.00 GiB are given\. Set kv_cache_gib higher"):
        memory.num_blocks(config, 1000, 4096, lambda: share.room(DEVICE, 50 * GIB, 0))


class Stepping(FakeRunner):
    """Takes memory of ``card`` for each token and each row of logits of a step, and none after it."""

    def __init__(self, card: Card, num_blocks: int) -> None:
        super().__init__(num_blocks=num_blocks)
        self.device = DEVICE
        self.steps: list[tuple[int, int]] = []
        self._card = card

    def forward(self, rows: Any) -> torch.Tensor:
        tokens, logits = (sum(counts) for counts in zip(*((len(r.token_ids), r.num_logits) for r in rows), strict=True))
        self.steps.append((tokens, logits))
        self._card.peak = max(self._card.peak, self._card.allocated + tokens * 1000 + logits * 100_000)
        return torch.empty(0)


@pytest.mark.parametrize("max_model_len", [100, 500, 4096])
def test_the_largest_step_is_computed_and_what_it_took_is_left_free(
    card: Card, caplog: pytest.LogCaptureFixture, max_model_len: int
) -> None:
    caplog.set_level(logging.INFO, logger="sluice.engine")
    card.allocated, card.reserved = 10 * GIB, 30 * GIB
    made: list[Stepping] = []

    def make_runner(num_blocks: int) -> Stepping:
        made.append(Stepping(card, num_blocks))
        return made[-1]

    room = CudaShare(num_models=2, step_tokens=512).measure(make_runner, max_model_len, 4)
    (runner,) = made
    assert runner.steps == [(512, 512)]
    assert runner.num_blocks == 128
    peak = 512 * 101_000
    # What packing has left in the allocator does not count: 10 GiB, not 30.
    assert room == int(0.9 * TOTAL) // 2 - GIB // 2 - 10 * GIB - peak
    assert "cuda:1 has 80.00 GiB and 70.00 of them are free; of this model's 1/2, 10.00 GiB are for" in caplog.text


def test_every_executor_leaves_room_for_its_largest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def measure(share: CudaShare, make_runner: Any, max_model_len: int, block_size: int) -> int:
        runner = make_runner(40)
        asked.append((runner.name, share.step_tokens))
        return 2**20

    monkeypatch.setattr(CudaShare, "measure", measure)
    monkeypatch.setattr(memory, "num_blocks", lambda config, size, length, room, **_kept: room() // size)
    monkeypatch.setattr(Subject, "is_on_gpu", True)
    for executor in ("fused", "generic", "compat"):
        config = ModelConfig(name="m", path="unused", executor=executor)
        runner = build_runner(tiny_decoder("llama"), config, 64, share=CudaShare(step_tokens=77))
        assert runner.num_blocks > 0
    assert asked == [("fused", 77), ("generic", 77), ("compat", 77)]


def test_models_count_together_that_may_go_to_the_same_gpu() -> None:
    devices = {"a": "auto", "b": "cuda", "c": "cuda:0", "d": "cuda:1", "e": "cpu", "f": "cpu"}
    models = tuple(ModelConfig(name=name, path="unused", device=device) for name, device in devices.items())
    config = ServeConfig(models=models)
    counts = {model.name: config.num_on_gpu(model) for model in models}
    assert counts == {"a": 3, "b": 3, "c": 3, "d": 1, "e": 1, "f": 1}


def test_every_worker_hears_how_many_share_its_gpu_also_after_a_restart() -> None:
    models = tuple(ModelConfig(name=name, path="unused") for name in "ab")
    client = Supervisor(ServeConfig(models=models)).clients["b"]
    assert client.load.num_on_gpu == 2
    client.on_replies([ready()])
    assert client.load.num_on_gpu == 2
