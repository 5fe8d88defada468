"""Every metric: its object, its name and its unit.

Labels come from bounded sets only: served model names, tasks, status classes, finish reasons and error codes.
All functions are cheap and are called on the front's event loop; nothing here knows HTTP or workers.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector

from server import __version__, vllm_metrics
from server.protocol import Ready, Stats

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
GAP_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0)
DURATION_BUCKETS = tuple(0.001 * 2**i for i in range(21))
"""1 ms, for a classifier, doubling to 1049 s, for a long generation."""
COUNT_BUCKETS = tuple(float(2**i) for i in range(10))
TOKEN_BUCKETS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))

TIME_TO_FIRST_TOKEN = Histogram(
    "sluice_time_to_first_token_seconds",
    "From the request's arrival to its first token.",
    ["model"],
    buckets=FIRST_TOKEN_BUCKETS,
    registry=REGISTRY,
)
INTER_TOKEN_GAP = Histogram(
    "sluice_inter_token_seconds",
    "Between two tokens of one request.",
    ["model"],
    buckets=GAP_BUCKETS,
    registry=REGISTRY,
)
QUEUE_TIME = Histogram(
    "sluice_queue_seconds",
    "From a request's arrival to the first step that computes any of it.",
    ["model", "task"],
    buckets=DURATION_BUCKETS,
    registry=REGISTRY,
)
REQUEST_TIME = Histogram(
    "sluice_request_seconds",
    "From a request's arrival to the end of its answer.",
    ["model", "task"],
    buckets=DURATION_BUCKETS,
    registry=REGISTRY,
)
REQUEST_PROMPT_TOKENS = Histogram(
    "sluice_request_prompt_tokens",
    "Input tokens of one answered request.",
    ["model", "task"],
    buckets=TOKEN_BUCKETS,
    registry=REGISTRY,
)
REQUEST_OUTPUT_TOKENS = Histogram(
    "sluice_request_output_tokens",
    "New tokens of one answered generation request.",
    ["model"],
    buckets=TOKEN_BUCKETS,
    registry=REGISTRY,
)
REQUESTS = Counter(
    "sluice_requests_total",
    "Finished requests; status 499 is a client that left.",
    ["model", "task", "status", "finish_reason"],
    registry=REGISTRY,
)
REJECTIONS = Counter(
    "sluice_rejections_total",
    "Requests answered with an error, by its code.",
    ["model", "reason"],
    registry=REGISTRY,
)
DISCONNECTS = Counter(
    "sluice_client_disconnects_total",
    "Requests whose client left before the answer was complete.",
    ["model", "task"],
    registry=REGISTRY,
)
FRONT_TASKS = Gauge("sluice_front_tasks", "Tasks of the process that speaks HTTP.", registry=REGISTRY)
ADMITTED_REQUESTS = Gauge("sluice_admitted_requests", "Requests admitted and unfinished.", ["model"], registry=REGISTRY)
ADMITTED_TOKENS = Gauge(
    "sluice_admitted_tokens", "Tokens of work admitted and unfinished.", ["model"], registry=REGISTRY
)
RUNNING = Gauge("sluice_running_requests", "Sequences in the worker's batch.", ["model"], registry=REGISTRY)
WAITING = Gauge("sluice_waiting_requests", "Sequences that wait in the worker.", ["model"], registry=REGISTRY)
STEP_TIME = Histogram(
    "sluice_step_seconds", "One step of the engine.", ["model"], buckets=GAP_BUCKETS, registry=REGISTRY
)
FORWARD_TIME = Counter(
    "sluice_forward_seconds_total", "Time in the model's forward pass.", ["model"], registry=REGISTRY
)
BATCH_SIZE = Histogram(
    "sluice_batch_requests", "Sequences in one step.", ["model"], buckets=COUNT_BUCKETS, registry=REGISTRY
)
BATCH_TOKENS = Histogram(
    "sluice_batch_tokens", "New tokens computed in one step.", ["model"], buckets=TOKEN_BUCKETS, registry=REGISTRY
)
TOKEN_BUDGET = Gauge(
    "sluice_budget_tokens",
    "Most tokens of prompts or texts in one step, as learned from measured speed.",
    ["model"],
    registry=REGISTRY,
)
PROMPT_TOKENS = Counter("sluice_prompt_tokens_total", "Prompt tokens that were computed.", ["model"], registry=REGISTRY)
COMPUTED_TOKENS = Counter(
    "sluice_computed_tokens_total", "Tokens that were computed, prompt and new.", ["model"], registry=REGISTRY
)
OUTPUT_TOKENS = Counter("sluice_output_tokens_total", "New tokens of finished requests.", ["model"], registry=REGISTRY)
PADDED_TOKENS = Counter("sluice_padded_tokens_total", "Token places that held padding.", ["model"], registry=REGISTRY)
KV_BLOCKS = Gauge("sluice_kv_blocks", "Blocks of the KV cache.", ["model"], registry=REGISTRY)
KV_BLOCK_TOKENS = Gauge(
    "sluice_kv_block_tokens", "Tokens that a block of the KV cache holds.", ["model"], registry=REGISTRY
)
KV_BLOCKS_USED = Gauge(
    "sluice_kv_blocks_used", "Blocks of the KV cache that a sequence holds.", ["model"], registry=REGISTRY
)
KV_USAGE = Gauge("sluice_kv_usage_ratio", "Used part of the KV cache, 0 to 1.", ["model"], registry=REGISTRY)
PREFIX_HIT_TOKENS = Counter(
    "sluice_prefix_hit_tokens_total", "Prompt tokens found in the prefix cache.", ["model"], registry=REGISTRY
)
PREFIX_QUERY_TOKENS = Counter(
    "sluice_prefix_query_tokens_total", "Prompt tokens looked up in the prefix cache.", ["model"], registry=REGISTRY
)
PREEMPTIONS = Counter(
    "sluice_preemptions_total", "Sequences put back to waiting for want of blocks.", ["model"], registry=REGISTRY
)
DRAFTED_TOKENS = Counter(
    "sluice_drafted_tokens_total",
    "Next tokens guessed from the text so far and tried out.",
    ["model"],
    registry=REGISTRY,
)
ACCEPTED_TOKENS = Counter(
    "sluice_accepted_tokens_total", "Guessed next tokens that came true.", ["model"], registry=REGISTRY
)
RESTARTS = Counter("sluice_worker_restarts_total", "Workers that died and were replaced.", ["model"], registry=REGISTRY)
MODEL_LOAD_TIME = Gauge(
    "sluice_model_load_seconds", "Time that the model's last load took.", ["model"], registry=REGISTRY
)
MODEL_WEIGHT_BYTES = Gauge("sluice_model_weight_bytes", "Size of the model's weights.", ["model"], registry=REGISTRY)
KV_CACHE_BYTES = Gauge("sluice_kv_cache_bytes", "Size of the KV cache.", ["model"], registry=REGISTRY)
KNOWN_ADAPTERS = Gauge(
    "sluice_known_adapters", "Adapters that share the worker of the model.", ["model"], registry=REGISTRY
)
RESIDENT_ADAPTERS = Gauge(
    "sluice_resident_adapters", "Of these adapters, those that are in memory.", ["model"], registry=REGISTRY
)
ADAPTER_BYTES = Gauge("sluice_adapter_bytes", "Size of the adapters that are in memory.", ["model"], registry=REGISTRY)
LAST_STEP_AGE = Gauge(
    "sluice_last_step_age_seconds",
    "Time since the worker's last step; a stall where it grows while requests are admitted.",
    ["model"],
    registry=REGISTRY,
)
LOG_LINES_DROPPED = Counter(
    "sluice_log_lines_dropped_total", "Log lines dropped because the sink did not take them.", registry=REGISTRY
)
BUILD = Info("sluice_build", "What runs.", registry=REGISTRY)
BUILD.info({"version": __version__, "python": platform.python_version()})

_last_step_s: dict[str, float] = {}
_num_blocks: dict[str, int] = {}
_adapter_labels: dict[str, str] = {}
MAX_ADAPTER_LABELS = 100
OTHER_ADAPTERS = "other adapters"
"""Label of requests to adapters beyond the number that have labels of their own."""


def add_adapter(name: str) -> None:
    """A model that was named while the server runs. The first ones have labels of their own, for good."""
    if name not in _adapter_labels:
        _adapter_labels[name] = name if len(_adapter_labels) < MAX_ADAPTER_LABELS else OTHER_ADAPTERS


def label_of(model: str) -> str:
    """A model's label where requests are counted."""
    return _adapter_labels.get(model, model)


def set_model_info(model: str, ready: Ready) -> None:
    """A worker for ``model`` became ready, the first one or a replacement."""
    MODEL_LOAD_TIME.labels(model).set(ready.load_s)
    MODEL_WEIGHT_BYTES.labels(model).set(ready.weight_bytes)
    KV_CACHE_BYTES.labels(model).set(ready.kv_cache_bytes)
    KV_BLOCKS.labels(model).set(ready.num_blocks)
    KV_BLOCK_TOKENS.labels(model).set(ready.block_size)
    _last_step_s[model] = time.monotonic()
    _num_blocks[model] = ready.num_blocks
    LAST_STEP_AGE.labels(model).set_function(lambda: time.monotonic() - _last_step_s[model])
    _set_state(model, Stats())
    for counter in (
        RESTARTS,
        PREEMPTIONS,
        PREFIX_HIT_TOKENS,
        PREFIX_QUERY_TOKENS,
        DRAFTED_TOKENS,
        ACCEPTED_TOKENS,
    ):
        counter.labels(model)


class _Steps:
    """The metrics of one model's steps, looked up once: that takes longer than what a step does with them."""

    def __init__(self, model: str) -> None:
        self._running = RUNNING.labels(model)
        self._waiting = WAITING.labels(model)
        self._blocks_used = KV_BLOCKS_USED.labels(model)
        self._usage = KV_USAGE.labels(model)
        self._step_time = STEP_TIME.labels(model)
        self._forward_time = FORWARD_TIME.labels(model)
        self._batch_size = BATCH_SIZE.labels(model)
        self._batch_tokens = BATCH_TOKENS.labels(model)
        self._computed_tokens = COMPUTED_TOKENS.labels(model)
        self._model = model

    def set_state(self, stats: Stats, num_blocks: int) -> None:
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._blocks_used.set(stats.num_blocks_used)
        self._usage.set(stats.num_blocks_used / num_blocks)

    def observe(self, stats: Stats) -> None:
        self._step_time.observe(stats.step_s)
        self._forward_time.inc(stats.forward_s)
        self._batch_size.observe(stats.batch_size)
        self._batch_tokens.observe(stats.batch_tokens)
        self._computed_tokens.inc(stats.batch_tokens)
        if stats.token_budget:
            TOKEN_BUDGET.labels(self._model).set(stats.token_budget)


_steps = functools.cache(_Steps)


def _set_state(model: str, stats: Stats) -> None:
    _steps(model).set_state(stats, _num_blocks.get(model) or 1)


def record_step(model: str, stats: Stats) -> None:
    """What the worker's last step did, and its state after it."""
    _last_step_s[model] = time.monotonic()
    _set_state(model, stats)
    if stats.batch_size == 0:
        return
    _steps(model).observe(stats)
    for counter, amount in (
        (PROMPT_TOKENS, stats.prompt_tokens),
        (PADDED_TOKENS, stats.padded_tokens),
        (PREFIX_HIT_TOKENS, stats.prefix_hit_tokens),
        (PREFIX_QUERY_TOKENS, stats.prefix_query_tokens),
        (PREEMPTIONS, stats.num_preemptions),
        (DRAFTED_TOKENS, stats.num_drafted),
        (ACCEPTED_TOKENS, stats.num_accepted),
    ):
        if amount:
            counter.labels(model).inc(amount)


def record_restart(model: str) -> None:
    """A worker died after it had been ready: it holds nothing any more, and another is started."""
    RESTARTS.labels(model).inc()
    _set_state(model, Stats())


def observe_first_token(model: str, seconds: float) -> None:
    TIME_TO_FIRST_TOKEN.labels(model).observe(seconds)


def observe_request(
    model: str, task: str, *, status: str, finish_reason: str, total_s: float, queue_s: float | None
) -> None:
    """One request ended: ``status`` is a class such as ``2xx``, or ``499`` for a client that left."""
    REQUESTS.labels(model, task, status, finish_reason).inc()
    REQUEST_TIME.labels(model, task).observe(total_s)
    if queue_s is not None:
        QUEUE_TIME.labels(model, task).observe(queue_s)
    if status == "499":
        DISCONNECTS.labels(model, task).inc()


def observe_tokens(model: str, task: str, prompt_tokens: int, output_tokens: int) -> None:
    """What one answered request took in and gave out."""
    REQUEST_PROMPT_TOKENS.labels(model, task).observe(prompt_tokens)
    if output_tokens:
        REQUEST_OUTPUT_TOKENS.labels(model).observe(output_tokens)
        OUTPUT_TOKENS.labels(model).inc(output_tokens)


def record_rejection(model: str, reason: str) -> None:
    REJECTIONS.labels(model, reason).inc()


def set_admitted(model: str, num_requests: int, num_tokens: int) -> None:
    ADMITTED_REQUESTS.labels(model).set(num_requests)
    ADMITTED_TOKENS.labels(model).set(num_tokens)


def set_adapters(model: str, num_known: int, num_resident: int, num_bytes: int) -> None:
    """Of the worker of ``model``."""
    KNOWN_ADAPTERS.labels(model).set(num_known)
    RESIDENT_ADAPTERS.labels(model).set(num_resident)
    ADAPTER_BYTES.labels(model).set(num_bytes)


def render(accept: str = "", *, vllm_names: bool = False) -> tuple[bytes, str]:
    """All metrics in the format that the ``Accept`` header asks for, and its content type."""
    encoder, content_type = choose_encoder(accept)
    if not vllm_names:
        return encoder(REGISTRY), content_type
    families = list(REGISTRY.collect())
    both = CollectorRegistry()
    both.register(_Collected([*families, *vllm_metrics.aliases(families)]))
    # A colon is legal in a name, and needs none of the escaping by which OpenMetrics' encoder would make it "vllm_".
    return encoder(both, escaping=ALLOWUTF8), content_type  # type: ignore[call-arg]


class _Collected(Collector):
    """Families that have been collected already, as a registry takes them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
