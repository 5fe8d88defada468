"""What the operator sees when the server is ready: models, limits, addresses, and one command to try."""

from __future__ import annotations

import ipaddress
import json
import textwrap
from collections.abc import Mapping
from typing import Protocol

from server import __version__
from server.config import ServeConfig
from server.protocol import Ready
from server.tasks import TASKS

WIDTH = 100


class Served(Protocol):
    """The part of a worker's client that the banner reads."""

    @property
    def ready(self) -> Ready | None: ...


def banner(config: ServeConfig, clients: Mapping[str, Served], *, has_keys: bool = False) -> str:
    """The whole text; ``config.port`` is the port that is listened on, ``has_keys`` tells whether clients need one."""
    ready = {name: client.ready for name, client in clients.items() if client.ready is not None}
    url = base_url(config.host, config.port)
    lines = [
        "=" * WIDTH,
        f"Sluice {__version__} is ready: {url}",
        "",
        *_models(ready),
        "",
        f"limits    {config.max_queued_requests:,} requests and {config.max_queued_tokens:,} tokens queued per model, "
        f"bodies up to {_size(config.max_body_bytes)}",
        f"open      {f'{url}/   ' if config.page else ''}{url}/docs   {url}/info   {url}/metrics",
        *(["", *_warning(config.host)] if not (has_keys or is_loopback(config.host)) else []),
        "",
        *_curl(url, ready, has_keys=has_keys),
        "=" * WIDTH,
    ]
    return "\n".join(lines)


def base_url(host: str, port: int) -> str:
    """The address to type on this machine.

    >>> base_url("0.0.0.0", 8000), base_url("::1", 80)
    ('http://127.0.0.1:8000', 'http://[::1]:80')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _models(ready: Mapping[str, Ready]) -> list[str]:
    width = max((len(name) for name in ready), default=0)
    lines = []
    for name, model in ready.items():
        facts = [
            f"{model.num_parameters / 1e6:,.0f} M parameters",
            f"{model.executor} on {model.device} in {model.dtype}",
            _size(model.weight_bytes) + (f" + {_size(model.kv_cache_bytes)} KV cache" if model.kv_cache_bytes else ""),
            f"up to {model.max_model_len:,} tokens",
        ]
        lines.append(f"{'/' + model.task:<10} {name:<{width}}  {', '.join(facts)}")
        if model.attribution:
            indent = " " * (width + 13)
            lines += textwrap.wrap(model.attribution, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def _size(num_bytes: int) -> str:
    """
    >>> _size(2097152), _size(269_000_000), _size(3 * 1024**3)
    ('2 MiB', '257 MiB', '3.0 GiB')
    """
    return f"{num_bytes / 1024**3:.1f} GiB" if num_bytes >= 1024**3 else f"{num_bytes / 1024**2:.0f} MiB"


def _warning(host: str) -> list[str]:
    return [
        f"WARNING   Listening on {host} without API keys: anyone who can reach this machine can use the server.",
        "          Set --api-keys-file, use --host 127.0.0.1, or restrict access with a gateway.",
    ]


def _curl(url: str, ready: Mapping[str, Ready], *, has_keys: bool) -> list[str]:
    models = {model.task: model for model in ready.values()}
    task = next((task for name, task in TASKS.items() if name in models), None)
    if task is None:
        return []
    body = json.dumps(task.example).replace("[MASK]", models[task.name].tokenizer.mask_token or "[MASK]")
    unbuffered = "-N " if "stream" in task.example else ""
    key = '-H "Authorization: Bearer $SLUICE_API_KEY" ' if has_keys else ""
    return [f"curl {unbuffered}{url}{task.route} {key}-H 'Content-Type: application/json' \\", f"     -d '{body}'"]
