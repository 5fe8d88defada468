"""No body, however odd, is the server's mistake: it is answered, or refused in the envelope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.dialects.anthropic.body import MessagesBody
from server.api.dialects.openai.bodies import REFUSED_IN_CHAT, ChatBody, CompletionBody
from server.api.dialects.openai.responses import ResponsesBody
from tests.api.openai.fronts import (
    CHAT,
    COMPLETIONS,
    HELLO,
    TOOLS_TEMPLATE,
    ErrorBody,
    Front,
    MessagesErrorBody,
    fronted,
)
from tests.api.openai.test_fields import says_in_all_outputs
from tests.fuzz.scale import SCALE
from tests.option_examples import EXAMPLES

BODIES = {
    COMPLETIONS: (CompletionBody, {"prompt": "Hello"}),
    CHAT: (ChatBody, HELLO),
    "/v1/responses": (ResponsesBody, {"input": "Hello"}),
    "/v1/messages": (MessagesBody, {**HELLO, "max_tokens": 5}),
}
WORDS = ["type", "text", "json_schema", "schema", "value", "name", "function", "role", "user", "content", "arguments",
         "tool_calls", "auto", "required", "none", "$ref", "#/a", "properties", "regex", "("]  # fmt: skip
EDGES = [2**31, 2**32, 2**63, 10**19 - 1, -(2**63), -(2**63) - 1, 1e300, 1e-300, -0.0]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(-2, 2)
    | st.sampled_from([*WORDS, *EDGES])
    | st.text(max_size=3)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SOUND: dict[str, list[Any]] = {
    "tools": [[TOOL], [TOOL, {**TOOL, "function": {"name": "g"}}]],
    "tool_choice": ["auto", "none", "required", {"type": "function", "function": {"name": "f"}}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}],
    "stream": [True],
    "logprobs": [True, 2],
    "prompt": [["a", "b"], [1, 2], [[1], [2]]],
    "messages": [
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
        for arguments in ("{}", "{", "NaN", r'"\ud83d"', "1" * 40, "[" * 40)
    ],
    "chat_template_kwargs": [{"tone": value} for value in EDGES],
    **{name: [example[name]] for name, example in EXAMPLES.items()},
}


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted(says_in_all_outputs, chat_template=TOOLS_TEMPLATE) as front:
        yield front


@st.composite
def bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A sound body with some fields that are more or less so."""
    body_class, sound = BODIES[path]
    names = st.sampled_from(sorted({*body_class.model_fields, *REFUSED_IN_CHAT}))
    chosen = draw(st.lists(names, max_size=4, unique=True))
    return {**sound, **{name: draw(st.sampled_from(SOUND.get(name, [None])) | values) for name in chosen}}


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=80 * SCALE, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_body_is_answered_or_refused(front: Front, path: str, data: st.DataObject) -> None:
    response = front.client.post(path, json=data.draw(bodies(path)))
    assert response.status_code in (200, 400, 404, 413), response.text
    if response.status_code != 200:
        shape = MessagesErrorBody if path.startswith("/v1/messages") else ErrorBody
        error = msgspec.json.decode(response.content, type=shape).error
        assert error.message and "grammar.value" not in error.message
    elif response.headers["content-type"] != "application/json":
        assert response.text.endswith("\n\n") and '"error": {' not in response.text
