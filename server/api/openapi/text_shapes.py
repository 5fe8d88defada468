"""Shapes of answers about generated text, in the dialects of Hugging Face, LibreTranslate, OpenAI and Anthropic."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.api.dialects.hf.rewriting_answers import RewriteDetails, RewriteStreamDetails
from server.api.dialects.openai.logprobs import ChatLogprobs, CompletionLogprobs
from server.api.dialects.tgi.answers import Token
from server.api.openapi.shapes import Head
from server.api.text.shapes import Usage

StopReason = int | str | None


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


class Translation(TypedDict):
    """One text's translation."""

    translation_text: str
    translation_texts: NotRequired[list[str]]
    details: NotRequired[RewriteDetails]


class Summary(TypedDict):
    """One text's summary."""

    summary_text: str
    summary_texts: NotRequired[list[str]]
    details: NotRequired[RewriteDetails]


class RewriteEvent(TypedDict):
    """One token of a stream."""

    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    sequence: NotRequired[int]
    details: RewriteStreamDetails | None


class TranslationEvent(RewriteEvent):
    """One token; the last one of an output carries the whole translation."""

    translation_text: str | None


class SummaryEvent(RewriteEvent):
    """One token; the last one of an output carries the whole summary."""

    summary_text: str | None


class LibreTranslation(TypedDict):
    """The translation of ``q``: lists for a list."""

    translatedText: str | list[str]
    alternatives: NotRequired[list[str | list[str]]]
