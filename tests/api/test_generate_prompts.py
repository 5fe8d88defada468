"""Prompts from templates and messages, and what is checked and expanded before a worker sees a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from server.protocol import Generate
from tests.api.scripted import TOKENIZER, ScriptedWorker, ready, says
from tests.encoder_app import client_of
from tests.sandbox.chat_templates import CHATML

TEXT = "The mill runs."
GREETING = """
task = "generate"
text = "Say hello to {{ who }} and {{ other }}!"
[variables.who]
[variables.other]
default = "the miller"
[parameters]
max_new_tokens = 9
stop = ["runs"]
repetition_penalty = 1.3
"""
CLASSIFYING = 'task = "classify"\ntext = "{{ text }}"\n[variables.text]\n'


class Front:
    """A client, and the commands that its requests became."""

    def __init__(self, client: TestClient, worker: ScriptedWorker) -> None:
        self.client = client
        self.worker = worker

    def post(self, *, status: int = 200, **body: Any) -> Any:
        response = self.client.post("/generate", json=body)
        assert response.status_code == status, response.text
        return response.json() if status == 200 else response.json()["error"]

    @property
    def command(self) -> Generate:
        return self.worker.commands[-1]


@contextmanager
def fronted(chat_template: str | None = None, **settings: Any) -> Iterator[Front]:
    described = ready()
    files = msgspec.structs.replace(described.tokenizer, chat_template=chat_template)
    worker = ScriptedWorker(says(TEXT), msgspec.structs.replace(described, tokenizer=files))
    served: Any = worker
    # One event loop for all requests: the sandbox's processes stay.
    with client_of(served, **settings) as client:
        try:
            yield Front(client, worker)
        finally:
            assert client.portal is not None
            client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("templates")
    (folder / "greeting.toml").write_text(GREETING)
    (folder / "greeting@2.toml").write_text(GREETING.replace("Say hello", "Wave"))
    (folder / "judge.toml").write_text(CLASSIFYING)
    with fronted(templates=str(folder)) as front:
        yield front


def decoded(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_a_template_makes_the_prompt_and_brings_its_parameters(templated: Front) -> None:
    answer = templated.post(
        template="greeting@1",
        variables={"who": "Ada"},
        parameters={"return_full_text": True, "return_parameters": True, "details": True, "max_new_tokens": 12},
    )
    text = "Say hello to Ada and the miller!"
    assert decoded(templated.command.prompt_ids) == text
    assert answer["generated_text"] == text + "The mill "
    details = answer["details"]
    assert details["template"] == "greeting@1"
    assert details["stop"] == "runs"
    assert details["parameters"]["max_new_tokens"] == {"value": 12, "origin": "request"}
    assert details["parameters"]["repetition_penalty"] == {"value": 1.3, "origin": "template"}
    assert templated.command.params.repetition_penalty == 1.3
    assert templated.command.template_spans == [], "penalties count the template, as in transformers"


def test_a_name_without_version_is_the_highest_one(templated: Front) -> None:
    templated.post(template="greeting", variables={"who": "Ada", "other": "Bob"})
    assert decoded(templated.command.prompt_ids) == "Wave to Ada and Bob!"
    assert templated.command.params.max_new_tokens == 9


def test_penalties_leave_out_the_templates_tokens_on_request(templated: Front) -> None:
    parameters = {"penalize_template": False}
    templated.post(template="greeting@1", variables={"who": "Ada", "other": "Bob"}, parameters=parameters)
    command = templated.command
    written = [decoded(command.prompt_ids[start:stop]) for start, stop in command.template_spans]
    assert "Ada" not in "".join(written) and "Bob" not in "".join(written)
    assert sum(len(text) for text in written) >= len("Say hello to  and !") - 4
    templated.post(
        template="greeting@1", variables={"who": "Ada", "other": "Bob"}, parameters={**parameters, "truncate": 6}
    )
    cut = templated.command
    assert cut.prompt_ids == command.prompt_ids[-6:]
    assert all(0 <= start < stop <= 6 for start, stop in cut.template_spans)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"template": "greeting"}, 422, None, ["who"]),
        ({"template": "greeting", "variables": {"who": "a", "whom": "b"}}, 422, None, ["whom"]),
        ({"template": "nothing"}, 404, "template", ["nothing"]),
        ({"template": "greeting", "variables": {"who": "mill " * 500}}, 422, "template", ["tokens", "at most"]),
        ({"template": "judge", "variables": {"text": "a"}}, 422, "template", ["classify"]),
        ({"template": "greeting", "variables": {"who": "a"}, "inputs": "a"}, 422, None, ["inputs", "template"]),
        ({"messages": [{"role": "user", "content": "a"}], "inputs": "a"}, 422, None, ["inputs", "messages"]),
        ({"inputs": "a", "variables": {"who": "a"}}, 422, None, ["variables", "template"]),
        ({"messages": [{"role": "user", "content": "a"}]}, 422, "messages", ["no chat template"]),
        ({}, 422, "inputs", ["inputs is required", "template", "messages"]),
    ],
)
def test_what_makes_no_prompt_is_refused_by_name(
    templated: Front, body: dict[str, Any], status: int, param: str | None, words: list[str]
) -> None:
    error = templated.post(status=status, **body)
    assert param is None or error["param"] == param
    assert all(word in error["message"] for word in words)


def test_messages_become_the_models_own_prompt() -> None:
    with fronted(CHATML) as front:
        messages = [{"role": "user", "content": "Who runs the mill?"}]
        assert front.post(messages=messages) == {"generated_text": TEXT}
        text = decoded(front.command.prompt_ids)
        assert "Who runs the mill?" in text and text.index("user") < text.index("Who") < text.rindex("assistant")
        assert front.post(messages=[], status=422)["param"] == "messages"


THINKING = "{% if enable_thinking %}Think! {% endif %}{{ messages[0].content }}"


def test_a_chat_template_takes_options_under_the_names_that_it_uses() -> None:
    messages = [{"role": "user", "content": "the mill"}]
    with fronted(THINKING) as front:
        front.post(messages=messages, chat_template_kwargs={"enable_thinking": True})
        assert decoded(front.command.prompt_ids) == "Think! the mill"
        front.post(messages=messages)
        assert decoded(front.command.prompt_ids) == "the mill"
        for options, words in [
            ({"thinking": True}, "enable_thinking"),
            ({"messages": "x"}, "'messages' is not an option"),
            ({"chat_template": "x"}, "'chat_template' is not an option"),
            ({"enable_thinking": []}, "must be a string"),
        ]:
            error = front.post(messages=messages, chat_template_kwargs=options, status=422)
            assert error["param"].startswith("chat_template_kwargs") and words in error["message"]
        error = front.post(inputs="a", chat_template_kwargs={"enable_thinking": True}, status=422)
        assert "chat_template_kwargs" in error["message"] and "messages" in error["message"]


def test_a_chat_template_of_the_requests_own_is_refused_by_name() -> None:
    with fronted(CHATML) as front:
        error = front.post(messages=[{"role": "user", "content": "a"}], chat_template="{{ x }}", status=422)
    assert (error["param"], error["code"]) == ("chat_template", "unsupported_value")


def test_a_prompt_that_takes_too_long_to_render_is_refused_by_the_fields_name() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"
    with fronted(endless) as front:
        error = front.post(messages=[{"role": "user", "content": "a"}], status=422)
    assert error["param"] == "messages" and error["message"].startswith("messages cannot be rendered. It exceeds")


def test_a_salt_goes_to_the_worker_and_is_limited() -> None:
    with fronted() as front:
        front.post(inputs="a", cache_salt="s" * 64)
        assert front.command.cache_salt == "s" * 64
        error = front.post(inputs="a", cache_salt="s" * 65, status=422)
        assert error["param"] == "cache_salt" and "64" in error["message"]


def test_a_grammar_is_tried_before_the_response_starts() -> None:
    with fronted() as front:
        front.post(inputs="a", parameters={"grammar": {"type": "regex", "value": "[a-z]+"}})
        assert front.command.params.grammar is not None and "[a-z]+" in front.command.params.grammar
        num_commands = len(front.worker.commands)
        for stream in (False, True):
            error = front.post(
                inputs="a", stream=stream, status=422, parameters={"grammar": {"type": "regex", "value": "[a-z"}}
            )
            assert "regex" in error["message"] or "grammar" in error["message"]
        assert len(front.worker.commands) == num_commands


def test_a_topic_is_the_operators_list_of_phrases(tmp_path: Path) -> None:
    (tmp_path / "water.txt").write_text("river\nmill race\n", encoding="utf-8")
    with fronted(topics=str(tmp_path)) as front:
        topics = front.client.app.front.registry.services.topics  # type: ignore[attr-defined]
        topics.load()
        penalties = [{"topic": "water", "strength": 2.5}, {"phrase": "sack", "strength": 1.0}]
        front.post(inputs="a", parameters={"penalties": penalties})
        assert dict(front.command.params.phrase_penalties) == {"river": 2.5, "mill race": 2.5, "sack": 1.0}
        unknown = [{"topic": "fire", "strength": 1.0}]
        error = front.post(inputs="a", parameters={"penalties": unknown}, status=422)
        assert error["param"] == "parameters.penalties" and "fire" in error["message"] and "water" in error["message"]
        assert [topic["name"] for topic in front.client.get("/info").json()["topics"]] == ["water"]


def test_a_negative_prompt_goes_to_the_worker_as_tokens_and_must_fit() -> None:
    with fronted() as front:
        parameters = {"guidance_scale": 1.5, "negative_prompt": "The river", "max_new_tokens": 5}
        front.post(inputs="a", parameters=parameters)
        assert front.command.negative_prompt_ids == TOKENIZER.encode("The river").ids
        parameters["negative_prompt"] = "The river " * 100
        error = front.post(inputs="a", parameters=parameters, status=422)
        assert error["param"] == "parameters.negative_prompt"
