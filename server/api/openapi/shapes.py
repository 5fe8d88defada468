"""Shapes of answers that handlers build as plain objects; the documentation and its tests read them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.api.dialects.openai.logprobs import ChatLogprobs, CompletionLogprobs
from server.api.text.shapes import Usage

StopReason = int | str | None


class State(TypedDict):
    """A probe's answer."""

    status: str


class Version(TypedDict):
    """The server's version."""

    version: str


class Load(TypedDict):
    """Requests for work that are being answered."""

    server_load: int


class Info(TypedDict):
    """What is served, and the server's limits. A model that is being loaded has a name and a state only."""

    model_id: str
    max_input_tokens: int | None
    version: str
    models: list[dict[str, Any]]
    tasks: dict[str, list[str]]
    templates: list[dict[str, Any]]
    topics: list[dict[str, Any]]
    limits: dict[str, int]
    attribution: list[str]


class Template(TypedDict):
    """One version of a prompt template."""

    name: str
    version: int
    task: str
    description: str | None
    variables: dict[str, dict[str, Any]]
    parameters: dict[str, Any]
    examples: NotRequired[dict[str, Any]]


class Templates(TypedDict):
    """Every version of every template."""

    templates: list[Template]


class Model(TypedDict):
    """One served model; ``parent`` is an adapter's base."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    task: str


class Models(TypedDict):
    """Every served model."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(TypedDict):
    """Token ids, and how the vocabulary writes them where that was asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(TypedDict):
    """A tokenizer's special tokens, limits and chat template."""

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    mask_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None
    mask_token_id: int | None
    chat_template: str | None


class Head(TypedDict):
    """What answers of OpenAI's shape begin with."""

    id: str
    created: int
    model: str


class CallOfFunction(TypedDict):
    """Name and arguments, which are JSON as text. In a stream the arguments come in parts."""

    name: NotRequired[str]
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool; in a stream its first part has id, type and name."""

    index: NotRequired[int]
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CallOfFunction


class ChatAnswer(TypedDict):
    """The answer: text, calls of tools, or both."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatDelta(TypedDict):
    """What a chunk adds to a message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str | None]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


PromptScores = list[dict[str, dict[str, Any]] | None]
"""For each token of the prompt, by id, the log-probabilities at its place; null for the first."""


class ChatChoice(TypedDict):
    """One of the answers; ``token_ids`` come where they are asked for, as everywhere below."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: StopReason
    token_ids: NotRequired[list[int]]


class ChatChunkChoice(TypedDict):
    """What one of the answers grows by."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[StopReason]
    token_ids: NotRequired[list[int]]


class ChatCompletion(Head):
    """Answer of the chat."""

    object: Literal["chat.completion"]
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptScores]


class ChatChunk(Head):
    """One event of a chat's stream; the last one before ``[DONE]`` may have the usage and no choice."""

    object: Literal["chat.completion.chunk"]
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    prompt_token_ids: NotRequired[list[int]]


class CompletionChoice(TypedDict):
    """One continuation, or what it grows by."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[StopReason]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptScores]


class Completion(Head):
    """Answer of completions, and each event of their stream, which has a usage only if the request asks for it."""

    object: Literal["text_completion"]
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class ResponseObject(TypedDict):
    """Answer of the newer dialect: ``output`` holds its items."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    temperature: float | None
    top_p: float | None
    usage: dict[str, Any] | None


class ResponseEvent(TypedDict):
    """One event of its stream; its name is its type."""

    type: str
    sequence_number: int


class MessagesAnswer(TypedDict):
    """Answer of messages: blocks of content."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]


class MessagesEvent(TypedDict):
    """One event of its stream; its name is its type."""

    type: str


class CountedTokens(TypedDict):
    """How many tokens a conversation's prompt has."""

    input_tokens: int


class InputUsage(TypedDict):
    """Tokens of a request whose answer has none."""

    prompt_tokens: int
    total_tokens: int


class VectorEntry(TypedDict):
    """One vector: numbers, or base64 of float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Vectors(Head):
    """Answer of embeddings."""

    object: Literal["list"]
    data: list[VectorEntry]
    usage: InputUsage


class ClassEntry(TypedDict):
    """One text's likeliest label and the scores of all."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(Head):
    """Answer of ``/v1/classify``."""

    object: Literal["list"]
    data: list[ClassEntry]
    usage: InputUsage


class ScoreEntry(TypedDict):
    """One pair's score."""

    index: int
    object: Literal["score"]
    score: float


class Scores(Head):
    """Answer of scores."""

    object: Literal["list"]
    data: list[ScoreEntry]
    usage: InputUsage


class RankedText(TypedDict):
    """One of ``texts``, by its place in the request."""

    index: int
    score: float
    text: NotRequired[str]


class RankedDocument(TypedDict):
    """One of ``documents``, by its place in the request."""

    index: int
    relevance_score: float
    document: NotRequired[dict[str, str]]


class Ranked(TypedDict):
    """Answer to ``documents``, the best first."""

    id: str
    model: str
    usage: InputUsage
    results: list[RankedDocument]
