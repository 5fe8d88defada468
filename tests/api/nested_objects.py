"""Bodies that hold an object of each class within the bodies of the text routes, and values of the objects' fields."""

from __future__ import annotations

from typing import Any

from tests.api.field_walk import FUNCTION, TOOLS, USER

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
    "ChatMessage": [
        (CHAT, chat(), ("messages", 0)),
        (CHAT, chat(messages=[{"role": "assistant", "content": "A", "tool_calls": [CALL]}, *USER]), ("messages", 0)),
    ],
    "TextPart": [
        (
            CHAT,
            chat(messages=[{"role": "user", "content": [{"type": "text", "text": "A"}]}]),
            ("messages", 0, "content", 0),
        )
    ],
    "MadeCall": [
        (CHAT, chat(messages=[{"role": "assistant", "tool_calls": [CALL]}, *USER]), ("messages", 0, "tool_calls", 0))
    ],
    "CalledFunction": [
        (
            CHAT,
            chat(messages=[{"role": "assistant", "tool_calls": [CALL]}, *USER]),
            ("messages", 0, "tool_calls", 0, "function"),
        )
    ],
    "Tool": [(CHAT, chat(tools=TOOLS), ("tools", 0))],
    "ToolFunction": [(CHAT, chat(tools=TOOLS), ("tools", 0, "function"))],
    "NamedTool": [(CHAT, chat(tools=TWO_TOOLS, tool_choice=NAMED), ("tool_choice",))],
    "NamedFunction": [(CHAT, chat(tools=TWO_TOOLS, tool_choice=NAMED), ("tool_choice", "function"))],
    "AllowedTools": [
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
    "AllowedNames": [
        (
            CHAT,
            chat(
                tools=TWO_TOOLS,
                tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            ),
            ("tool_choice", "allowed_tools"),
        )
    ],
    "StreamOptions": [
        (CHAT, chat(stream=True, stream_options={}), ("stream_options",)),
        (CHAT, chat(stream=True, stream_options={"include_usage": True}), ("stream_options",)),
    ],
    "ResponseFormat": [
        (
            CHAT,
            chat(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
            ("response_format",),
        ),
        (CHAT, chat(response_format={"type": "json_object"}), ("response_format",)),
    ],
    "JsonSchema": [
        (
            CHAT,
            chat(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
            ("response_format", "json_schema"),
        )
    ],
    "StructuredOutputs": [(CHAT, chat(structured_outputs={}), ("structured_outputs",))],
    "InputItem": [
        (RESPONSES, responses(ASKED), ("input", 0)),
        (RESPONSES, responses({"type": "reasoning", "summary": []}), ("input", 0)),
        (RESPONSES, responses({"type": "function_call", "call_id": "call_1", "name": "f"}), ("input", 0)),
        (RESPONSES, responses({"type": "function_call_output", "call_id": "call_1", "output": "1"}), ("input", 0)),
    ],
    "OutputPart": [
        (RESPONSES, responses({**ASKED, "content": [{"type": "input_text", "text": "A"}]}), ("input", 0, "content", 0)),
        (
            RESPONSES,
            responses({"type": "reasoning", "summary": [{"type": "summary_text", "text": "A"}]}),
            ("input", 0, "summary", 0),
        ),
    ],
    "TextConfig": [(RESPONSES, responses(text={}), ("text",))],
    "TextFormat": [
        (RESPONSES, responses(text={"format": {"type": "json_schema", "schema": SCHEMA}}), ("text", "format")),
        (RESPONSES, responses(text={"format": {"type": "json_object"}}), ("text", "format")),
    ],
    "FunctionTool": [(RESPONSES, responses(tools=RESPONSES_TOOLS), ("tools", 0))],
    "ChosenFunction": [
        (
            RESPONSES,
            responses(tools=RESPONSES_TOOLS, tool_choice={"type": "function", "name": "f"}),
            ("tool_choice",),
        )
    ],
    "AllowedFunctions": [
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
    "ReasoningConfig": [(RESPONSES, responses(reasoning={}), ("reasoning",))],
    "AnthropicMessage": [(MESSAGES, anthropic(), ("messages", 0))],
    "TextBlock": [
        (MESSAGES, anthropic(system=[{"type": "text", "text": "A"}]), ("system", 0)),
        (MESSAGES, anthropic(RESULT, role="user"), ("messages", 0, "content", 0, "content", 0)),
    ],
    "Block": [
        (MESSAGES, anthropic({"type": "text", "text": "A"}), ("messages", 0, "content", 0)),
        (MESSAGES, anthropic({"type": "thinking", "thinking": "A"}), ("messages", 0, "content", 0)),
        (MESSAGES, anthropic(CALLED), ("messages", 0, "content", 0)),
        (MESSAGES, anthropic(RESULT, role="user"), ("messages", 0, "content", 0)),
    ],
    "AnthropicTool": [(MESSAGES, anthropic(tools=MESSAGES_TOOLS), ("tools", 0))],
    "AnthropicChoice": [(MESSAGES, anthropic(tools=MESSAGES_TOOLS, tool_choice={"type": "auto"}), ("tool_choice",))],
    "Thinking": [(MESSAGES, anthropic(thinking={"type": "enabled"}), ("thinking",))],
    "OutputConfig": [(MESSAGES, anthropic(output_config={}), ("output_config",))],
    "OutputFormat": [
        (
            MESSAGES,
            anthropic(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
            ("output_config", "format"),
        )
    ],
    "Message": [(GENERATE, {"messages": USER}, ("messages", 0))],
    "Penalty": [
        (
            GENERATE,
            {"inputs": "A", "parameters": {"penalties": [{"phrase": "the mill", "strength": 4}]}},
            ("parameters", "penalties", 0),
        ),
    ],
    "RankBy": [
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
