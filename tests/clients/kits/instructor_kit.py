"""instructor: the same type by forced tool calls, by JSON schema, and in a stream of partial objects."""

from __future__ import annotations

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


asked = {"model": MODEL, "temperature": 0, "max_tokens": 80,
         "messages": [{"role": "user", "content": "Invent a person with a name and an age."}]}  # fmt: skip
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(), mode=mode)
    assert isinstance(client.chat.completions.create(response_model=Person, **asked), Person), mode
partial = list(instructor.from_openai(OpenAI()).chat.completions.create_partial(response_model=Person, **asked))
assert len(partial) > 1 and partial[-1].name and isinstance(partial[-1].age, int)
print("ok")
