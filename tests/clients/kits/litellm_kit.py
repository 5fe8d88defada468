"""litellm: its prefixes for OpenAI-like servers, streams, completions, embeddings, errors."""

from __future__ import annotations

import json
import os

import litellm

BASE, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
common = {"api_base": BASE, "api_key": KEY, "temperature": 0, "max_tokens": 20}

for prefix in ("openai/", "hosted_vllm/"):
    answer = litellm.completion(model=prefix + MODEL, messages=QUESTION, **common)
    assert "Tokyo" in answer.choices[0].message.content, prefix
    assert answer.usage.total_tokens > 0
    parts = list(litellm.completion(model=prefix + MODEL, messages=QUESTION, stream=True, **common))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.choices[0].message.content
# Tools and reasoning, in OpenAI's shape and in Anthropic's.
weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
for prefix, base in (("hosted_vllm/", BASE), ("anthropic/", os.environ["SERVER"])):
    free = {"api_base": base, "api_key": KEY, "max_tokens": 300, "tools": [weather], "messages": QUESTION}
    (choice,) = litellm.completion(model=prefix + "caller", **free).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look.", (prefix, choice)
    assert choice.message.reasoning_content == "I have to look.", (prefix, choice)
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments)["note"] == "not </tool_call> yet", (prefix, call)
text = litellm.text_completion(model="text-completion-openai/" + MODEL, prompt="The sky is blue because", **common)
assert text.choices[0].text
vectors = litellm.embedding(model="openai/minilm", input=["a cat"], api_base=BASE, api_key=KEY)
assert len(vectors.data[0]["embedding"]) > 8
try:
    litellm.completion(model="openai/no-such-model", messages=QUESTION, **common)
except litellm.NotFoundError as error:
    assert "no-such-model" in str(error)
else:
    raise AssertionError("a model that is not served was taken")
for too_long in (
    {"messages": [{"role": "user", "content": "word " * 9000}], "max_tokens": 20},
    {"messages": QUESTION, "max_tokens": 8190},
):
    try:
        litellm.completion(model="openai/" + MODEL, api_base=BASE, api_key=KEY, max_retries=0, **too_long)
    except litellm.ContextWindowExceededError as error:
        assert "maximum context length is 8192" in str(error)
    else:
        raise AssertionError("a text longer than the context was taken")
print("ok")
