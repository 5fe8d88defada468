"""The numbers that operators see are those of the workers: each counted once, under names that say their unit."""

from __future__ import annotations

import re

import pytest

from server import metrics
from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.protocol import Ready, Stats, TokenizerFiles

UNITS = ("_tasks", "_seconds", "_bytes", "_total", "_ratio", "_requests", "_tokens", "_blocks", "_blocks_used", "_info",
         "_adapters")  # fmt: skip


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def ready() -> Ready:
    return Ready(
        task="generate",
        architecture="LlamaForCausalLM",
        tokenizer=TokenizerFiles(tokenizer_json="{}"),
        vocab_size=10,
        max_model_len=10,
        device="cpu",
        dtype="float32",
        executor="generic",
        attention="torch",
        num_parameters=1,
        weight_bytes=4,
        num_blocks=8,
        load_s=1.5,
    )


def test_each_step_of_a_worker_is_counted_once():
    client = WorkerClient(ModelConfig(name="once", path="nowhere"))
    stats = Stats(batch_size=2, batch_tokens=5, prompt_tokens=3, num_preemptions=1, num_running=2, step_s=0.01)
    client.on_replies([stats])
    assert value("sluice_batch_requests_count", model="once") == 1
    assert value("sluice_batch_requests_sum", model="once") == 2
    assert value("sluice_computed_tokens_total", model="once") == 5
    assert value("sluice_prompt_tokens_total", model="once") == 3
    assert value("sluice_preemptions_total", model="once") == 1
    assert value("sluice_running_requests", model="once") == 2


def test_a_step_without_work_changes_the_state_and_counts_nothing():
    metrics.record_step("idle", Stats(batch_size=1, batch_tokens=1, num_running=1, num_blocks_used=3))
    metrics.record_step("idle", Stats())
    assert value("sluice_kv_blocks_used", model="idle") == 0
    assert value("sluice_batch_requests_count", model="idle") == 1


def test_a_dead_worker_holds_nothing():
    metrics.set_model_info("dead", ready())
    metrics.record_step("dead", Stats(batch_size=1, num_running=1, num_waiting=4, num_blocks_used=4))
    assert value("sluice_kv_usage_ratio", model="dead") == 0.5
    metrics.record_restart("dead")
    assert value("sluice_worker_restarts_total", model="dead") == 1
    for name in (
        "sluice_running_requests",
        "sluice_waiting_requests",
        "sluice_kv_blocks_used",
        "sluice_kv_usage_ratio",
    ):
        assert value(name, model="dead") == 0


def test_the_age_of_the_last_step_grows():
    metrics.set_model_info("old", ready())
    first = value("sluice_last_step_age_seconds", model="old")
    second = value("sluice_last_step_age_seconds", model="old")
    assert first is not None
    assert second is not None
    assert 0 <= first < second


def test_names_have_our_prefix_and_end_in_their_unit():
    names = {
        re.split(r"[ {]", line)[2] for line in metrics.render()[0].decode().splitlines() if "# TYPE sluice" in line
    }
    assert len(names) > 30
    assert [name for name in names if not name.endswith(UNITS)] == []


def test_buckets_cover_a_classifiers_millisecond_and_a_ten_minute_generation():
    assert metrics.DURATION_BUCKETS[0] == 0.001
    assert metrics.DURATION_BUCKETS[-1] > 600


def test_adapters_that_are_loaded_at_run_time_have_a_bounded_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_adapter_labels", {})
    names = [f"adapter {i}" for i in range(metrics.MAX_ADAPTER_LABELS + 50)]
    for name in [*names, *names]:
        metrics.add_adapter(name)
    labels = [metrics.label_of(name) for name in names]
    assert labels[: metrics.MAX_ADAPTER_LABELS] == names[: metrics.MAX_ADAPTER_LABELS]
    assert set(labels[metrics.MAX_ADAPTER_LABELS :]) == {metrics.OTHER_ADAPTERS}
    assert metrics.label_of("of the settings") == "of the settings"
