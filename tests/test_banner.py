"""The banner: what an operator may copy from it works, and what must be shown is shown."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

import pytest

from server.banner import banner
from server.config import ModelConfig, ServeConfig
from server.protocol import Ready, TokenizerFiles


@dataclass
class Client:
    ready: Ready | None


def client(task: Any, mask_token: str | None = None, **facts: Any) -> Client:
    known = {
        "architecture": "Some",
        "vocab_size": 9,
        "max_model_len": 512,
        "device": "cpu",
        "dtype": "float32",
        "executor": "generic",
        "attention": "torch",
        "num_parameters": 135_000_000,
        "weight_bytes": 512 * 1024**2,
    }
    tokenizer = TokenizerFiles(tokenizer_json="{}", mask_token=mask_token)
    return Client(Ready(task=task, tokenizer=tokenizer, **{**known, **facts}))


def config(**settings: Any) -> ServeConfig:
    return ServeConfig(models=(ModelConfig(name="a", path="a"),), **settings)


def curl_of(text: str) -> tuple[str, Any]:
    """The URL and the parsed body of the command in the banner."""
    words = shlex.split(text[text.index("curl ") : text.rindex("\n")].replace("\\\n", " "))
    return next(word for word in words if word.startswith("http")), json.loads(words[words.index("-d") + 1])


def test_the_banner_names_each_model_with_its_task_place_and_memory():
    text = banner(config(), {"chat": client("generate", kv_cache_bytes=3 * 1024**3), "mood": client("classify")})
    (chat,) = [line for line in text.splitlines() if " chat " in line]
    for fact in (
        "/generate",
        "135 M parameters",
        "generic on cpu in float32",
        "512 MiB + 3.0 GiB KV cache",
        "512 tokens",
    ):
        assert fact in chat
    assert "/classify  mood" in text
    for path in ("/docs", "/info", "/metrics"):
        assert f"http://127.0.0.1:8000{path}" in text


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:81"), ("0.0.0.0", "http://127.0.0.1:81"), ("::", "http://[::1]:81")],
)
def test_the_command_to_paste_fits_host_port_and_what_is_served(host: str, url: str):
    address, body = curl_of(banner(config(host=host, port=81), {"a": client("ner"), "b": client("generate")}))
    assert address == url + "/generate"
    assert body["stream"] is True
    address, body = curl_of(banner(config(host=host, port=81), {"a": client("fill-mask", mask_token="<mask>")}))
    assert address == url + "/fill-mask"
    assert "<mask>" in body["inputs"]


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True)]
)
def test_listening_beyond_this_machine_is_warned_of(host: str, warned: bool):
    assert ("WARNING" in banner(config(host=host), {"a": client("ner")})) is warned


def test_a_models_attribution_is_shown():
    text = banner(config(), {"a": client("ner", attribution="Somebody, CC BY 4.0")})
    assert "Somebody, CC BY 4.0" in text
