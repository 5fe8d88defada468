"""openai: tools that a model calls of its own accord, on the chat and on responses, whole and streamed; results."""

from __future__ import annotations

import json
from typing import Literal

import openai
from pydantic import BaseModel, Field

client = openai.OpenAI(max_retries=0)
MODEL, CALLER = "smollm2-135m-instruct", "caller"
QUESTION = [{"role": "user", "content": "How is the weather in Rome?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Tokyo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
ARGUMENTS = {"city": "Rome", "note": "not </tool_call> yet"}

# The chat.
asked = {"model": CALLER, "messages": QUESTION, "tools": [CHAT_TOOL], "max_tokens": 300}
choice = client.chat.completions.create(**asked).choices[0]
[call] = choice.message.tool_calls
assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look."
assert choice.message.reasoning_content == "I have to look."
assert call.function.name == "weather" and json.loads(call.function.arguments) == ARGUMENTS
with client.chat.completions.stream(**asked) as events:
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    final = events.get_final_completion().choices[0]
assert [json.loads(event.arguments) for event in done] == [ARGUMENTS]
assert final.message.content == "Let me look." and final.finish_reason == "tool_calls"
turns = [*QUESTION, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
answer = client.chat.completions.create(**{**asked, "messages": turns})
assert answer.choices[0].message.content == "It is sunny in Rome."

# Responses: words, a structure.
asked = {"model": MODEL, "input": "What is the capital of Japan?", "temperature": 0, "max_output_tokens": 20}
words = client.responses.create(**asked)
assert "Tokyo" in words.output_text and words.status == "completed"
with client.responses.stream(**asked) as events:
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == words.output_text == events.get_final_response().output_text


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    mood: Literal["glad", "sad"]


parsed = client.responses.parse(
    model=MODEL, input="Invent a person.", text_format=Person, temperature=0, max_output_tokens=80
)
assert isinstance(parsed.output_parsed, Person)

# Responses: a forced call.
for chosen in ("required", {"type": "function", "name": "weather"}):
    forced = {"model": MODEL, "input": QUESTION, "tools": [TOOL], "tool_choice": chosen, "temperature": 0}
    [item] = client.responses.create(max_output_tokens=40, **forced).output
    assert item.type == "function_call" and json.loads(item.arguments)["city"] in ("Tokyo", "Rome")
    with client.responses.stream(max_output_tokens=40, **forced) as events:
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        last = events.get_final_response()
    assert "".join(deltas) == last.output[0].arguments == item.arguments and len(deltas) > 1

# Responses: a call of the model's own accord, and its result.
asked = {"model": CALLER, "input": QUESTION, "tools": [TOOL], "max_output_tokens": 300}
response = client.responses.create(**asked)
assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
assert response.output[0].content[0].text == "I have to look." and response.output_text == "Let me look."
assert json.loads(response.output[2].arguments) == ARGUMENTS
assert response.usage.output_tokens_details.reasoning_tokens > 0
with client.responses.stream(**asked) as events:
    kinds = [event.type for event in events]
    final = events.get_final_response()
for kind in ("reasoning_text.delta", "output_text.delta", "function_call_arguments.delta", "completed"):
    assert f"response.{kind}" in kinds, kinds
assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
assert json.loads(final.output[2].arguments) == ARGUMENTS
result = {"type": "function_call_output", "call_id": response.output[2].call_id, "output": "sunny"}
answered = client.responses.create(**{**asked, "input": [*QUESTION, *response.output, result]})
assert answered.output_text == "It is sunny in Rome."
try:
    client.responses.create(model=MODEL, input="a", tools=[{"type": "web_search"}])
except openai.BadRequestError as error:
    assert error.body["param"] == "tools.0.type", error.body
else:
    raise AssertionError("a tool of the server's own was taken")
print("ok", openai.__version__)
