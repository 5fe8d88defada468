"""What each operation answers when all is well: types of its JSON, and of the events of its stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from server.api.dialects.hf.schemas import ClassifyReply
from server.api.dialects.tgi import answers
from server.api.http.dialect import Dialect
from server.api.openapi import shapes, text_shapes
from server.api.openapi.errors import REQUEST_ID
from server.api.text.shapes import Usage

REF = "#/components/schemas/{name}"
METRICS = ("text/plain", "application/openmetrics-text")


@dataclass(frozen=True)
class Reply:
    """A type of None is an answer that the operation does not have."""

    json: Any = None
    event: Any = None
    media_types: tuple[str, ...] = ()
    """Of answers that are text."""
    ends_with_done: bool = False
    """Whether the last event of a stream is [DONE]."""

    @property
    def types(self) -> Iterator[Any]:
        yield from (type_ for type_ in (self.json, self.event) if type_ is not None)


TEXT = answers.Answer
RERANK = Reply(list[shapes.RankedText] | shapes.Ranked)
REPLIES: dict[str, Reply] = {
    "/generate": Reply(TEXT | list[TEXT], answers.StreamEvent),
    "/translate": Reply(list[text_shapes.Translation] | text_shapes.LibreTranslation, text_shapes.TranslationEvent),
    "/summarize": Reply(list[text_shapes.Summary], text_shapes.SummaryEvent),
    "/generate_stream": Reply(None, answers.StreamEvent),
    "/": Reply(list[TEXT], answers.StreamEvent),
    "/classify": Reply(ClassifyReply | shapes.Classes),
    "/rerank": RERANK,
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
    "/score": Reply(shapes.Scores),
    "/v1/score": Reply(shapes.Scores),
    "/tokenize": Reply(shapes.Tokenized),
    "/detokenize": Reply(shapes.Detokenized),
    "/tokenizer_info": Reply(shapes.TokenizerInfo),
    "/templates": Reply(shapes.Templates),
    "/templates/{name}": Reply(shapes.Template),
    "/v1/models": Reply(shapes.Models),
    "/v1/models/{name}": Reply(shapes.Model),
    "/v1/embeddings": Reply(shapes.Vectors),
    "/v1/classify": Reply(shapes.Classes),
    "/v1/chat/completions": Reply(text_shapes.ChatCompletion, text_shapes.ChatChunk, ends_with_done=True),
    "/v1/completions": Reply(text_shapes.Completion, text_shapes.Completion, ends_with_done=True),
    "/v1/responses": Reply(text_shapes.ResponseObject, text_shapes.ResponseEvent),
    "/v1/messages": Reply(text_shapes.MessagesAnswer, text_shapes.MessagesEvent),
    "/v1/messages/count_tokens": Reply(text_shapes.CountedTokens),
    "/livez": Reply(shapes.State),
    "/readyz": Reply(shapes.State),
    "/startupz": Reply(shapes.State),
    "/health": Reply(shapes.State),
    "/version": Reply(shapes.Version),
    "/load": Reply(shapes.Load),
    "/info": Reply(shapes.Info),
    "/metrics": Reply(media_types=METRICS),
}
"""Where FastAPI does not know it: the handler builds the answer's bytes itself."""

HEADERS = {
    "X-Request-Id": REQUEST_ID,
    "X-Ignored-Fields": "Unknown fields of the body, which the server ignored.",
}


def components() -> dict[str, Any]:
    """The schemas that `success` refers to."""
    types = [type_ for reply in REPLIES.values() for type_ in reply.types]
    return msgspec.json.schema_components([*types, Usage], ref_template=REF)[1]


def success(path: str, dialect: Dialect, documented: dict[str, Any]) -> dict[str, Any]:
    """The response of status 200; ``documented`` is what FastAPI knows of it."""
    reply = REPLIES.get(path)
    content = documented["content"] if reply is None else dict(_content(reply, dialect.error_schema))
    headers = {name: {"description": words, "schema": {"type": "string"}} for name, words in HEADERS.items()}
    return {"description": "Success.", "headers": headers, "content": content}


def _content(reply: Reply, error: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if reply.json is not None:
        yield "application/json", {"schema": _schema(reply.json)}
    if reply.event is not None:
        yield "text/event-stream", {"itemSchema": _event(reply, error)}
    for media_type in reply.media_types:
        yield media_type, {"schema": {"type": "string"}}


def _event(reply: Reply, error: str) -> dict[str, Any]:
    """One server-sent event, as OpenAPI 3.2 describes it; ``error`` is the schema of a failure."""
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_schema(reply.event), {"$ref": REF.format(name=error)}]},
    }
    if reply.ends_with_done:
        data = {"anyOf": [data, {"const": "[DONE]", "description": "The last event's."}]}
    return {"type": "object", "required": ["data"], "properties": {"event": {"type": "string"}, "data": data}}


def _schema(type_: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([type_], ref_template=REF)
    return schema
