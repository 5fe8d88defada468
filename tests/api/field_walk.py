"""Bodies that differ in one field, sent to a model that always says the same, and what the field changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from pydantic import BaseModel
from starlette.testclient import TestClient

from server.protocol import Generate, Tokens
from tests.api.openai import tool_templates
from tests.api.openai.fronts import tells
from tests.api.scripted import ScriptedWorker, Step, ready

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
SAID = f"<think>\nHm.\n</think>\n\nThe mill<s> runs. {CALL}\n{CALL}"
USER = [{"role": "user", "content": "Hello"}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]

VALUES: dict[str, list[Any]] = {
    "messages": [[{"role": "user", "content": "Bye"}]],
    "src_lang": ["fr"],
    "source": ["fr"],
    "target": ["fr"],
    "format": ["html"],
    "truncation": ["only_second"],
    "generate_parameters": [{"max_new_tokens": 2}],
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
    "adapters": [[{"name": "a"}]],
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


def scripted_worker(chat_template: str = tool_templates.QWEN, max_model_len: int = 512) -> ScriptedWorker:
    described = ready(max_model_len=max_model_len)
    files = msgspec.structs.replace(described.tokenizer, chat_template=chat_template)
    return ScriptedWorker(says, msgspec.structs.replace(described, tokenizer=files))


class Outcome(NamedTuple):
    """All that was answered and asked of the worker but what differs every time."""

    status: int
    said: list[Any]
    asked: list[Generate]
    refused: str | None
    """The field that the error names."""
    ignored: str
    """The fields that the answer's header names."""


class Walk:
    """A client and the worker behind it. A body is sent once, however often it is compared."""

    def __init__(self, client: TestClient, *workers: ScriptedWorker) -> None:
        self.client = client
        self.workers = workers
        self._found: dict[str, Outcome] = {}

    def outcome(self, path: str, body: dict[str, Any]) -> Outcome:
        key = json.dumps([path, body])
        if key not in self._found:
            self._found[key] = self._send(path, body)
        return self._found[key]

    def _send(self, path: str, body: dict[str, Any]) -> Outcome:
        first = [len(worker.commands) for worker in self.workers]
        response = self.client.post(path, json=body)
        assert response.status_code < 500, response.text
        asked = [
            msgspec.structs.replace(command, request_id="")
            for worker, start in zip(self.workers, first, strict=True)
            for command in worker.commands[start:]
        ]
        said = [
            json.loads(line.removeprefix("data: "))
            for line in response.text.splitlines()
            if line.startswith(("data: {", "{", "["))
        ]
        refused = _refused(said[0]["error"], body) if response.status_code >= 400 else None
        ignored = response.headers.get("x-ignored-fields", "")
        return Outcome(response.status_code, [steady(part) for part in said], asked, refused, ignored)


def _refused(error: Any, body: dict[str, Any]) -> str | None:
    """The field that an error names; one that is only a sentence names it in its words."""
    if isinstance(error, str):
        return next((name for name in body if name in error.split()), None)
    param: str | None = error["param"]
    return param


VARYING = {"id", "created", "created_at", "completed_at", "timings", "item_id", "request_id", "call_id", "signature"}


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: steady(part) for name, part in value.items() if name not in VARYING}
    return [steady(part) for part in value] if isinstance(value, list) else value


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
