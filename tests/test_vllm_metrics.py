"""vLLM's names of our metrics: asked for by a setting, and always the numbers that ours say."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import metrics
from server.protocol import Ready, Stats
from server.vllm_metrics import ALIASES
from tests.test_metrics import ready as any_ready

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

WANTED = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:lora_requests_info",
    "vllm:cache_config_info",
    *(
        f"vllm:{name}_{part}"
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")
        for part in ("bucket", "count", "sum")
    ),
}
"""What routers, autoscalers and public dashboards look for."""


def ready(num_blocks: int, block_size: int) -> Ready:
    return msgspec.structs.replace(any_ready(), num_blocks=num_blocks, block_size=block_size)


@pytest.fixture(scope="module")
def samples() -> Samples:
    """All that is rendered after some work of a decoder called ``writer`` and a classifier called ``judge``."""
    metrics.set_model_info("vllm-writer", ready(num_blocks=8, block_size=32))
    metrics.set_model_info("judge", ready(num_blocks=0, block_size=0))
    metrics.record_step(
        "vllm-writer",
        Stats(
            batch_size=3,
            batch_tokens=12,
            prompt_tokens=9,
            prefix_hit_tokens=4,
            prefix_query_tokens=13,
            num_preemptions=1,
            num_running=3,
            num_waiting=2,
            num_blocks_used=4,
        ),
    )
    metrics.observe_first_token("vllm-writer", 0.03)
    metrics.INTER_TOKEN_GAP.labels("vllm-writer").observe(0.02)
    for task, status, reason in (
        ("generate", "2xx", "stop"),
        ("generate", "2xx", "length"),
        ("chat", "2xx", "stop"),
        ("generate", "499", "none"),
        ("generate", "4xx", "none"),
    ):
        metrics.observe_request("vllm-writer", task, status=status, finish_reason=reason, total_s=0.5, queue_s=0.1)
    metrics.observe_request("judge", "classify", status="2xx", finish_reason="none", total_s=0.01, queue_s=0.001)
    metrics.observe_request("none", "generate", status="4xx", finish_reason="none", total_s=0.01, queue_s=None)
    metrics.observe_tokens("vllm-writer", "generate", 13, 7)
    return parsed(vllm_names=True)


def parsed(*, vllm_names: bool) -> Samples:
    text = metrics.render(vllm_names=vllm_names)[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples of that name that carry all of ``labels``."""
    return sum(
        amount for (other, found), amount in samples.items() if other == name and labels.items() <= dict(found).items()
    )


def names(samples: Samples) -> set[str]:
    return {name for name, _ in samples if name.startswith("vllm:")}


def test_the_names_are_there_only_if_they_are_asked_for(samples: Samples):
    assert names(samples) >= WANTED
    assert names(parsed(vllm_names=False)) == set()


def pairs() -> Iterator[tuple[str, tuple[str, ...], str]]:
    for alias in ALIASES:
        for suffix in ("", "_total", "_bucket", "_count", "_sum"):
            yield alias.name, alias.sources, suffix


def test_every_value_is_the_one_that_ours_say(samples: Samples):
    compared = 0
    for (name, labels), amount in samples.items():
        for alias, sources, suffix in pairs():
            if name != alias + suffix or "finished_reason" in dict(labels):
                continue
            found = dict(labels)
            own = {"model": found["model_name"]} | ({"le": found["le"]} if "le" in found else {})
            ours = sum(total(samples, source + suffix, **own) for source in sources)
            assert amount == pytest.approx(ours, rel=1e-12), name
            compared += 1
    assert compared > 100


def test_what_was_computed_and_what_was_found_in_the_cache_are_the_prompts_tokens(samples: Samples):
    assert value(samples, "vllm:prompt_tokens_total", model_name="vllm-writer") == 9 + 4
    assert value(samples, "vllm:generation_tokens_total", model_name="vllm-writer") == 7
    assert value(samples, "vllm:num_requests_running", model_name="vllm-writer") == 3
    assert value(samples, "vllm:num_requests_waiting", model_name="vllm-writer") == 2
    assert value(samples, "vllm:kv_cache_usage_perc", model_name="vllm-writer") == 0.5


def test_requests_are_counted_by_how_they_ended_and_refused_ones_not_at_all(samples: Samples):
    ended = {
        (dict(labels)["model_name"], dict(labels)["finished_reason"]): amount
        for (name, labels), amount in samples.items()
        if name == "vllm:request_success_total" and dict(labels)["model_name"] in ("vllm-writer", "judge", "none")
    }
    assert ended == {
        ("vllm-writer", "stop"): 2,
        ("vllm-writer", "length"): 1,
        ("vllm-writer", "abort"): 1,
        ("judge", "stop"): 1,
    }


def test_tasks_of_one_model_are_one_histogram(samples: Samples):
    assert value(samples, "vllm:e2e_request_latency_seconds_count", model_name="vllm-writer") == 5
    assert value(samples, "vllm:e2e_request_latency_seconds_bucket", model_name="vllm-writer", le="+Inf") == 5


def test_the_cache_of_a_decoder_is_described_and_a_classifier_has_none(samples: Samples):
    caches = [dict(labels) for (name, labels), _ in samples.items() if name == "vllm:cache_config_info"]
    by_model = {labels["model_name"]: labels for labels in caches}
    assert by_model["vllm-writer"] == {
        "model_name": "vllm-writer",
        "block_size": "32",
        "num_gpu_blocks": "8",
    }
    assert "judge" not in by_model


def test_no_adapter_is_said_to_be_loaded_on_demand(samples: Samples):
    labels = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert time.time() - value(samples, "vllm:lora_requests_info", **labels) < 3600


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3",
    ],
    ids=["Prometheus 2", "Prometheus 3"],
)
def test_prometheus_reads_the_names_as_they_are(accept: str):
    text, content_type = metrics.render(accept, vllm_names=True)
    assert content_type.startswith("application/openmetrics-text")
    assert b"\nvllm:num_requests_running{" in text
    assert b"vllm_" not in text
    assert text.endswith(b"# EOF\n")
    assert text.count(b"# EOF") == 1
