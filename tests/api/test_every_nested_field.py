"""No field of an object within a body disappears: it has an effect, is refused by name, or is named as ignored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from server.api.app import ROUTERS
from tests.api.field_walk import FUNCTION, TOOLS, USER, Walk, models, scripted_worker, values_of
from tests.api.openai import tool_templates
from tests.encoder_app import client_of, tiny_worker

CHAT, RESPONSES, MESSAGES, GENERATE = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/generate"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ASKED = {"type": "message", "role": "user", "content": "Hello"}
RESPONSES_TOOLS = [{"type": "function", **FUNCTION}, {"type": "function", "name": "g"}]
TWO_TOOLS = [*TOOLS, {"type": "function", "function": {"name": "g"}}]
MESSAGES_TOOLS = [{"name": "f", "input_schema": SCHEMA}, {"name": "g", "input_schema": SCHEMA}]
CALLED = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "1"}]}
NAMED = {"type": "function", "function": {"name": "f"}}

Place = tuple[str | int, ...]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": USER, "seed": 5, **fields}


def responses(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"input": [*items, ASKED], "seed": 5, **fields}


def anthropic(*blocks: dict[str, Any], role: str = "assistant", **fields: Any) -> dict[str, Any]:
    turns = [{"role": role, "content": list(blocks)}] if blocks else []
    return {"messages": [*turns, *USER], "max_tokens": 300, "seed": 5, **fields}


OBJECTS: dict[str, list[tuple[str, dict[str, Any], Place]]] = {
    "openai.schemas.ChatMessage": [
        (CHAT, chat(), ("messages", 0)),
        (CHAT, chat(messages=[{"role": "assistant", "content": "A", "tool_calls": [CALL]}, *USER]), ("messages", 0)),
    ],
    "openai.schemas.TextPart": [
        (
            CHAT,
            chat(messages=[{"role": "user", "content": [{"type": "text", "text": "A"}]}]),
            ("messages", 0, "content", 0),
        )
    ],
    "openai.schemas.MadeCall": [
        (CHAT, chat(messages=[{"role": "assistant", "tool_calls": [CALL]}, *USER]), ("messages", 0, "tool_calls", 0))
    ],
    "openai.schemas.CalledFunction": [
        (
            CHAT,
            chat(messages=[{"role": "assistant", "tool_calls": [CALL]}, *USER]),
            ("messages", 0, "tool_calls", 0, "function"),
        )
    ],
    "openai.schemas.Tool": [(CHAT, chat(tools=TOOLS), ("tools", 0))],
    "openai.schemas.ToolFunction": [(CHAT, chat(tools=TOOLS), ("tools", 0, "function"))],
    "openai.schemas.NamedTool": [(CHAT, chat(tools=TWO_TOOLS, tool_choice=NAMED), ("tool_choice",))],
    "openai.schemas.NamedFunction": [(CHAT, chat(tools=TWO_TOOLS, tool_choice=NAMED), ("tool_choice", "function"))],
    "openai.schemas.AllowedTools": [
        (
            CHAT,
            chat(
                tools=TWO_TOOLS,
                tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            ),
            place,
        )
        for place in [("tool_choice",)]
    ],
    "openai.schemas.AllowedNames": [
        (
            CHAT,
            chat(
                tools=TWO_TOOLS,
                tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            ),
            ("tool_choice", "allowed_tools"),
        )
    ],
    "openai.schemas.StreamOptions": [
        (CHAT, chat(stream=True, stream_options={}), ("stream_options",)),
        (CHAT, chat(stream=True, stream_options={"include_usage": True}), ("stream_options",)),
    ],
    "openai.schemas.ResponseFormat": [
        (
            CHAT,
            chat(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
            ("response_format",),
        ),
        (CHAT, chat(response_format={"type": "json_object"}), ("response_format",)),
    ],
    "openai.schemas.JsonSchema": [
        (
            CHAT,
            chat(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
            ("response_format", "json_schema"),
        )
    ],
    "openai.schemas.StructuredOutputs": [(CHAT, chat(structured_outputs={}), ("structured_outputs",))],
    "openai.responses_body.InputItem": [
        (RESPONSES, responses(ASKED), ("input", 0)),
        (RESPONSES, responses({"type": "reasoning", "summary": []}), ("input", 0)),
        (RESPONSES, responses({"type": "function_call", "call_id": "call_1", "name": "f"}), ("input", 0)),
        (RESPONSES, responses({"type": "function_call_output", "call_id": "call_1", "output": "1"}), ("input", 0)),
    ],
    "openai.responses_body.OutputPart": [
        (RESPONSES, responses({**ASKED, "content": [{"type": "input_text", "text": "A"}]}), ("input", 0, "content", 0)),
        (
            RESPONSES,
            responses({"type": "reasoning", "summary": [{"type": "summary_text", "text": "A"}]}),
            ("input", 0, "summary", 0),
        ),
    ],
    "openai.responses_body.TextConfig": [(RESPONSES, responses(text={}), ("text",))],
    "openai.responses_body.TextFormat": [
        (RESPONSES, responses(text={"format": {"type": "json_schema", "schema": SCHEMA}}), ("text", "format")),
        (RESPONSES, responses(text={"format": {"type": "json_object"}}), ("text", "format")),
    ],
    "openai.responses_body.FunctionTool": [(RESPONSES, responses(tools=RESPONSES_TOOLS), ("tools", 0))],
    "openai.responses_body.ChosenFunction": [
        (
            RESPONSES,
            responses(tools=RESPONSES_TOOLS, tool_choice={"type": "function", "name": "f"}),
            ("tool_choice",),
        )
    ],
    "openai.responses_body.AllowedTools": [
        (
            RESPONSES,
            responses(
                tools=RESPONSES_TOOLS,
                tool_choice={
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "f"}],
                },
            ),
            ("tool_choice",),
        )
    ],
    "openai.responses_body.ReasoningConfig": [(RESPONSES, responses(reasoning={}), ("reasoning",))],
    "anthropic.body.AnthropicMessage": [(MESSAGES, anthropic(), ("messages", 0))],
    "anthropic.body.TextBlock": [
        (MESSAGES, anthropic(system=[{"type": "text", "text": "A"}]), ("system", 0)),
        (MESSAGES, anthropic(RESULT, role="user"), ("messages", 0, "content", 0, "content", 0)),
    ],
    "anthropic.body.Block": [
        (MESSAGES, anthropic({"type": "text", "text": "A"}), ("messages", 0, "content", 0)),
        (MESSAGES, anthropic({"type": "thinking", "thinking": "A"}), ("messages", 0, "content", 0)),
        (MESSAGES, anthropic(CALLED), ("messages", 0, "content", 0)),
        (MESSAGES, anthropic(RESULT, role="user"), ("messages", 0, "content", 0)),
    ],
    "anthropic.body.AnthropicTool": [(MESSAGES, anthropic(tools=MESSAGES_TOOLS), ("tools", 0))],
    "anthropic.body.AnthropicChoice": [
        (MESSAGES, anthropic(tools=MESSAGES_TOOLS, tool_choice={"type": "auto"}), ("tool_choice",))
    ],
    "anthropic.body.Thinking": [(MESSAGES, anthropic(thinking={"type": "enabled"}), ("thinking",))],
    "anthropic.body.OutputConfig": [(MESSAGES, anthropic(output_config={}), ("output_config",))],
    "anthropic.body.OutputFormat": [
        (
            MESSAGES,
            anthropic(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
            ("output_config", "format"),
        )
    ],
    "schemas.Message": [(GENERATE, {"messages": USER}, ("messages", 0))],
    "schemas.Penalty": [
        (
            GENERATE,
            {"inputs": "A", "parameters": {"penalties": [{"phrase": "the mill", "strength": 4}]}},
            ("parameters", "penalties", 0),
        ),
    ],
    "schemas.RankBy": [
        (
            GENERATE,
            {
                "inputs": "A",
                "parameters": {"rank_by": {"model": "nli", "label": "entailment"}, "best_of": 4, "do_sample": True},
            },
            ("parameters", "rank_by"),
        ),
    ],
}
"""Where an object of each class stands: a route, a body, and the place in it."""

VALUES: dict[str, list[Any]] = {
    "content": ["Bye", [{"type": "text", "text": "Bye"}]],
    "output": ["2"],
    "summary": [[{"type": "summary_text", "text": "B"}]],
    "tool_calls": [[CALL]],
    "tools": [[], [{**NAMED, "function": {"name": "g"}}], [{"type": "function", "name": "g"}]],
    "parameters": [{"type": "object", "properties": {"b": {}}}],
    "input_schema": [{"type": "object", "properties": {"b": {}}}],
    "schema": [{"type": "object", "properties": {"b": {}}}],
    "value": [SCHEMA],
    "json_schema": [{"schema": {"type": "object", "properties": {"b": {}}}}],
    "json": [SCHEMA],
    "choice": [["a", "b"]],
    "grammar": ["root ::= a"],
    "input": [{"a": 2}],
    "function": [{"name": "g"}],
    "allowed_tools": [{"mode": "required", "tools": [NAMED]}],
    "format": [{"type": "json_object"}, {"type": "json_schema", "schema": SCHEMA}],
    "annotations": [[{"type": "url_citation"}]],
    "logprobs": [[{"token": "A"}]],
    "role": ["system"],
}
"""Values of fields for which none can be made from their type."""

TEMPLATE = tool_templates.QWEN.replace(
    "{%- for message in messages %}",
    "{%- for message in messages %}{{ message.name }}{{ message.tool_call_id }}"
    "{{ (message.tool_calls or []) | map(attribute='id') | join }}",
)
"""It writes every field of a message."""

NEUTRAL = {
    "openai.schemas.JsonSchema.name": "a label",
    "openai.schemas.JsonSchema.strict": "the output always follows the schema",
    "openai.responses_body.TextFormat.name": "a label",
    "openai.responses_body.TextFormat.strict": "the output always follows the schema",
    "openai.schemas.ToolFunction.strict": "arguments of a forced call always follow the schema",
    "openai.responses_body.FunctionTool.strict": "arguments of a forced call always follow the schema",
    "anthropic.body.AnthropicTool.strict": "the input of a forced call always follows the schema",
    "openai.responses_body.InputItem.id": "answers give it, and clients send it back",
    "openai.responses_body.InputItem.status": "answers give it, and clients send it back",
    "anthropic.body.Block.signature": "answers give it, and clients send it back",
}
"""Fields that ask for nothing more than every request gets, and why. Their docstrings say so."""


def class_name(model: type[BaseModel]) -> str:
    return f"{model.__module__}.{model.__name__}".removeprefix("server.api.")


def nested() -> dict[str, type[BaseModel]]:
    """Every class of the objects within the bodies of the text routes, but for the whole ``parameters``."""
    found: dict[str, type[BaseModel]] = {}

    def visit(model: type[BaseModel]) -> None:
        for name, info in model.model_fields.items():
            for inner in models(info.annotation):
                if name != "parameters":
                    found[class_name(inner)] = inner
                visit(inner)

    bodies = [route.body_field.field_info.annotation for _, router in ROUTERS for route in router.routes  # type: ignore[attr-defined]
              if getattr(route, "body_field", None)]  # fmt: skip
    for body in bodies:
        if body.__name__ in TEXT_BODIES:
            visit(body)
    return found


TYPED = {"openai.responses_body.InputItem", "anthropic.body.Block"}
"""Classes for objects of several types: what one type reads must not disappear in another."""
WRONG = {"type": ["no_such_type"], "verbosity": ["low"]}
"""Values that fields with one value refuse."""
TEXT_BODIES = {"GenerateRequest", "ChatBody", "CompletionBody", "ResponsesBody", "MessagesBody"}
NESTED = nested()


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    worker = scripted_worker(TEMPLATE, max_model_len=2048)
    served: Any = worker
    labels = ("contradiction", "neutral", "entailment")
    with client_of(served, tiny_worker("nli", "bert", "classify", labels=labels)) as client:
        yield Walk(client, worker)
        assert client.portal is not None
        client.portal.call(client.app.state.registry.services.close)  # type: ignore[attr-defined]


def changed(body: dict[str, Any], place: Place, name: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    held: Any = body
    for step in place:
        held = held[step]
    held[name] = value
    return body


def fields() -> Iterator[Any]:
    for model_name, model in NESTED.items():
        for name, info in model.model_fields.items():
            field = f"{model_name}.{name}"
            yield pytest.param(model_name, info.alias or name, info.annotation, field, id=field)


def path_of(place: Place, *, has_indices: bool) -> str:
    return ".".join(str(step) for step in place if has_indices or isinstance(step, str))


def test_every_class_of_objects_is_walked() -> None:
    assert NESTED.keys() == OBJECTS.keys()


@pytest.mark.parametrize(("model_name", "name", "annotation", "field"), list(fields()))
def test_every_nested_field_has_an_effect_or_is_named(
    walk: Walk, model_name: str, name: str, annotation: Any, field: str
) -> None:
    values = VALUES[name] if name in VALUES else [*values_of("", annotation), *WRONG.get(name, ())]
    found = []
    for route, body, place in OBJECTS[model_name]:
        plain = walk.outcome(route, body)
        assert plain.status == 200, plain
        outcomes = [walk.outcome(route, changed(body, place, name, value)) for value in values]
        found.append(any(outcome != plain for outcome in outcomes))
        for outcome in outcomes:
            # Of another type, an object may have other fields that nothing reads.
            assert name == "type" or outcome.ignored in ("", f"{path_of(place, has_indices=False)}.{name}")
    reads = all if model_name in TYPED else any
    assert reads(found) or field in NEUTRAL, f"nothing reads {field}: {found}"


@pytest.mark.parametrize("model_name", list(OBJECTS))
def test_an_unknown_nested_field_is_named(walk: Walk, model_name: str) -> None:
    for route, body, place in OBJECTS[model_name]:
        outcome = walk.outcome(route, changed(body, place, "no_such_field", 1))
        if route == GENERATE:
            assert outcome.refused == f"{path_of(place, has_indices=True)}.no_such_field"
        else:
            assert outcome.ignored == f"{path_of(place, has_indices=False)}.no_such_field"
