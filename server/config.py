"""Every setting, explained where it stands. `server.settings` fills them from flags, environment and file.

A field's docstring is its help text everywhere: `sluice serve --help` and the table in SETTINGS.md.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from server.errors import ConfigurationError
from server.number_types import KvDtype, Quantize


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One served model: where it lies and the limits of the engine that runs it."""

    name: str
    """The name that clients send in ``model``."""
    path: str
    """A Hugging Face model folder with safetensors, or the folder of a PEFT adapter."""
    base: str | None = None
    """For an adapter: the folder of its base model, if it differs from the one in adapter_config.json."""
    share: Literal["auto", "off"] = "auto"
    """For an adapter whose base is served too with the same settings. ``auto``: one worker and one copy of the weights
    for both, where possible: LoRA, DoRA and IA3 on linear layers, an encoder's heads, and of decoders virtual tokens
    (prompt, P- and prefix tuning). ``off``: a worker with a merged copy. ``sluice plan`` shows which."""
    max_adapter_gib: float = 1.0
    """Maximum GiB of the adapters that share this model's worker and are in memory; those used last stay. The others
    are read again when a request names them."""
    task: Literal["auto", "embed"] = "auto"
    """``auto``: the task of the model's head; ``embed``: vectors of texts, without the head."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 where the device or our CPU kernels compute in it, else float32. Encoders are float32: on a
    GPU with TF32, on a CPU with bfloat16 products where they are much faster and keep the labels of a sample."""
    quantize: Quantize = "none"
    """Weights in fewer bits: ``int8`` is fastest on a CPU, ``int4`` is smallest. Not on a GPU.
    The loss is reported at load."""
    kv_dtype: KvDtype = "auto"
    """Type of the KV cache: ``auto`` is the model's own; ``int8`` holds about twice as many tokens and requires the CPU
    kernels. The loss is reported at load."""
    executor: Literal["auto", "fused", "generic", "compat"] = "auto"
    """``auto``: the first one that passes the numerical self-check at load."""
    kernels: Literal["auto", "native", "torch", "amx", "avx512", "avxvnni", "avx2", "tiles"] = "auto"
    """``auto``: the best CPU kernels that this processor runs, else ``torch``; ``native`` requires some, ``amx``,
    ``avx512``, ``avxvnni`` or ``avx2`` that set; ``tiles`` is for tests: ``amx`` without its instructions, slow."""
    prompt_lookup: Literal["auto", "off"] = "auto"
    """``auto``: with few streams, guess the next tokens from the text so far where that is faster. Results do not
    change."""
    threads: int = 0
    """CPU threads of the worker; 0 uses all that the process may use."""
    max_model_len: int = 0
    """Maximum tokens in one sequence; 0 uses the limit of the model, for an encoder also that of its tokenizer.
    For an encoder-decoder it bounds the source and the output, each."""
    block_size: int = 32
    """Tokens per block of the KV cache."""
    max_batch_tokens: int = 0
    """Maximum new tokens in one step; 0 chooses by measured speed, or by device on a GPU."""
    max_running: int = 64
    """Maximum sequences in one step."""
    kv_cache_gib: float = 0.0
    """Size of the KV cache in GiB; 0 uses a part of the free memory, or the rest of the model's share of a GPU."""
    prefix_cache: bool = True
    """Reuse cached blocks for prompts that begin alike."""
    deterministic: bool = False
    """Bitwise reproducible log-probabilities, independent of batch, restart and prefix cache. Slower.
    Most models are refused with it on a GPU."""
    cuda_graphs: bool = True
    """On CUDA, replay decoding steps as recorded graphs."""
    compile: bool = False
    """Compile the layers of the generic executor with Inductor, mainly for CUDA. Loading takes minutes longer."""

    def __post_init__(self) -> None:
        _require(bool(self.name), "A model needs a name: --model NAME=PATH.")
        _require(bool(self.path), f"Model {self.name} needs a path: --model NAME=PATH.")
        _require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"device is {self.device}: it must be auto, cpu, cuda or cuda:N.",
        )
        _require(self.block_size > 0, f"block_size is {self.block_size}: it must be at least 1.")
        _require(self.max_running > 0, f"max_running is {self.max_running}: it must be at least 1.")
        _require(
            self.max_batch_tokens == 0 or self.max_batch_tokens >= self.max_running,
            f"max_batch_tokens is {self.max_batch_tokens}: it must be at least max_running ({self.max_running}), "
            "or a full batch could not decode one token each.",
        )
        _require(
            not self.compile or (self.executor in ("auto", "generic") and not self.deterministic),
            "compile requires the generic executor and excludes deterministic: set executor to auto or generic, "
            "and deterministic to off.",
        )
        for field, value in (("kernels", "torch"), ("executor", "compat")):
            _require(
                self.kv_dtype == "auto" or getattr(self, field) != value,
                f"kv_dtype is {self.kv_dtype}, which requires the CPU kernels, and {field} is {value}: set one of them "
                "to auto.",
            )
        _require(
            self.kv_dtype == "auto" or not self.device.startswith("cuda"),
            f"kv_dtype is {self.kv_dtype}, which requires a CPU, and device is {self.device}: set kv_dtype to auto.",
        )
        for field in ("threads", "max_model_len", "kv_cache_gib", "max_adapter_gib"):
            _require(getattr(self, field) >= 0, f"{field} is {getattr(self, field)}: it must be at least 0.")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The whole server."""

    models: tuple[ModelConfig, ...]
    """Served models; the first model of a task is the default for that task."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on every address of the machine."""
    port: int = 8000
    """Port to listen on; 0 chooses a free port and prints it."""
    max_queued_requests: int = 256
    """Maximum concurrent requests per model, queued or running; beyond it the server answers 503. A client below its
    fair share may exceed it by a quarter."""
    max_queued_tokens: int = 262_144
    """Maximum tokens (prompt and new tokens) of concurrent requests per model; beyond it the server answers 503."""
    unready_queue_percent: int = 0
    """/readyz answers 503 while a queue is at least this full, in percent of its limits; 0 disables. An overload of all
    replicas then takes all of them out of service at once."""
    max_body_bytes: int = 2 * 1024 * 1024
    """Maximum bytes of a request body; beyond it the server answers 413."""
    max_batch_inputs: int = 32
    """Maximum inputs in one /generate request."""
    max_encode_inputs: int = 256
    """Maximum texts or pairs in one request to an encoder, and maximum sentences of texts that are split."""
    request_timeout_s: float = 0.0
    """Time limit of a request in seconds; ``max_time`` can only shorten it. 0 disables."""
    default_max_new_tokens: int = 256
    """New tokens if neither the request nor the model's generation_config sets a number."""
    api_keys_file: str | None = None
    """File with one API key per line. The variable SLUICE_API_KEYS takes keys too. If unset, the server accepts
    unauthenticated requests."""
    share_prefix_cache: bool = False
    """Share the prefix cache between API keys. A client can then learn from timing what others have asked."""
    cors_origins: str | None = None
    """Origins whose web pages may use the server, separated by commas, or ``*`` for all. Default: none."""
    allowed_hosts: str | None = None
    """Host names that requests may use, separated by commas: ``*.example.com`` for subdomains, ``*`` for any. Addresses
    always work. Default: any; on a loopback address without keys only localhost, ``host`` and names without a dot."""
    trusted_proxies: str | None = None
    """Addresses or networks of proxies, separated by commas. The server takes the client's address from their
    X-Forwarded-For or Forwarded header. Default: none."""
    max_connections: int = 4096
    """Maximum open connections; beyond it the server answers 503."""
    max_connections_per_address: int = 1024
    """Maximum open connections from one address, or one /64 network of IPv6. Trusted proxies are exempt."""
    templates: str | None = None
    """Folder of prompt templates, one file each."""
    topics: str | None = None
    """Folder of topics that requests can penalise, one word list each."""
    adapters: str | None = None
    """Folder of PEFT adapters that POST /admin/adapters may load while the server runs. Default: none."""
    watched_adapters: str | None = None
    """Folder of PEFT adapters that are served under the names of their folders. The server loads new and changed ones
    and unloads those that are removed. Default: none."""
    page: bool = True
    """Serve the web page at ``/``."""
    keep_alive_s: float = 15.0
    """Seconds of silence after which a stream gets a keep-alive."""
    keep_alive: Literal["comment", "chunk", "off"] = "comment"
    """Keep-alive format: an SSE ``comment``, or an empty ``chunk`` on OpenAI routes, which resets the read timeouts of
    clients."""
    drain_delay_s: float = 0.0
    """After SIGTERM, seconds in which the server still takes new requests while /readyz answers 503."""
    drain_timeout_s: float = 60.0
    """After SIGTERM, maximum seconds for running requests to finish."""
    stall_timeout_s: float = 60.0
    """Restart a worker that has pending work but has not responded for this many seconds."""
    start_timeout_s: float = 600.0
    """Maximum seconds for a worker to load its model; beyond it the server exits."""
    restart_backoff_s: float = 0.1
    """Seconds before the first restart of a worker. It doubles up to 10 s while restarts fail."""
    max_restarts: int = 5
    """The server exits if a worker dies this many times within five minutes without finishing a request."""
    strict: bool = False
    """Reject unknown fields on OpenAI routes, as all other routes do, instead of ignoring them."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """``auto``: text on a terminal, JSON lines elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log lines."""
    vllm_metrics: bool = False
    """Add metrics under vLLM's names (``vllm:...``), for routers, autoscalers and dashboards made for vLLM."""

    def __post_init__(self) -> None:
        _require(bool(self.models), "There is no model to serve. Give at least one --model NAME=PATH.")
        names = [model.name for model in self.models]
        _require(len(set(names)) == len(names), f"Two models have the same name: {', '.join(names)}.")
        _require(0 <= self.port <= 65535, f"port is {self.port}: it must be 0 to 65535.")
        for field in (
            "max_queued_requests",
            "max_queued_tokens",
            "max_body_bytes",
            "max_batch_inputs",
            "max_encode_inputs",
            "default_max_new_tokens",
            "max_restarts",
            "max_connections",
            "max_connections_per_address",
        ):
            _require(getattr(self, field) >= 1, f"{field} is {getattr(self, field)}: it must be at least 1.")
        for field in ("keep_alive_s", "stall_timeout_s", "start_timeout_s"):
            _require(getattr(self, field) > 0, f"{field} is {getattr(self, field)}: it must be above 0.")
        _require(
            0 <= self.unready_queue_percent <= 100,
            f"unready_queue_percent is {self.unready_queue_percent}: it must be from 0 to 100.",
        )
        for origin in self.allowed_origins:
            _require(
                re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", origin) is not None,
                f"cors_origins has {origin}: an origin must be * or a scheme and a host, such as https://chat.example.",
            )
        for name in self.host_names:
            _require(
                re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", name) is not None,
                f"allowed_hosts has {name}: it must be a host name without scheme and port, *.example.com, or *.",
            )
        _require(
            self.proxy_networks is not None,
            f"trusted_proxies is {self.trusted_proxies}: it must be addresses or networks such as 10.0.0.0/8, "
            "separated by commas.",
        )
        for field in ("request_timeout_s", "drain_delay_s", "drain_timeout_s", "restart_backoff_s"):
            _require(getattr(self, field) >= 0, f"{field} is {getattr(self, field)}: it must be at least 0.")

    @property
    def allowed_origins(self) -> list[str]:
        """What `cors_origins` names, one by one."""
        return _split(self.cors_origins)

    def num_on_gpu(self, model: ModelConfig) -> int:
        """Models that go to the same GPU as ``model`` on a machine with GPUs; 1 for a model that stays on the CPU."""
        return 1 if model.device == "cpu" else sum(_gpu(other) == _gpu(model) for other in self.models)

    @property
    def host_names(self) -> list[str]:
        """What `allowed_hosts` names, one by one."""
        return _split(self.allowed_hosts)

    @property
    def proxy_networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network] | None:
        """What `trusted_proxies` names; None if that is not addresses and networks."""
        try:
            return [ipaddress.ip_network(each) for each in _split(self.trusted_proxies)]
        except ValueError:
            return None


def _gpu(model: ModelConfig) -> str:
    return "cuda:0" if model.device in ("auto", "cuda") else model.device


def _split(text: str | None) -> list[str]:
    """The entries of a setting that has several, between commas."""
    return [entry for each in (text or "").split(",") if (entry := each.strip())]
