"""Shapes of answers that handlers build as plain objects; the documentation and its tests read them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


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
    digest: NotRequired[str]
    """Of an adapter in the worker of its base: its version."""


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
