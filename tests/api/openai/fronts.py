"""OpenAI's routes over a worker whose replies a test writes down, and their answers parsed as strictly as can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
from starlette.testclient import TestClient

from server.protocol import Generate, PromptLogprobs, SamplingParams, TokenLogprob, Tokens
from tests.api.scripted import END_ID, TOKENIZER, Script, ScriptedWorker, Step, ready, says
from tests.encoder_app import client_of
from tests.sandbox.chat_templates import CHATML

TEXT = "The mill 你好 😀 runs."
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MAX_MODEL_LEN = 2048
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "{{ 'Call as <tool_call>{...}</tool_call>.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '\n<tool_call>\n' }}{{ call.function | tojson }}"
    "{{ '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """Base of what clients know: nothing more, and nothing of another type."""


class Function(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: Function


class Message(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenShape(Shape):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    content: list[TokenShape]
    refusal: None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(Shape):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class CachedTokens(Shape):
    cached_tokens: int


class ReasoningTokens(Shape):
    reasoning_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Shape):
    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class CallDelta(Shape):
    index: int
    function: FunctionDelta
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class Delta(Shape):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(Shape):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | msgspec.UnsetType | None = msgspec.UNSET


class ChatChunk(Shape):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class CompletionLogprobs(Shape):
    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None
    stop_reason: int | str | msgspec.UnsetType | None = msgspec.UNSET


class Completion(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class Error(Shape):
    message: str
    type: str
    param: str | None
    code: str
    request_id: str


class ErrorBody(Shape):
    error: Error
    error_type: Literal["validation", "generation", "overloaded"]


class MessagesErrorBody(ErrorBody):
    type: Literal["error"]
    request_id: str


ANSWERS: dict[str, Any] = {COMPLETIONS: Completion, CHAT: ChatCompletion}
CHUNKS: dict[str, Any] = {COMPLETIONS: Completion, CHAT: ChatChunk}


def events_of(text: str) -> list[str]:
    """The events of a whole stream: each one line of data, and two line feeds after it."""
    assert text.endswith("\n\n") and "\r" not in text
    events = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events), events
    return [event.removeprefix("data: ") for event in events]


def chunks_of(path: str, text: str) -> list[Any]:
    """The chunks of a stream that went well: the same head in all, and the end mark."""
    *events, done = events_of(text)
    assert done == "[DONE]"
    chunks = [msgspec.json.decode(event, type=CHUNKS[path]) for event in events]
    assert len({(chunk.id, chunk.object, chunk.created, chunk.model) for chunk in chunks}) == 1
    return chunks


class Front:
    """A client, and the commands that its requests became."""

    def __init__(self, client: TestClient, worker: ScriptedWorker) -> None:
        self.client = client
        self.worker = worker

    def send(self, path: str, status: int = 200, **body: Any) -> Any:
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return response

    def post(self, path: str, **body: Any) -> Any:
        return msgspec.json.decode(self.send(path, **body).content, type=ANSWERS[path])

    def stream(self, path: str, **body: Any) -> list[Any]:
        response = self.send(path, stream=True, **body)
        assert response.headers["content-type"].startswith("text/event-stream")
        return chunks_of(path, response.text)

    def refused(self, path: str, status: int = 400, **body: Any) -> Error:
        response = self.send(path, status, **body)
        assert response.headers["content-type"] == "application/json"
        shape = MessagesErrorBody if path.startswith("/v1/messages") else ErrorBody
        return msgspec.json.decode(response.content, type=shape).error

    @property
    def command(self) -> Generate:
        return self.worker.commands[-1]

    @property
    def prompt(self) -> str:
        """The last request's prompt, special tokens as they are written."""
        return TOKENIZER.decode(self.command.prompt_ids, skip_special_tokens=False)


@contextmanager
def fronted(
    script: Script | None = None,
    *,
    chat_template: str | None = CHATML,
    generation_config: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Front]:
    """One event loop for all of its requests: the sandbox's processes stay."""
    changes = {} if generation_config is None else {"generation_config": generation_config}
    described = ready(max_model_len=MAX_MODEL_LEN, **changes)
    files = msgspec.structs.replace(described.tokenizer, chat_template=chat_template)
    worker = ScriptedWorker(script or says(TEXT), msgspec.structs.replace(described, tokenizer=files))
    served: Any = worker
    with client_of(served, **settings) as client:
        try:
            yield Front(client, worker)
        finally:
            assert client.portal is not None
            client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


def tells(text: str, *, end: bool = True) -> Script:
    """A model that says ``text`` and tells of each token, and of each of the prompt's, how likely it and others were.

    The most likely one at every place is token 5; the one that came is told among the others only if there are three.
    """

    def script(command: Generate) -> Iterator[Step]:
        params = command.params
        ids = [*TOKENIZER.encode(text).ids, *([END_ID] if end else [])][: params.max_new_tokens]
        for i, token_id in enumerate(ids):
            prompt = _prompt_logprobs(command) if params.prompt_logprobs and i == 0 else None
            finish = "stop" if token_id == END_ID else "length" if i == params.max_new_tokens - 1 else None
            yield Tokens(
                command.request_id,
                [token_id],
                finish,
                [likelihood(token_id)] if params.logprobs else None,
                top_logprobs=[_others(token_id, params)] if params.tells_others else None,
                prompt_logprobs=prompt,
            )

    return script


def likelihood(token_id: int) -> float:
    return -0.1 if token_id == 5 else -1 / 3 - token_id


def _others(token_id: int, params: SamplingParams) -> list[TokenLogprob]:
    given = [TokenLogprob(id_, likelihood(id_)) for id_ in params.logprob_token_ids]
    return given or likely(token_id, params.top_n_tokens)


def likely(token_id: int, count: int) -> list[TokenLogprob]:
    told = [TokenLogprob(5, -0.1), TokenLogprob(6, -0.2), TokenLogprob(token_id, likelihood(token_id))]
    return told[:count]


def _prompt_logprobs(command: Generate) -> PromptLogprobs:
    ids, count = command.prompt_ids[1:], command.params.top_n_tokens
    return PromptLogprobs([likelihood(i) for i in ids], [likely(i, count) for i in ids] if count else None)
