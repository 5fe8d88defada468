"""vLLM's names for our metrics, for routers, autoscalers and dashboards that know no others.

Made of the families that are about to be rendered: nothing is counted a second time, and no value can differ from ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

NO_MODEL = "none"
"""The label of requests that ended before their model was known: vLLM counts none of those."""

Labels = dict[str, str]


def _of_model(labels: Mapping[str, str]) -> Labels | None:
    """One series a model, or a model and bucket; tasks are added up."""
    if labels["model"] == NO_MODEL:
        return None
    kept = {"model_name": labels["model"]}
    return {**kept, "le": labels["le"]} if "le" in labels else kept


def _of_outcome(labels: Mapping[str, str]) -> Labels | None:
    """Answered requests and those whose client left, by how they ended; an encoder's have no reason of their own."""
    kept = _of_model(labels)
    if kept is None or labels["status"] not in ("2xx", "499"):
        return None
    reason = "abort" if labels["status"] == "499" else labels["finish_reason"]
    return {**kept, "finished_reason": "stop" if reason == "none" else reason}


@dataclass(frozen=True)
class Alias:
    """One family under vLLM's name; both names are without the suffixes of counters and histograms."""

    name: str
    sources: tuple[str, ...]
    """Ours, whose values are added up."""
    labels: Callable[[Mapping[str, str]], Labels | None] = _of_model
    """The labels of one of our samples in vLLM's words, or None for one that vLLM would not count."""


ALIASES = (
    Alias("vllm:num_requests_running", ("sluice_running_requests",)),
    Alias("vllm:num_requests_waiting", ("sluice_waiting_requests",)),
    Alias("vllm:kv_cache_usage_perc", ("sluice_kv_usage_ratio",)),
    Alias("vllm:prefix_cache_queries", ("sluice_prefix_query_tokens",)),
    Alias("vllm:prefix_cache_hits", ("sluice_prefix_hit_tokens",)),
    Alias("vllm:num_preemptions", ("sluice_preemptions",)),
    # vLLM's counts whole prompts, ours apart what was computed and what was found in the cache.
    Alias("vllm:prompt_tokens", ("sluice_prompt_tokens", "sluice_prefix_hit_tokens")),
    Alias("vllm:generation_tokens", ("sluice_output_tokens",)),
    Alias("vllm:request_success", ("sluice_requests",), _of_outcome),
    Alias("vllm:time_to_first_token_seconds", ("sluice_time_to_first_token_seconds",)),
    Alias("vllm:inter_token_latency_seconds", ("sluice_inter_token_seconds",)),
    Alias("vllm:e2e_request_latency_seconds", ("sluice_request_seconds",)),
    Alias("vllm:request_queue_time_seconds", ("sluice_queue_seconds",)),
    Alias("vllm:request_prompt_tokens", ("sluice_request_prompt_tokens",)),
    Alias("vllm:request_generation_tokens", ("sluice_request_output_tokens",)),
)


def aliases(families: Iterable[Metric]) -> list[Metric]:
    """What vLLM would call the numbers in ``families``, which are all of ours."""
    ours = {family.name: family for family in families}
    return [*(_alias(alias, ours) for alias in ALIASES), _cache_config(ours), _lora_requests()]


def _alias(alias: Alias, ours: Mapping[str, Metric]) -> Metric:
    totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for source in alias.sources:
        for sample in ours[source].samples:
            labels = alias.labels(sample.labels)
            if labels is not None:
                key = alias.name + sample.name.removeprefix(source), tuple(labels.items())
                totals[key] = totals.get(key, 0.0) + sample.value
    renamed = Metric(alias.name, f"Another name of {' and '.join(alias.sources)}.", ours[alias.sources[0]].type)
    for (name, labels_), value in totals.items():
        renamed.add_sample(name, dict(labels_), value)
    return renamed


def _cache_config(ours: Mapping[str, Metric]) -> Metric:
    """The size of each KV cache, as labels of a gauge that is always 1."""
    info = Metric("vllm:cache_config_info", "Blocks of the KV cache and tokens in each.", "gauge")
    num_blocks = {sample.labels["model"]: sample.value for sample in ours["sluice_kv_blocks"].samples}
    for sample in ours["sluice_kv_block_tokens"].samples:
        model = sample.labels["model"]
        if num_blocks[model]:
            labels = {
                "model_name": model,
                "block_size": f"{sample.value:.0f}",
                "num_gpu_blocks": f"{num_blocks[model]:.0f}",
            }
            info.add_sample(info.name, labels, 1.0)
    return info


def _lora_requests() -> Metric:
    """No adapter is loaded on demand: each is served as a model of its own, in every replica, from its start.

    The value is the time, as vLLM has it.
    """
    info = Metric("vllm:lora_requests_info", "Adapters loaded on demand: none.", "gauge")
    labels = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    info.add_sample(info.name, labels, time.time())
    return info
