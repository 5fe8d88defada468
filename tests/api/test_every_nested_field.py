"""No field of an object within a body disappears: it has an effect, is refused by name, or is named as ignored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from server.api.app import ROUTERS
from tests.api.field_walk import Walk, models, scripted_worker, values_of
from tests.api.nested_objects import CHAT, GENERATE, OBJECTS, VALUES, Place
from tests.api.openai import tool_templates
from tests.encoder_app import client_of, tiny_worker

TEMPLATE = tool_templates.QWEN.replace(
    "{%- for message in messages %}",
    "{%- for message in messages %}{{ message.name }}{{ message.tool_call_id }}"
    "{{ (message.tool_calls or []) | map(attribute='id') | join }}",
)
"""It writes every field of a message."""

ELSEWHERE = {"AdapterWeight"}
"""Classes whose fields need more than a scripted worker: tests/system/test_adapter_sums.py."""

NEUTRAL = {
    "JsonSchema.name": "a label",
    "JsonSchema.strict": "the output always follows the schema",
    "TextFormat.name": "a label",
    "TextFormat.strict": "the output always follows the schema",
    "ToolFunction.strict": "arguments of a forced call always follow the schema",
    "FunctionTool.strict": "arguments of a forced call always follow the schema",
    "AnthropicTool.strict": "the input of a forced call always follows the schema",
    "InputItem.id": "answers give it, and clients send it back",
    "InputItem.status": "answers give it, and clients send it back",
    "Block.signature": "answers give it, and clients send it back",
}
"""Fields that ask for nothing more than every request gets, and why. Their docstrings say so."""


def nested() -> dict[str, type[BaseModel]]:
    """Every class of the objects within the bodies of the text routes, but for the whole ``parameters``."""
    found: dict[str, type[BaseModel]] = {}

    def visit(model: type[BaseModel]) -> None:
        for name, info in model.model_fields.items():
            for inner in models(info.annotation):
                if inner.__name__ in ELSEWHERE:
                    continue
                if name != "parameters":
                    assert found.setdefault(inner.__name__, inner) is inner, "two classes of one name"
                visit(inner)

    bodies = [route.body_field.field_info.annotation for _, router in ROUTERS for route in router.routes  # type: ignore[attr-defined]
              if getattr(route, "body_field", None)]  # fmt: skip
    for body in bodies:
        if body.__name__ in TEXT_BODIES:
            visit(body)
    return found


TYPED = {"InputItem", "Block"}
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
        client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(("reasoning", "ignored"), [("A", ""), ("B", "messages.reasoning")])
def test_a_second_reasoning_is_named_where_it_differs(walk: Walk, reasoning: str, ignored: str) -> None:
    turn = {"role": "assistant", "content": "C", "reasoning_content": "A", "reasoning": reasoning}
    assert walk.outcome(CHAT, {"messages": [turn, {"role": "user", "content": "D"}]}).ignored == ignored
