"""No field of a body disappears, in any dialect: each one changes what happens, or is refused by name.

Every field that a body's class names, and every one of its ``parameters``, is set to other values. One of them must
change the answer or what the worker is asked for, or be refused by the field's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from server.api.app import ROUTERS
from server.protocol import Generate, Tokens
from tests.api.embed_app import embed_worker
from tests.api.openai import tool_templates
from tests.api.openai.fronts import tells
from tests.api.scripted import ScriptedWorker, Step, ready
from tests.encoder_app import client_of, tiny_worker
from tests.option_examples import EXAMPLES

SAID = '<think>\nHm.\n</think>\n\nThe mill<s> runs. <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
LONG = "the old stone bridge in Chicago " * 40
USER = [{"role": "user", "content": "Hello"}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
NLI = {"candidate_labels": ["a letter", "a journey"]}

BASES: dict[str, list[dict[str, Any]]] = {
    "GenerateRequest": [{"inputs": "Hello mill"}, {"messages": USER}],
    "ClassifyRequest": [{"inputs": ["Alice met Bob"]}, {"input": "Alice met Bob"}, {}],
    "NerRequest": [{"inputs": LONG}, {"inputs": "Alice met Bob in Chicago"}, {}],
    "FillMaskRequest": [{"inputs": "Alice met [MASK]"}],
    "EmbedBody": [{"inputs": LONG}, {"inputs": "Alice"}, {"inputs": LONG, "truncate": True}],
    "SimilarityBody": [
        {"inputs": {"source_sentence": "Alice", "sentences": [LONG]}},
        {"inputs": {"source_sentence": "Alice", "sentences": [LONG]}, "parameters": {"truncate": True}},
    ],
    "PredictBody": [{"inputs": LONG}, {"inputs": "Alice"}, {"inputs": LONG, "truncate": True}],
    "ZeroShotRequest": [{"inputs": "Alice", "parameters": NLI}, {"inputs": LONG, "parameters": NLI}],
    "RerankBody": [
        *({"query": "Who?", name: ["Alice", text]} for name in ("texts", "documents") for text in ("Bob", LONG)),
        {"query": "Who?", "documents": ["Alice", LONG], "truncate": True},
        {"query": "Who?", "documents": ["Alice", LONG], "truncate_prompt_tokens": 9},
    ],
    "ScoreBody": [
        {"text_1": "Who?", "text_2": "Bob"},
        {"queries": "Who?", "documents": LONG},
        {"queries": "Who?", "documents": LONG, "truncate_prompt_tokens": 9},
    ],
    "TokenizeBody": [{"prompt": "Hello mill"}, {"messages": USER}, {}, {"prompt": "Hello", "model": "nli"}],
    "DetokenizeBody": [{"tokens": [60, 61]}],
    "EmbeddingsBody": [{"input": LONG}, {"input": "Alice"}, {"input": LONG, "truncate_prompt_tokens": 9}],
    "ClassifyBody": [{"input": LONG}, {"input": "Alice"}, {"input": LONG, "truncate_prompt_tokens": 9}],
    "ChatBody": [
        {"messages": USER},
        {"messages": USER, "tools": TOOLS},
        {"messages": USER, "logprobs": True},
        {"messages": [*USER, {"role": "assistant", "content": "The"}]},
        {"messages": USER, "stream": True},
        {"messages": USER, "stop": ["runs"]},
    ],
    "CompletionBody": [
        {"prompt": "Hello mill"},
        {"prompt": "Hello", "logprobs": 1},
        {"prompt": "Hello", "stream": True},
        {"prompt": "Hello", "stop": ["runs"]},
    ],
    "ResponsesBody": [
        {"input": "Hello"},
        {"input": "Hello", "stop": ["runs"]},
        {"input": "Hello", "tools": [{"type": "function", **FUNCTION}]},
    ],
    "MessagesBody": [
        {"messages": USER, "max_tokens": 90},
        {"messages": USER, "max_tokens": 90, "stop": ["runs"]},
        {"messages": USER, "max_tokens": 90, "tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]},
    ],
}
"""Bodies to which a field is added, by the body's class; a field that goes with one of them may not go with another."""

VALUES: dict[str, list[Any]] = {
    "messages": [[{"role": "user", "content": "Bye"}]],
    "inputs": ["Alice met Carol [MASK]", {"source_sentence": "Bob", "sentences": ["Alice"]}],
    "model": ["nowhere"],
    "stop": [["mill"]],
    "stride": [5],
    "do_sample": [False, True],
    "min_length": [80],
    "stop_sequences": [["mill"]],
    "max_time": [0.0, -1.0],
    "stream_options": [{"include_usage": True}],
    "response_format": [{"type": "json_object"}],
    "structured_outputs": [{"regex": "a+"}],
    "guided_json": [{"type": "object"}],
    "guided_choice": [["a", "b"]],
    "tools": [TOOLS, [{"type": "function", **FUNCTION}], [{"name": "g", "input_schema": {"type": "object"}}]],
    "tool_choice": ["none", {"type": "none"}],
    "text": [{"format": {"type": "json_object"}}],
    "output_config": [{"format": {"type": "json_schema", "schema": {"type": "object"}}}],
    "thinking": [{"type": "disabled"}, {"type": "enabled"}],
    "reasoning": [{"effort": "none"}],
    "chat_template_kwargs": [{"enable_thinking": False}],
    "truncate_prompt_tokens": [5],
    "documents": [["Carol", "Dave"], "Carol"],
    "texts": [["Carol", "Dave"]],
    "tokens": [[70, 71]],
    "examples": [[{"a": 1}]],
    "variables": [{"a": 1}],
    "prompt_logprobs": [1],
    "top_logprobs": [3],
    "top_n": [1],
    "candidate_labels": [["a", "b"]],
    "targets": [["alice"], ["the"]],
    "aggregation_strategy": ["none", "max"],
    "ignore_labels": [["O"], ["B-PER"], []],
    "penalty_alpha": [0.6],
    "adapter_id": ["a"],
    "watermark": [True],
    "hypothesis_template": ["It is {}."],
    "metadata": [{"a": "b"}],
    "chat_template": ["{{ messages }}"],
}
"""Values of fields for which none can be made from their type."""

SCRIPT = tells(SAID)


def says(command: Generate) -> Iterator[Step]:
    """The same text in every output, with the log-probabilities that are asked for."""
    for step in SCRIPT(command):
        assert isinstance(step, Tokens)
        outputs = range(command.params.num_return_sequences)
        yield [msgspec.structs.replace(step, index=index) for index in outputs]


@pytest.fixture(scope="module")
def worker() -> ScriptedWorker:
    described = ready(max_model_len=512)
    files = msgspec.structs.replace(described.tokenizer, chat_template=tool_templates.QWEN)
    return ScriptedWorker(says, msgspec.structs.replace(described, tokenizer=files))


@pytest.fixture(scope="module")
def client(worker: ScriptedWorker) -> Iterator[TestClient]:
    encoders = [
        tiny_worker("nli", "bert", "classify", labels=("contradiction", "neutral", "entailment")),
        tiny_worker("ranker", "bert", "classify", labels=("relevance",)),
        tiny_worker("names", "bert", "ner"),
        tiny_worker("masks", "bert", "fill-mask"),
        embed_worker(prompts={"query": "question: "}),
    ]
    served: Any = worker
    with client_of(served, *encoders) as client:
        yield client
        assert client.portal is not None
        client.portal.call(client.app.state.registry.services.close)  # type: ignore[attr-defined]


def fields() -> Iterator[Any]:
    """Every field of every route's body, and of the object ``parameters`` in it."""
    seen = set()
    for _, router in ROUTERS:
        for route in router.routes:
            body_field = getattr(route, "body_field", None)
            if body_field is None or (body := body_field.field_info.annotation).__name__ in seen:
                continue
            seen.add(body.__name__)
            for name, info in body.model_fields.items():
                (parameters, *_) = [*models(info.annotation), None] if name == "parameters" else [None]
                inner = parameters.model_fields if parameters is not None else {}
                places = (
                    [(name, info.annotation)]
                    if not inner
                    else [(f"{name}.{n}", i.annotation) for n, i in inner.items()]
                )
                for place, annotation in places:
                    yield pytest.param(route.path, body, place, annotation, id=f"{body.__name__}-{place}")


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models(argument)]


def values_of(name: str, annotation: Any) -> list[Any]:
    """Some that a field may have."""
    if name in VALUES:
        return VALUES[name]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return values_of(name, get_args(annotation)[0])
    made = {bool: [True, False], int: [3, 1, 2], float: [0.7, 0.5], str: ["mill", "query"], list: [[60]]}
    found = made.get(annotation) or made.get(get_origin(annotation)) or []
    return [*found, *(value for argument in get_args(annotation) for value in values_of("", argument))]


def outcome(client: TestClient, worker: ScriptedWorker, path: str, body: dict[str, Any]) -> tuple[Any, str | None]:
    """All that was answered and asked of the worker but what differs every time, and the field that is refused."""
    first = len(worker.commands)
    response = client.post(path, json=body)
    assert response.status_code < 500, response.text
    asked = [msgspec.structs.replace(command, request_id="") for command in worker.commands[first:]]
    said = [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith(("data: {", "{", "["))
    ]
    refused = said[0]["error"]["param"] if response.status_code >= 400 else None
    return (response.status_code, [steady(part) for part in said], asked), refused


VARYING = {"id", "created", "created_at", "completed_at", "timings", "item_id", "request_id", "call_id", "signature"}


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: steady(part) for name, part in value.items() if name not in VARYING}
    return [steady(part) for part in value] if isinstance(value, list) else value


def with_field(base: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    outer, dot, inner = place.partition(".")
    return {**base, outer: {**base.get(outer, {}), inner: value}} if dot else {**base, outer: value}


def pairs(body: type[BaseModel], place: str, annotation: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A body without the field, and one with it."""
    name = place.rpartition(".")[2]
    if body.__name__ not in TEXT_BODIES:
        for base in BASES[body.__name__]:
            for value in values_of(name, annotation):
                yield base, with_field(base, place, value)
        return
    is_native = body.__name__ == "GenerateRequest"
    examples = {} if name in VALUES else EXAMPLES.get(name, {})
    # On other routes what is told has fields of its own.
    needed = {k: v for k, v in {"seed": 5, **examples}.items() if k != name and (is_native or k != "details")}
    if body.__name__ == "MessagesBody" and "max_new_tokens" in needed:
        needed["max_tokens"] = needed.pop("max_new_tokens")
    for base in BASES[body.__name__]:
        for other, value in needed.items():
            base = with_field(base, f"parameters.{other}" if is_native else other, value)
        for value in [examples[name]] if name in examples else values_of(name, annotation):
            yield base, with_field(base, place, value)


TEXT_BODIES = {"GenerateRequest", "ChatBody", "CompletionBody", "ResponsesBody", "MessagesBody"}


@pytest.mark.parametrize(("path", "body", "place", "annotation"), list(fields()))
def test_every_field_has_an_effect_or_is_refused_by_name(
    client: TestClient, worker: ScriptedWorker, path: str, body: type[BaseModel], place: str, annotation: Any
) -> None:
    name = body.model_fields[place].alias or place if place in body.model_fields else place
    for without, with_it in pairs(body, name, annotation):
        plain, _ = outcome(client, worker, path, without)
        changed, refused = outcome(client, worker, path, with_it)
        if refused is not None and plain[0] == 200:
            assert refused.partition(".")[0] in with_it, (with_it, changed)
        if changed != plain:
            return
    raise AssertionError(f"nothing reads {name}")
