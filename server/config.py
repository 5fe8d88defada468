"""Every setting, explained where it stands. `server.settings` fills them from flags, environment and file.

A field's docstring is its help text everywhere: `sluice serve --help` and the table in SETTINGS.md.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from server.errors import ConfigurationError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One served model: where it lies and the limits of the engine that runs it."""

    name: str
    """What clients put in ``model``."""
    path: str
    """A Hugging Face model folder with safetensors, or a PEFT LoRA adapter's folder."""
    base: str | None = None
    """For an adapter: the base model's folder, where the one in adapter_config.json is not it."""
    task: Literal["auto", "embed"] = "auto"
    """``auto``: by the head that the weights are for; ``embed``: vectors of texts, without the head."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 where the device computes in it, else float32."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Weights in fewer bits: ``int8`` is the fastest on a CPU, ``int4`` the smallest; what is lost is told at load."""
    executor: Literal["auto", "fused", "generic", "compat"] = "auto"
    """``auto``: the first that passes the numeric self-check at load."""
    kernels: Literal["auto", "native", "torch", "amx", "avx512", "avx2", "tiles"] = "auto"
    """``auto``: the best CPU kernels that this processor runs, else ``torch``; ``native`` requires some, ``amx``,
    ``avx512`` or ``avx2`` that set; ``tiles`` is for tests: ``amx`` without its instructions, slow."""
    prompt_lookup: Literal["auto", "off"] = "auto"
    """``auto``: few streams guess their next tokens from the text so far, where it is faster; results are the same."""
    threads: int = 0
    """CPU threads of the worker; 0 takes all that the process may use."""
    max_model_len: int = 0
    """Maximum tokens in one sequence; 0 takes the limit of the model, and for an encoder that of its tokenizer too."""
    block_size: int = 32
    """Tokens per KV block."""
    max_batch_tokens: int = 0
    """Most new tokens in one step; 0 chooses by device."""
    max_running: int = 64
    """Most sequences in one step."""
    kv_cache_gib: float = 0.0
    """Size of the KV cache; 0 takes a part of the memory that is free."""
    prefix_cache: bool = True
    """Keep full blocks for prompts that begin alike."""
    deterministic: bool = False
    """Log-probabilities are bitwise the same alone and in any batch, after a restart or a prefix hit; slower."""
    cuda_graphs: bool = True
    """On CUDA, replay steps of one token a sequence as recorded graphs."""
    compile: bool = False
    """Compile the layers of the generic executor with Inductor, for CUDA above all; loading takes minutes more."""

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
            "compile is for the generic executor, whose rows may feel one another: leave executor on auto or generic, "
            "and deterministic off.",
        )
        for field in ("threads", "max_model_len", "kv_cache_gib"):
            _require(getattr(self, field) >= 0, f"{field} is {getattr(self, field)}: it must be at least 0.")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The whole server."""

    models: tuple[ModelConfig, ...]
    """Served models; the first of a task is the task's default."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every address of the machine."""
    port: int = 8000
    """0 takes a free port and prints it."""
    max_queued_requests: int = 256
    """Most requests admitted and unfinished at once, per model; a client below its share may add to a quarter more."""
    max_queued_tokens: int = 262_144
    """Most tokens of work (prompt and new tokens) admitted and unfinished at once, per model."""
    unready_queue_percent: int = 0
    """How full a model's queue is, in percent of its limits, when /readyz answers 503; 0 (default) never. With a mark,
    a load that is too much for all replicas takes all of them out at once."""
    max_body_bytes: int = 2 * 1024 * 1024
    """A longer body is answered 413."""
    max_batch_inputs: int = 32
    """Most inputs in one /generate request."""
    max_encode_inputs: int = 256
    """Most texts or pairs in one request to an encoder."""
    request_timeout_s: float = 0.0
    """Most seconds for one request, from its arrival; ``max_time`` can only shorten it. 0 disables."""
    default_max_new_tokens: int = 256
    """New tokens where neither the request nor the model's generation_config says."""
    api_keys_file: str | None = None
    """A file of API keys, one a line; keys may also come in the variable SLUICE_API_KEYS. None: whoever reaches it."""
    share_prefix_cache: bool = False
    """API keys share cached beginnings of prompts, so that one may learn from its times what another has asked."""
    cors_origins: str | None = None
    """Origins between commas whose web pages may use the server from a browser, or ``*`` for all; none by default."""
    allowed_hosts: str | None = None
    """Host names between commas that requests may use, ``*.example.com`` for all below one, ``*`` for any; addresses
    always work. By default any; without keys on a loopback address only localhost, ``host`` and names without a dot."""
    trusted_proxies: str | None = None
    """Addresses or networks between commas of proxies in front of the server. The client that their X-Forwarded-For or
    Forwarded header names is the one that limits for each address count; none by default."""
    max_connections: int = 4096
    """Maximum open connections; beyond it the server answers 503."""
    max_connections_per_address: int = 1024
    """Maximum open connections from one address, or one /64 network of IPv6; trusted proxies are exempt."""
    templates: str | None = None
    """A folder of prompt templates, one file each."""
    topics: str | None = None
    """A folder of topics that requests can penalise, one word list each."""
    page: bool = True
    """Serve the page for people at ``/``."""
    keep_alive_s: float = 15.0
    """Silence after which a stream gets a sign of life."""
    keep_alive: Literal["comment", "chunk", "off"] = "comment"
    """What that is: ``chunk`` is an empty one where OpenAI's routes stream, which resets clients' own clocks."""
    drain_delay_s: float = 0.0
    """After SIGTERM, how long new work is still taken while /readyz already answers 503."""
    drain_timeout_s: float = 60.0
    """After SIGTERM, how long running work may go on."""
    stall_timeout_s: float = 60.0
    """A worker with work and without a sign of life for so long is killed and replaced."""
    start_timeout_s: float = 600.0
    """A worker that is not ready after so long is a configuration error."""
    restart_backoff_s: float = 0.1
    """Pause before a worker's first restart; doubles up to 10 s while restarts keep failing."""
    max_restarts: int = 5
    """A worker that dies this many times within five minutes without finishing a request ends the server."""
    strict: bool = False
    """OpenAI's routes refuse fields that they do not know, as all others do, and do not leave them out."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """``auto``: text on a terminal, JSON lines elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important log lines that are written."""
    vllm_metrics: bool = False
    """Metrics have vLLM's names too (``vllm:...``), for routers, autoscalers and dashboards that know no others."""

    def __post_init__(self) -> None:
        _require(bool(self.models), "No model to serve: give at least one --model NAME=PATH.")
        names = [model.name for model in self.models]
        _require(len(set(names)) == len(names), f"Two models have one name: {', '.join(names)}.")
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
                f"cors_origins has {origin}: an origin is * or scheme and host alone, such as https://chat.example.",
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


def _split(text: str | None) -> list[str]:
    """The entries of a setting that has several, between commas."""
    return [entry for each in (text or "").split(",") if (entry := each.strip())]
