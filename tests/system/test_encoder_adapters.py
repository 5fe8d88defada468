"""Classifiers, taggers and others as adapters of one encoder in a real server with one worker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.commands.processes import called
from tests.server_process import ServerProcess, running_server
from tests.system.clients import TIMEOUT_S, eventually
from tests.tiny_encoder_adapters import peft_logits, write_encoder_adapter, write_tiny_base
from tests.tiny_encoders import tiny_tokenizer

TEXT = "My name is Maria Gonzalez and I live at 742 Evergreen Terrace."
ADAPTERS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "mood": ("classify", "lora", ("bad", "good")),
    "topic": ("classify", "ia3", ("sports", "politics", "arts", "trade")),
    "relevance": ("classify", "dora", ("relevant",)),
    "names": ("ner", "lora", ("O", "B-PER", "I-PER")),
    "answers": ("question-answering", "lora", ("start", "end")),
}
"""Name -> task, kind and labels."""
COLOURS = ("red", "blue")
SETTINGS = ("--threads", "1", "--restart-backoff-s", "0")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = write_tiny_base(root / "base", "bert")
    write_encoder_adapter(root / "later" / "colours", base, "lora", "bert", "classify", COLOURS, len(ADAPTERS))
    return {"base": base} | {
        name: write_encoder_adapter(root / name, base, kind, "bert", task, labels, seed)
        for seed, (name, (task, kind, labels)) in enumerate(ADAPTERS.items())
    }


@pytest.fixture(scope="module")
def flags(folders: dict[str, Path]) -> list[str]:
    return [word for name, folder in folders.items() for word in ("--model", f"{name}={folder}")]


@pytest.fixture(scope="module")
def server(flags: list[str]) -> Iterator[ServerProcess]:
    later = ("--adapters", str(Path(flags[1].partition("=")[2]).parent / "later"))
    with running_server(*flags, *later, *SETTINGS) as process:
        yield process


def post(server: ServerProcess, route: str, /, **body: Any) -> Any:
    response = httpx2.post(f"{server.url}{route}", json=body, timeout=TIMEOUT_S)
    assert response.status_code == 200, response.text
    return response.json()


def answers(server: ServerProcess) -> dict[str, Any]:
    """Of every name, on its own route."""
    question = {"question": "Who lives there?", "context": TEXT}
    return {
        "base": post(server, "/v1/embeddings", model="base", input=TEXT)["data"],
        "mood": post(server, "/classify", model="mood", inputs=TEXT),
        "topic": post(server, "/classify", model="topic", inputs=TEXT),
        "relevance": post(server, "/rerank", model="relevance", query="Who?", documents=[TEXT, "x"])["results"],
        "names": post(server, "/ner", model="names", inputs=TEXT),
        "answers": post(server, "/question-answering", model="answers", inputs=question),
    }


def test_all_names_are_served_by_one_worker(server: ServerProcess) -> None:
    assert len(server.worker_pids()) == 1
    infos = {each["name"]: each for each in json.loads(server.get("/info")[1])["models"]}
    assert {name: infos[name]["task"] for name in ADAPTERS} == {name: task for name, (task, *_) in ADAPTERS.items()}
    assert all(infos[name]["shares_worker_of"] == "base" and infos[name]["adapter_bytes"] for name in ADAPTERS)
    assert infos["topic"]["labels"] == list(ADAPTERS["topic"][2])
    listed = json.loads(server.get("/v1/models")[1])["data"]
    assert {each["id"]: each["parent"] for each in listed} == {"base": None, **dict.fromkeys(ADAPTERS, "base")}
    table = called("models", "--url", server.url).stdout
    assert table.count("adapter of base") == len(ADAPTERS)


def test_each_classifier_gives_the_scores_of_peft(server: ServerProcess, folders: dict[str, Path]) -> None:
    encoding = tiny_tokenizer("wordpiece")(TEXT)
    for name in ("mood", "topic"):
        _, _, labels = ADAPTERS[name]
        logits = peft_logits(
            folders["base"], folders[name], "classify", encoding["input_ids"], len(labels), encoding["token_type_ids"]
        )
        expected = dict(zip(labels, logits.softmax(-1).tolist(), strict=True))
        found = {each["label"]: each["score"] for each in post(server, "/classify", model=name, inputs=TEXT)[0]}
        assert found == pytest.approx(expected, abs=1e-4)


def test_an_adapter_is_unknown_to_routes_of_other_tasks(server: ServerProcess) -> None:
    for path, name in (("/ner", "mood"), ("/classify", "base"), ("/v1/embeddings", "names")):
        body = {"input" if path == "/v1/embeddings" else "inputs": TEXT, "model": name}
        assert httpx2.post(f"{server.url}{path}", json=body, timeout=TIMEOUT_S).status_code == 404


def test_a_killed_worker_changes_no_answer(server: ServerProcess) -> None:
    before = answers(server)
    pid = server.worker_pid("base")
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: server.get("/readyz")[0] == 200 and server.worker_pid("base") != pid)
    assert answers(server) == before


def test_requests_of_one_moment_get_what_each_gets_alone(server: ServerProcess) -> None:
    alone = {name: post(server, "/classify", model=name, inputs=TEXT) for name in ("mood", "topic")}
    names = [*alone] * 8
    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(lambda name: post(server, "/classify", model=name, inputs=[TEXT, "x"]), names))
    assert [each[0] for each in found] == [alone[name][0] for name in names]


def test_a_classifier_is_loaded_and_unloaded_while_the_server_runs(server: ServerProcess) -> None:
    loaded = post(server, "/admin/adapters", name="colours", path="colours")
    assert loaded["name"] == "colours"
    assert {each["label"] for each in post(server, "/classify", model="colours", inputs=TEXT)[0]} == set(COLOURS)
    assert httpx2.delete(f"{server.url}/admin/adapters/colours", timeout=TIMEOUT_S).status_code == 200
    body = {"model": "colours", "inputs": TEXT}
    assert httpx2.post(f"{server.url}/classify", json=body, timeout=TIMEOUT_S).status_code == 404


def test_the_plan_says_that_they_share_a_worker(flags: list[str]) -> None:
    words = [word for word in flags if word != "--model"]
    done = called("plan", *words, *SETTINGS, "--json")
    plans = {plan["name"]: plan for plan in json.loads(done.stdout)["models"]}
    assert {name: plan["shares_worker_of"] for name, plan in plans.items()} == {
        "base": None,
        **dict.fromkeys(ADAPTERS, "base"),
    }
    padded = called("plan", *words, *SETTINGS, "--executor", "compat").stdout
    assert padded.count("its own, with a merged copy of the base: texts are padded") == len(ADAPTERS)
