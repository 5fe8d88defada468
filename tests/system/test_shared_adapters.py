"""Adapters beside their base in a real server: one worker for what can be shared, each name its own texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.commands.processes import called
from tests.conftest import TINY_SETTINGS
from tests.fuzz.scale import SCALE
from tests.server_process import ServerProcess, running_server
from tests.system.clients import TIMEOUT_S, Killer, body, eventually, generate_all
from tests.tiny_adapters import peft_model, peft_tokens, write_tiny_adapters
from tests.tiny_models import tiny_tokenizer, write_tiny_decoder

PROMPT = "The river runs past the mill and the miller counts"
SHARED = {"tuned": "lora", "sized": "dora", "scaled": "ia3", "prompted": "prompt", "prefixed": "prefix"}
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = write_tiny_decoder(root / "base", "qwen3")
    kinds = {**SHARED, "whole": "saved norms"}
    return {"base": base, **write_tiny_adapters(root, base, kinds, "qwen3")}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[ServerProcess]:
    flags = [flag for name, folder in folders.items() for flag in ("--model", f"{name}={folder}")]
    with running_server(*flags, *TINY_SETTINGS) as process:
        yield process


def requests(names: list[str], **parameters: Any) -> list[dict[str, Any]]:
    return [
        {**body(PROMPT, **{"stream": True, "max_new_tokens": NUM_TOKENS, **parameters}), "model": name}
        for name in names
    ]


def test_each_name_gives_the_tokens_of_its_adapter(server: ServerProcess, folders: dict[str, Path]) -> None:
    names = [name for name in folders for _ in range(2)]
    outcomes = asyncio.run(generate_all(server.url, requests(names)))
    ids = tiny_tokenizer()(PROMPT)["input_ids"]
    expected = {name: peft_tokens(peft_model(folders["base"], folders[name]), ids, NUM_TOKENS) for name in folders}
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome.token_ids == expected[name], name


def test_adapters_share_one_worker_and_the_others_have_their_own(server: ServerProcess) -> None:
    assert len(server.worker_pids()) == 2
    infos = json.loads(server.get("/info")[1])["models"]
    shares = {each["name"]: each.get("shares_worker_of") for each in infos}
    assert shares == {"base": None, **dict.fromkeys(SHARED, "base"), "whole": None}
    assert all(each["adapter_bytes"] > 0 for each in infos if each["name"] in SHARED)
    listed = json.loads(server.get("/v1/models")[1])["data"]
    assert {each["id"]: each["parent"] for each in listed} == {
        "base": None,
        **dict.fromkeys([*SHARED, "whole"], "base"),
    }


def test_three_killed_workers_change_no_token_of_any_adapter(server: ServerProcess) -> None:
    names = ["base", *SHARED] * (4 * SCALE)
    long = requests(names, max_new_tokens=300)
    undisturbed = asyncio.run(generate_all(server.url, long))
    killer = Killer(server, "base", *(part * len(names) for part in (40, 110, 180)))
    disturbed = asyncio.run(generate_all(server.url, long, killer))
    assert eventually(lambda: server.get("/readyz")[0] == 200)
    assert len(killer.killed) == 3 and server.worker_pid("base") not in killer.killed
    assert [outcome.token_ids for outcome in disturbed] == [outcome.token_ids for outcome in undisturbed]
    assert all(outcome.is_whole for outcome in disturbed)


def test_the_plan_says_which_adapters_share_a_worker_and_why_not(folders: dict[str, Path]) -> None:
    flags = [f"{name}={folder}" for name, folder in folders.items()]
    done = called("plan", *flags, *TINY_SETTINGS, "--json")
    plans = {plan["name"]: plan for plan in json.loads(done.stdout)["models"]}
    assert {name: plan["shares_worker_of"] for name, plan in plans.items() if name in SHARED} == dict.fromkeys(
        SHARED, "base"
    )
    assert plans["whole"]["shares_worker_of"] is None
    problem = "it brings model.layers.0.self_attn.q_norm whole, which is no linear layer"
    assert plans["whole"]["not_shared_because"] == problem
    assert plans["tuned"]["needed_bytes"] < plans["base"]["needed_bytes"] / 10
    told = called("plan", *flags, *TINY_SETTINGS).stdout
    assert "worker    that of base, with its KV cache" in told
    assert f"worker    its own, with a merged copy of the base: {problem}" in told


def test_an_unknown_name_is_refused(server: ServerProcess) -> None:
    response = httpx2.post(f"{server.url}/generate", json=requests(["nobody"])[0], timeout=TIMEOUT_S)
    assert response.status_code == 404
