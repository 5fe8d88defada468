"""anthropic: messages, streams, tools free and forced, results, structures, counting, errors."""

from __future__ import annotations

import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["SERVER"], api_key=os.environ["OPENAI_API_KEY"], max_retries=0)
MODEL, CALLER = "smollm2-135m-instruct", "caller"
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
GREEDY = {"temperature": 0}
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Tokyo", "Rome"]}},
        "required": ["city"],
    },
}
INPUT = {"city": "Rome", "note": "not </tool_call> yet"}

# Words.
answer = client.messages.create(model=MODEL, messages=QUESTION, max_tokens=20, extra_body=GREEDY)
assert "Tokyo" in answer.content[0].text and answer.stop_reason == "end_turn", answer
assert answer.usage.output_tokens > 0
with client.messages.stream(model=MODEL, messages=QUESTION, max_tokens=20, extra_body=GREEDY) as stream:
    assert "".join(stream.text_stream) == answer.content[0].text
    assert stream.get_final_message().usage.output_tokens == answer.usage.output_tokens
stopped = client.messages.create(
    model=MODEL, messages=QUESTION, max_tokens=20, extra_body=GREEDY, stop_sequences=[" Tokyo"], system="Be brief."
)
assert stopped.stop_reason in ("stop_sequence", "end_turn", "max_tokens")
assert client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens == answer.usage.input_tokens + (
    answer.usage.cache_read_input_tokens
)

# A forced call, whole and streamed.
for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 40, "extra_body": GREEDY, "tools": [WEATHER]}
    [called] = client.messages.create(tool_choice=choice, **asked).content
    assert called.type == "tool_use" and called.input["city"] in ("Tokyo", "Rome")
    with client.messages.stream(tool_choice=choice, **asked) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(parts) > 1 and final.content[0].input == called.input and final.stop_reason == "tool_use"

# A model that thinks, says a word, and calls of its own accord; then it has the result.
asked = {"model": CALLER, "messages": QUESTION, "max_tokens": 300, "tools": [WEATHER]}
answer = client.messages.create(**asked)
assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"], answer
assert answer.content[0].thinking == "I have to look." and answer.content[1].text == "Let me look."
assert answer.content[2].input == INPUT and answer.stop_reason == "tool_use"
with client.messages.stream(**asked) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_message()
assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
assert final.content[2].input == INPUT and final.content[0].thinking == "I have to look."
assert kinds.index("thinking") < kinds.index("text") < kinds.index("input_json"), kinds
result = {"type": "tool_result", "tool_use_id": final.content[2].id, "content": "sunny"}
turns = [*QUESTION, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
answered = client.messages.create(**{**asked, "messages": turns})
assert answered.content[0].text == "It is sunny in Rome." and answered.stop_reason == "end_turn"
none = client.messages.create(tool_choice={"type": "none"}, **asked)
assert all(block.type != "tool_use" for block in none.content)


# The library's own loop of calls and results.
@anthropic.beta_tool
def weather(city: str, note: str) -> str:
    """The weather in a city.

    Args:
        city: where
        note: anything
    """
    return f"sunny in {city}" if note else ""


last = client.beta.messages.tool_runner(model=CALLER, messages=QUESTION, max_tokens=300, tools=[weather]).until_done()
assert last.content[0].text == "It is sunny in Rome.", last

# Refusals are the kinds of error that the library has for them.
for wrong, kind, words in (
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError, "tools.0.type"),
    ({"model": "no-such-model"}, anthropic.NotFoundError, "no-such-model"),
    ({"extra_body": {"temperature": -1.0}}, anthropic.BadRequestError, "temperature"),
):
    try:
        client.messages.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 5, **wrong})
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"{wrong} was taken")
try:
    anthropic.Anthropic(base_url=os.environ["SERVER"], api_key="another-key").messages.create(
        model=MODEL, messages=QUESTION, max_tokens=5
    )
except anthropic.AuthenticationError:
    pass
else:
    raise AssertionError("a wrong key was taken")
print("ok", anthropic.__version__)
