"""What a restarted worker is told of its model."""

from __future__ import annotations

import pytest

from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.engine import memory
from tests.api.scripted import ready

BLOCK_BYTES = 1000
MODEL_LEN = 100_000


@pytest.mark.parametrize("free_bytes", [400_000, 40_000_000])
def test_a_restarted_worker_keeps_the_limits_that_the_first_one_measured(
    monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    client = WorkerClient(ModelConfig(name="tiny", path="nowhere", max_running=2))
    monkeypatch.setattr(memory.machine, "free_bytes", lambda: free_bytes)
    blocks = memory.num_blocks(client.load.model, BLOCK_BYTES, MODEL_LEN)
    max_model_len = min(MODEL_LEN, blocks * client.model.block_size)
    client.on_replies([ready(max_model_len=max_model_len, kv_cache_bytes=blocks * BLOCK_BYTES)])
    monkeypatch.setattr(memory.machine, "free_bytes", lambda: free_bytes // 2)
    again = client.load.model
    assert again.max_model_len == max_model_len
    assert memory.num_blocks(again, BLOCK_BYTES, max_model_len) == blocks
    assert client.model.max_model_len == 0


def test_a_restarted_worker_keeps_the_dtype_that_the_first_one_measured() -> None:
    client = WorkerClient(ModelConfig(name="tiny", path="nowhere"))
    client.on_replies([ready(dtype="bfloat16", dtype_reason="3.2 times as fast")])
    assert client.load.model.dtype == "bfloat16"
    assert client.model.dtype == "auto"


def test_a_restarted_worker_chooses_a_dtype_that_was_not_measured_as_the_first_one_did() -> None:
    client = WorkerClient(ModelConfig(name="tiny", path="nowhere"))
    client.on_replies([ready(dtype="bfloat16")])
    assert client.load.model.dtype == "auto"
