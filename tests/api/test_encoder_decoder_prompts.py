"""Encoder-decoder models on the routes of other dialects: what counts as their prompt, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient

from server import metrics
from server.protocol import Generate, PromptContext, SamplingParams, Tokens
from server.serving.prompt import Prompt
from tests.api.scripted import END_ID, MILL, TOKENIZER, ScriptedWorker, Step
from tests.api.translators import serving, translator
from tests.sandbox.chat_templates import CHATML
from tests.tiny_tokenizers import tokenizer_files

TEXT = "The mill is old."
IDS = TOKENIZER.encode(TEXT).ids
FILES = replace(tokenizer_files("byte_level"), chat_template=CHATML)
TURNS = [{"role": "user", "content": TEXT}]


def all_cached(command: Generate) -> Iterator[Step]:
    """Answers with a word; the source was read before."""
    yield Tokens(command.request_id, [MILL], None, None, len(command.source_ids))
    yield Tokens(command.request_id, [END_ID], "stop")


@pytest.fixture
def worker() -> ScriptedWorker:
    return translator("bart", None, all_cached, tokenizer=FILES)


@pytest.fixture
def client(worker: ScriptedWorker) -> Iterator[TestClient]:
    with serving(worker) as client:
        yield client


def sent(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json={"model": "bart", **body})
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize(
    ("path", "body", "counts"),
    [
        ("/v1/completions", {"prompt": TEXT}, ("prompt_tokens", "prompt_tokens_details")),
        ("/v1/chat/completions", {"messages": TURNS}, ("prompt_tokens", "prompt_tokens_details")),
        ("/v1/responses", {"input": TEXT}, ("input_tokens", "input_tokens_details")),
    ],
)
def test_openais_usage_counts_the_source(
    path: str, body: dict[str, Any], counts: tuple[str, str], client: TestClient, worker: ScriptedWorker
) -> None:
    usage = sent(client, path, **body)["usage"]
    num_source = len(worker.commands[0].source_ids)
    assert num_source > 1
    assert (usage[counts[0]], usage[counts[1]]["cached_tokens"]) == (num_source, num_source)
    assert usage["total_tokens"] == num_source + 2


def test_anthropics_usage_counts_the_source_that_was_not_cached(client: TestClient, worker: ScriptedWorker) -> None:
    usage = sent(client, "/v1/messages", max_tokens=9, messages=TURNS)["usage"]
    num_source = len(worker.commands[0].source_ids)
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (0, num_source)
    assert sent(client, "/v1/messages/count_tokens", messages=TURNS) == {"input_tokens": num_source}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": TEXT}), ("/v1/chat/completions", {"messages": TURNS})]
)
def test_the_ids_of_the_prompt_are_the_sources(
    path: str, body: dict[str, Any], client: TestClient, worker: ScriptedWorker
) -> None:
    answer = sent(client, path, return_token_ids=True, **body)
    ids = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
    assert ids == worker.commands[0].source_ids


def test_metrics_count_the_source(client: TestClient, worker: ScriptedWorker) -> None:
    def total() -> float:
        return metrics.REGISTRY.get_sample_value("sluice_request_prompt_tokens_sum", labels) or 0.0

    labels = {"model": "bart", "task": "generate"}
    before = total()
    sent(client, "/v1/completions", prompt=TEXT)
    assert total() - before == len(worker.commands[0].source_ids)


def test_the_source_is_part_of_a_prompts_cost() -> None:
    params = SamplingParams(max_new_tokens=7)
    assert Prompt(text="", ids=[0], params=params, context=PromptContext(source_ids=IDS)).cost == len(IDS) + 1 + 7


@pytest.mark.parametrize(
    "option", ["guidance_scale = 1.5", "return_full_text = true", 'negative_prompt = "x"'], ids=str
)
def test_what_a_template_sets_and_the_model_cannot_do_is_refused(
    option: str, worker: ScriptedWorker, tmp_path: Path
) -> None:
    (tmp_path / "hello.toml").write_text(f'task = "generate"\ntext = "Hello"\n[parameters]\n{option}\n')
    with serving(worker, templates=str(tmp_path)) as client:
        error = sent(client, "/generate", 422, template="hello")["error"]
    assert error["code"] == "unsupported_value"
    assert error["message"].startswith(option.split()[0])
    assert not worker.commands


def test_guidance_that_the_model_sets_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    worker = translator("bart", None, generation_config={"guidance_scale": 1.5, "num_beams": 2})
    with serving(worker) as client:
        sent(client, "/generate", inputs=TEXT)
    assert (worker.commands[0].params.guidance_scale, worker.commands[0].params.num_beams) == (1.0, 2)
    assert "generation_config.json is ignored in part: guidance_scale" in caplog.text


def test_echo_is_refused(client: TestClient, worker: ScriptedWorker) -> None:
    error = sent(client, "/v1/completions", 400, prompt=TEXT, echo=True)["error"]
    assert (error["param"], error["code"]) == ("echo", "unsupported_value")
    assert not worker.commands
    assert sent(client, "/v1/completions", prompt=TEXT, echo=False)["choices"]


@pytest.mark.parametrize("name", ["decoder_input_ids", "decoder_inputs", "target_prefix"])
@pytest.mark.parametrize("path", ["/generate", "/translate", "/summarize"])
def test_an_output_that_the_client_begins_is_refused_by_name(
    path: str, name: str, client: TestClient, worker: ScriptedWorker
) -> None:
    error = sent(client, path, 422, inputs=TEXT, parameters={name: [5, 6]})["error"]
    assert error["param"] == f"parameters.{name}"
    assert not worker.commands
