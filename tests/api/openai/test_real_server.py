"""OpenAI's routes of a real server with a real engine: what clients parse is what comes over the wire."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import jsonschema
import msgspec
import pytest

from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, ChatCompletion, Completion, ErrorBody, chunks_of
from tests.server_process import ServerProcess

SACKS = {
    "type": "object",
    "properties": {"sack": {"$ref": "#/$defs/Sack"}},
    "required": ["sack"],
    "additionalProperties": False,
    "$defs": {"Sack": {"enum": ["flour", "bran"]}},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SACKS}} for name in ("count", "weigh")]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture
def post(tiny_server: ServerProcess) -> Any:
    def send(path: str, status: int = 200, **body: Any) -> httpx2.Response:
        response = httpx2.post(tiny_server.url + path, json=body, timeout=60)
        assert response.status_code == status, response.text
        return response

    return send


def test_a_chat_is_the_same_whole_and_in_a_stream(post: Any) -> None:
    body = {**HELLO, "seed": 5, "max_tokens": 12, "model": "chat"}
    answer = msgspec.json.decode(post(CHAT, **body).content, type=ChatCompletion)
    options = {"include_usage": True}
    *chunks, last = chunks_of(CHAT, post(CHAT, **body, stream=True, stream_options=options).text)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert last.usage.completion_tokens == answer.usage.completion_tokens


def test_a_chat_gives_what_the_native_route_gives(post: Any) -> None:
    native = post("/generate", **HELLO, parameters={"max_new_tokens": 8}).json()["generated_text"]
    assert post(CHAT, **HELLO, **GREEDY).json()["choices"][0]["message"]["content"] == native


def test_prompts_side_by_side_give_what_each_gives_alone(post: Any) -> None:
    prompts = ["The river runs", "Every morning", "今天天气"]
    alone = [post(COMPLETIONS, prompt=prompt, **GREEDY).json()["choices"][0]["text"] for prompt in prompts]
    chunks = chunks_of(COMPLETIONS, post(COMPLETIONS, prompt=prompts, stream=True, **GREEDY).text)
    texts = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == i) for i in range(len(prompts))]
    assert texts == alone


def test_a_scored_prompt_is_read_as_lm_evaluation_harness_reads_it(post: Any, tiny_server: ServerProcess) -> None:
    """Sums over a continuation, and whether it is what greedy decoding gives, found by equality of floats."""
    prompt = "The river runs past the mill"
    new = post(COMPLETIONS, prompt=prompt, logprobs=1, **GREEDY)
    generated = msgspec.json.decode(new.content, type=Completion).choices[0].logprobs
    details = post(
        "/generate", inputs=prompt, parameters={"max_new_tokens": 8, "details": True, "decoder_input_details": True}
    ).json()["details"]
    ids = [token["id"] for token in details["prefill"]] + [token["id"] for token in details["tokens"]]
    scored = post(COMPLETIONS, prompt=[ids, ids], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234)
    for choice in msgspec.json.decode(scored.content, type=Completion).choices:
        told, start = choice.logprobs, len(details["prefill"])
        assert len(told.token_logprobs) == len(told.tokens) == len(ids) + 1
        assert told.token_logprobs[0] is None
        continuation = slice(start, len(ids))
        pairs = list(zip(told.token_logprobs[continuation], told.top_logprobs[continuation], strict=True))
        assert all(logprob == max(top.values()) for logprob, top in pairs)
        assert sum(logprob for logprob, _ in pairs) == pytest.approx(sum(generated.token_logprobs), abs=1e-4)
    wrong = [*ids[:-1], ids[-1] + 1]
    told = post(COMPLETIONS, prompt=[wrong], echo=True, max_tokens=1, logprobs=1, temperature=0).json()["choices"][0][
        "logprobs"
    ]
    assert told["token_logprobs"][-2] < max(told["top_logprobs"][-2].values())
    assert told["token_logprobs"][-2] in told["top_logprobs"][-2].values()


@pytest.mark.parametrize("tools", [TOOLS[:1], TOOLS], ids=["one", "several"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_follows_the_schema_of_its_tool(post: Any, tools: Any, stream: bool) -> None:
    body = {**HELLO, "tools": tools, "tool_choice": "required", "max_tokens": 200, "seed": 3}
    if stream:
        deltas = [chunk.choices[0].delta for chunk in chunks_of(CHAT, post(CHAT, **body, stream=True).text)]
        parts = [part.function for delta in deltas for part in delta.tool_calls or []]
        name, arguments = parts[0].name, "".join(part.arguments for part in parts)
    else:
        answer = msgspec.json.decode(post(CHAT, **body).content, type=ChatCompletion)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name in [tool["function"]["name"] for tool in tools]
    jsonschema.validate(json.loads(arguments), SACKS)


def test_a_schema_holds_while_streaming(post: Any) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "sacks", "schema": SACKS, "strict": True}}
    text = post(CHAT, **HELLO, response_format=format_, max_tokens=200, stream=True).text
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks_of(CHAT, text))
    jsonschema.validate(json.loads(content), SACKS)


def test_several_samples_and_beams_are_answered_in_one_shape(post: Any) -> None:
    for options in ({"n": 3, "seed": 1}, {"n": 2, "num_beams": 4}, {"n": 2, "best_of": 4, "seed": 1}):
        answer = msgspec.json.decode(
            post(COMPLETIONS, prompt="The mill", max_tokens=6, **options).content, type=Completion
        )
        assert [choice.index for choice in answer.choices] == list(range(options["n"]))


def test_a_refusal_is_an_envelope_with_400(post: Any) -> None:
    for path, body in ((CHAT, {**HELLO, "top_p": 7}), (COMPLETIONS, {"prompt": "a", "suffix": "b"}), (CHAT, {})):
        msgspec.json.decode(post(path, 400, **body).content, type=ErrorBody)


def test_the_other_chat_dialects_answer_the_same_text(post: Any) -> None:
    wanted = post(CHAT, **HELLO, **GREEDY).json()["choices"][0]["message"]["content"]
    assert post("/v1/messages", **HELLO, **GREEDY).json()["content"][0]["text"] == wanted
    response = post("/v1/responses", input="Hello", temperature=0, max_output_tokens=8).json()
    assert response["output"][0]["content"][0]["text"] == wanted
    stream = post("/v1/responses", input="Hello", temperature=0, max_output_tokens=8, stream=True).text
    assert stream.count("event: response.incomplete") + stream.count("event: response.completed") == 1


def test_generate_stream_and_the_bare_url_answer_the_same_text(post: Any) -> None:
    body = {"inputs": "The mill", "parameters": {"max_new_tokens": 6}}
    (answer,) = post("/", **body).json()
    events = post("/generate_stream", **body).text.removesuffix("\n\n").split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["generated_text"] == answer["generated_text"]
