"""openai: chat, completions, streams, usage, parsed structures, tools, models, embeddings, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
from pydantic import BaseModel, Field

client = openai.OpenAI()
MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]

# A chat.
chat = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=20)
assert "Tokyo" in chat.choices[0].message.content
assert chat.choices[0].finish_reason == "stop"
assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
assert chat._request_id

# The same in a stream, with its usage at the end.
stream = client.chat.completions.create(
    model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == chat.choices[0].message.content
assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content
assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == chat.usage.completion_tokens
# A step may bring several tokens, where they were guessed right: of a longer answer there are many steps.
story = [{"role": "user", "content": "Tell me a story."}]
assert (
    len(list(client.chat.completions.create(model=MODEL, messages=story, temperature=0, max_tokens=40, stream=True)))
    > 4
)

# Several answers, log-probabilities, a seed, a stop.
several = client.chat.completions.create(
    model=MODEL, messages=QUESTION, n=3, seed=7, temperature=1.5, max_tokens=8, logprobs=True, top_logprobs=4
)
assert [choice.index for choice in several.choices] == [0, 1, 2]
for choice in several.choices:
    assert len(choice.logprobs.content) > 0
    assert all(len(token.top_logprobs) == 4 and token.logprob <= 0 for token in choice.logprobs.content)
again = client.chat.completions.create(
    model=MODEL, messages=QUESTION, n=3, seed=7, temperature=1.5, max_tokens=8, logprobs=True, top_logprobs=4
)
assert [c.message.content for c in again.choices] == [c.message.content for c in several.choices]
stopped = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, stop=[" Tokyo"])
assert stopped.choices[0].finish_reason == "stop" and "Tokyo" not in stopped.choices[0].message.content


# A structure.
class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    mood: Literal["glad", "sad"]


parsed = client.chat.completions.parse(
    model=MODEL,
    messages=[{"role": "user", "content": "Invent a person with a name, an age and a mood."}],
    response_format=Person,
    temperature=0,
    max_tokens=80,
)
assert isinstance(parsed.choices[0].message.parsed, Person)
with client.chat.completions.stream(
    model=MODEL,
    messages=[{"role": "user", "content": "Invent a person with a name, an age and a mood."}],
    response_format=Person,
    temperature=0,
    max_tokens=80,
) as events:
    final = events.get_final_completion()
assert final.choices[0].message.parsed == parsed.choices[0].message.parsed

# A tool that must be called.
tools = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Tokyo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
called = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "How is the weather in Rome?"}],
    tools=tools,
    tool_choice={"type": "function", "function": {"name": "weather"}},
    temperature=0,
    max_tokens=40,
)
[call] = called.choices[0].message.tool_calls
assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Tokyo", "Rome")
parts = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "How is the weather in Rome?"}],
    tools=tools,
    tool_choice="required",
    temperature=0,
    max_tokens=40,
    stream=True,
)
streamed = ""
for chunk in parts:
    for piece in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
        streamed += piece.function.arguments or ""
assert json.loads(streamed)["city"] in ("Tokyo", "Rome")

# Completions: one text, several, token ids, echo with log-probabilities.
one = client.completions.create(model=MODEL, prompt="The sky is blue because", temperature=0, max_tokens=8)
many = client.completions.create(
    model=MODEL, prompt=["The sky is blue because", "Once upon a time"], temperature=0, max_tokens=8
)
assert many.choices[0].text == one.choices[0].text and many.choices[1].index == 1
echoed = client.completions.create(
    model=MODEL, prompt=[504, 6376, 314], max_tokens=1, echo=True, logprobs=1, temperature=0
)
told = echoed.choices[0].logprobs
assert len(told.tokens) == 4 and told.token_logprobs[0] is None and told.top_logprobs[0] is None
assert max(told.top_logprobs[3].values()) == told.token_logprobs[3]
pieces = client.completions.create(
    model=MODEL, prompt="The sky is blue because", temperature=0, max_tokens=8, stream=True
)
assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == one.choices[0].text

# Options of the server's own.
beams = client.chat.completions.create(
    model=MODEL, messages=QUESTION, max_tokens=12, extra_body={"num_beams": 3, "banned_phrases": ["Tokyo"]}
)
assert "paris" not in beams.choices[0].message.content.lower()
answered = client.chat.completions.with_raw_response.create(
    model=MODEL, messages=QUESTION, max_tokens=2, extra_body={"no_such_field": 1}
)
assert answered.headers["x-ignored-fields"] == "no_such_field"

# Models and embeddings.
assert MODEL in [model.id for model in client.models.list()]
assert client.models.retrieve(MODEL).id == MODEL
vectors = client.embeddings.create(model="minilm", input=["a cat", "a kitten", "stock prices"])
near, far = (sum(a * b for a, b in zip(vectors.data[0].embedding, vectors.data[i].embedding)) for i in (1, 2))
assert near > far and vectors.usage.prompt_tokens > 0
floats = client.embeddings.create(model="minilm", input="a cat", encoding_format="float")
assert all(abs(a - b) < 1e-6 for a, b in zip(floats.data[0].embedding, vectors.data[0].embedding))

# Refusals are the kinds of error that the library has for them, and are not sent again.
for wrong, kind, param in (
    ({"temperature": -1.0}, openai.BadRequestError, "temperature"),
    ({"model": "no-such-model"}, openai.NotFoundError, "model"),
    ({"messages": []}, openai.BadRequestError, "messages"),
):
    try:
        client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **wrong})
    except kind as error:
        assert error.body["message"] and param in (error.body["param"] or ""), error.body
        assert not isinstance(error, openai.InternalServerError)
    else:
        raise AssertionError(f"{wrong} was taken")
# LangChain sends ids of another model unless it is told not to: the refusal says how.
try:
    client.embeddings.create(model="minilm", input=[[9906, 191700]])
except openai.BadRequestError as error:
    assert "check_embedding_ctx_length" in error.body["message"]
else:
    raise AssertionError("ids of an unknown vocabulary were taken")
try:
    openai.OpenAI(api_key="another-key").models.list()
except openai.AuthenticationError:
    pass
else:
    raise AssertionError("a wrong key was taken")


async def side_by_side() -> list[str]:
    asynchronous = openai.AsyncOpenAI()
    answers = await asyncio.gather(
        *(
            asynchronous.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=12)
            for _ in range(8)
        )
    )
    return [answer.choices[0].message.content for answer in answers]


assert len(set(asyncio.run(side_by_side()))) == 1
print("ok", openai.__version__)
