"""pydantic-ai: an answer in words, one of a type, one in a stream."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

MODEL = OpenAIChatModel("smollm2-135m-instruct")


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


settings = {"temperature": 0.0, "max_tokens": 80}
words = Agent(MODEL, model_settings=settings).run_sync("What is the capital of Japan?")
assert (
    "Tokyo" in words.output and words.usage().output_tokens > 0
    if callable(words.usage)
    else words.usage.output_tokens > 0
)
typed = Agent(MODEL, output_type=Person, model_settings=settings).run_sync("Invent a person with a name and an age.")
assert isinstance(typed.output, Person)


async def stream(question: str) -> list[str]:
    async with Agent(MODEL, model_settings=settings).run_stream(question) as result:
        # Without its own gathering of what comes within a tenth of a second, which may be all of it.
        return [part async for part in result.stream_text(delta=True, debounce_by=None)]


assert "Tokyo" in "".join(asyncio.run(stream("What is the capital of Japan?")))
assert len(asyncio.run(stream("Tell me a story."))) > 2
print("ok")
