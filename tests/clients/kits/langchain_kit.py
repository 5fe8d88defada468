"""langchain-openai: chat, stream, batches, structures, tools, the older completions, embeddings."""

from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"

chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=20, stream_usage=True)
answer = chat.invoke("What is the capital of Japan?")
assert "Tokyo" in answer.content and answer.usage_metadata["total_tokens"] > 0
chunks = list(chat.stream("What is the capital of Japan?"))
assert "".join(chunk.content for chunk in chunks) == answer.content
assert len(list(chat.stream("Tell me a story."))) > 4
assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
assert [each.content for each in chat.batch(["What is the capital of Japan?"] * 3)] == [answer.content] * 3


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


for method in ("json_schema", "function_calling"):
    structured = ChatOpenAI(model=MODEL, temperature=0, max_tokens=80).with_structured_output(Person, method=method)
    assert isinstance(structured.invoke("Invent a person with a name and an age."), Person), method


@tool
def weather(city: Literal["Tokyo", "Rome"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


caller = ChatOpenAI(model=MODEL, temperature=0, max_tokens=40).bind_tools([weather], tool_choice="any")
[call] = caller.invoke("How is the weather in Rome?").tool_calls
assert call["name"] == "weather" and call["args"]["city"] in ("Tokyo", "Rome")

# A model that calls of its own accord, on the chat and on responses; then it has the result.
for api in (False, True):
    free = ChatOpenAI(model="caller", max_tokens=300, use_responses_api=api).bind_tools([weather])
    asked = [HumanMessage("How is the weather in Rome?")]
    message = free.invoke(asked)
    [call] = message.tool_calls
    assert call["args"] == {"city": "Rome", "note": "not </tool_call> yet"} and message.text == "Let me look.", message
    gathered = None
    for chunk in free.stream(asked):
        gathered = chunk if gathered is None else gathered + chunk
    assert gathered.tool_calls[0]["args"] == call["args"] and gathered.text == "Let me look.", gathered
    result = ToolMessage("sunny", tool_call_id=call["id"])
    assert free.invoke([*asked, message, result]).text == "It is sunny in Rome."

older = OpenAI(model=MODEL, temperature=0, max_tokens=8)
assert older.invoke("The sky is blue because")
assert len(older.generate(["The sky is blue because", "Once upon a time"]).generations) == 2
assert "".join(older.stream("The sky is blue because")) == older.invoke("The sky is blue because")

embeddings = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False)
vectors = embeddings.embed_documents(["a cat", "a kitten"])
assert len(vectors) == 2 and vectors[0] != vectors[1]
assert max(abs(a - b) for a, b in zip(embeddings.embed_query("a cat"), vectors[0])) < 1e-5
print("ok")
