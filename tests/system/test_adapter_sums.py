"""A weighted sum of adapters for one request: what PEFT's ``add_weighted_adapter`` makes of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.clients import TIMEOUT_S
from tests.tiny_adapters import peft_tokens, quiet, write_tiny_adapters
from tests.tiny_models import tiny_tokenizer, write_tiny_decoder

PROMPT = "The river runs past the mill and the miller counts"
KINDS = {"first": "lora", "second": "patterns", "third": "lora bias", "sized": "dora", "prompted": "prompt"}
NUM_TOKENS = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = write_tiny_decoder(root / "base", "qwen3")
    return {"base": base, **write_tiny_adapters(root, base, KINDS, "qwen3")}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[ServerProcess]:
    flags = [flag for name, folder in folders.items() for flag in ("--model", f"{name}={folder}")]
    with running_server(*flags, *TINY_SETTINGS) as process:
        yield process


def added(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "weight": weight} for name, weight in pairs]


def ask(server: ServerProcess, adapters: Any, path: str = "/generate", **fields: Any) -> Any:
    parameters = {"adapters": adapters, "details": True, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    body = {"model": "base", "inputs": PROMPT, "parameters": parameters, **fields}
    return httpx2.post(f"{server.url}{path}", json=body, timeout=TIMEOUT_S)


def tokens(reply: Any) -> list[int]:
    assert reply.status_code == 200, reply.text
    return [token["id"] for token in reply.json()["details"]["tokens"]]


def expected(folders: Mapping[str, Path], *pairs: tuple[str, float]) -> list[int]:
    with quiet():
        module = AutoModelForCausalLM.from_pretrained(folders["base"], dtype=torch.float32)
        names = [name for name, _ in pairs]
        model = PeftModel.from_pretrained(module, folders[names[0]], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folders[name], adapter_name=name)
        # Of one adapter alone, PEFT counts the scale of rsLoRA twice.
        model.add_weighted_adapter(names, [weight for _, weight in pairs], "sum", combination_type="cat")
        model.set_adapter("sum")
    return peft_tokens(model.eval(), tiny_tokenizer()(PROMPT)["input_ids"], NUM_TOKENS)


@pytest.mark.parametrize(
    "pairs",
    [
        (("first", 1.0), ("second", 1.0)),
        (("first", 0.4), ("second", -0.7)),
        (("first", 0.5),),
        (("first", 0.6), ("second", 0.3), ("third", 0.0)),
    ],
)
def test_a_sum_gives_the_tokens_of_peft(
    server: ServerProcess, folders: dict[str, Path], pairs: tuple[tuple[str, float], ...]
) -> None:
    assert tokens(ask(server, added(*pairs))) == expected(folders, *pairs)


def test_neutral_weights_and_single_adapters_are_what_they_stand_for(server: ServerProcess) -> None:
    plain, first = (tokens(ask(server, None, model=name)) for name in ("base", "first"))
    assert tokens(ask(server, [])) == tokens(ask(server, added(("first", 0.0)))) == plain
    assert tokens(ask(server, [{"name": "first"}])) == tokens(ask(server, added(("first", 1), ("third", 0)))) == first
    assert plain != first


def test_a_sum_is_computed_again_after_a_crash(server: ServerProcess) -> None:
    pairs = added(("first", 0.8), ("third", 0.5))
    before = tokens(ask(server, pairs))
    pid = server.worker_pid("base")
    os.kill(pid, signal.SIGKILL)
    assert tokens(ask(server, pairs)) == before
    assert server.worker_pid("base") != pid


def test_chat_and_completions_take_a_sum(server: ServerProcess) -> None:
    pairs = added(("first", 1.0), ("second", 1.0))
    text = ask(server, pairs).json()["generated_text"]
    body = {"model": "base", "prompt": PROMPT, "adapters": pairs, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    reply = httpx2.post(f"{server.url}/v1/completions", json={**body, "temperature": 0}, timeout=TIMEOUT_S)
    assert reply.json()["choices"][0]["text"] == text
    del body["prompt"]
    chat = {**body, "messages": [{"role": "user", "content": PROMPT}]}
    reply = httpx2.post(f"{server.url}/v1/chat/completions", json=chat, timeout=TIMEOUT_S)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("adapters", "fields", "status", "word"),
    [
        (added(("first", 1), ("sized", 1)), {}, 422, "only LoRA without DoRA"),
        (added(("first", 1), ("prompted", 1)), {}, 422, "has virtual tokens"),
        (added(("first", 11)), {}, 422, "a weight from -10 to 10"),
        (added(("first", 1), ("first", 1)), {}, 422, "once"),
        (added(*[("first", 1)] * 9), {}, 422, "at most 8"),
        (added(("nobody", 1)), {}, 404, "nobody"),
        (added(("nobody", 1)), {}, 404, '"param": "parameters.adapters"'),
        (added(("first@00000000", 2)), {}, 404, '"param": "parameters.adapters"'),
        (added(("base", 2)), {}, 422, "must name adapters that share the worker of base"),
        (added(("second", 1)), {"model": "first"}, 422, "model must be the base"),
        ([{"name": "first", "wheight": 1}], {}, 422, "wheight"),
        ({"first": 1}, {}, 422, "adapters"),
    ],
)
def test_what_cannot_be_added_is_refused(
    server: ServerProcess, adapters: Any, fields: dict[str, Any], status: int, word: str
) -> None:
    reply = ask(server, adapters, **fields)
    assert reply.status_code == status, reply.text
    assert word in json.dumps(reply.json(), ensure_ascii=False)
