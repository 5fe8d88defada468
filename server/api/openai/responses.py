"""``POST /v1/responses``: text conversations in OpenAI's newer shape. Nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from server.api.openai.fields import LenientModel, Refusal, check_fields
from server.api.openai.messages import chat_template_of, template_messages
from server.api.openai.schemas import REFUSED, ChatMessage, ConversationBody, JsonSchema, ResponseFormat, TextPart
from server.api.openai.shapes import encode, ending, usage
from server.api.openai.structure import structure_of
from server.api.openai.work import StreamWriter, TextWork, generator_of
from server.api.prompt_source import chat_source
from server.api.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, one_error
from server.api.sse import data_event
from server.errors import InvalidParameter, InvalidRequest
from server.serving.generation import OutputText, OutputToken

router = APIRouter(tags=["openai"])

NOT_STORED = Refusal("nothing is stored; send the whole conversation as input")
REFUSED_HERE: dict[str, Refusal] = {
    **REFUSED,
    "previous_response_id": NOT_STORED,
    "conversation": NOT_STORED,
    "prompt": NOT_STORED,
    "background": Refusal("an answer is waited for", (False,)),
    "tools": Refusal("/v1/chat/completions has tools", ([],)),
    "tool_choice": Refusal("/v1/chat/completions has tools", ("auto", "none")),
    "reasoning": Refusal("the answer is text alone", ({},)),
    "include": Refusal("there is nothing more to tell", ([],)),
    "top_logprobs": Refusal("/v1/chat/completions has logprobs", (0,)),
    "truncation": Refusal("set truncate_prompt_tokens", ("disabled",)),
}


class InputItem(LenientModel):
    """One turn of a conversation."""

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[TextPart], STOP_AT_FIRST_ERROR], one_error("a string or a list of text parts")
    ]


class TextFormat(LenientModel):
    """The structure of the answer: here the schema's fields stand beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(LenientModel):
    """What ``text`` holds."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None
    """OpenAI's default: how long an answer is, a message has to say."""


class ResponsesBody(ConversationBody):
    """Body of ``POST /v1/responses``; every option of ours may stand in it too."""

    input: Annotated[
        str | Annotated[list[InputItem], STOP_AT_FIRST_ERROR, NOT_EMPTY],
        one_error("a string or a list of messages with text"),
    ]
    """A text, or 1 to 1024 entries: each of the type message, its parts of the type input_text or output_text. This
    route takes text alone."""
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    metadata: dict[str, str] | None = None


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponsesBody, request: Request) -> Response:
    """Answer ``input``, by way of the model's own chat template."""
    check_fields(request, body, REFUSED_HERE)
    if max(body.n or 1, body.num_return_sequences or 1) > 1:
        raise InvalidParameter("n", body.n or body.num_return_sequences, "must be 1: a response is one answer")
    generator = generator_of(request, body)
    turns = template_messages(list(_turns(body)), chat_template_of(generator))
    structure = structure_of(_with_format(body))
    added: dict[str, Any] = {} if structure is None else {"grammar": structure.grammar}
    names = {"messages": "input", **(structure.names if structure else {})}
    work = TextWork(request, body, generator, names)
    await work.prepare(chat_source(body, turns), added)
    if body.stream:
        return await work.stream(Events(work, body))
    await work.run()
    (output,) = work.generations[0].answers
    return Response(encode(_response(work, body, output)), media_type="application/json")


def _turns(body: ResponsesBody) -> Iterator[ChatMessage]:
    if body.instructions is not None:
        yield ChatMessage(role="system", content=body.instructions)
    if isinstance(body.input, str):
        yield ChatMessage(role="user", content=body.input)
        return
    for i, item in enumerate(body.input):
        if item.type not in (None, "message"):
            raise InvalidParameter(f"input.{i}.type", item.type, "must be message: this route takes text alone")
        yield ChatMessage(role=item.role, content=_content(item, f"input.{i}.content"))


def _content(item: InputItem, path: str) -> str | list[TextPart]:
    if isinstance(item.content, str):
        return item.content
    for i, part in enumerate(item.content):
        if part.type not in ("input_text", "output_text"):
            raise InvalidParameter(f"{path}.{i}.type", part.type, "must be input_text or output_text")
    return [TextPart(type="text", text=part.text) for part in item.content]


def _with_format(body: ResponsesBody) -> ResponsesBody:
    """The structure under the name that the other routes have for it."""
    if body.text is None or body.text.format is None:
        return body
    if body.response_format is not None:
        raise InvalidRequest("response_format has another name here: give text.format alone.", param="response_format")
    wanted = body.text.format
    schema = JsonSchema(schema=wanted.schema_) if wanted.type == "json_schema" else None
    return body.model_copy(update={"response_format": ResponseFormat(type=wanted.type, json_schema=schema)})


def _response(work: TextWork, body: ResponsesBody, output: OutputText | None) -> dict[str, Any]:
    """The whole response; without an output, as it is before the first token."""
    params = work.generations[0].prompt.params
    told = None if output is None else ending(output)
    is_cut = told is not None and told["finish_reason"] != "stop"
    reason = "content_filter" if is_cut and told and told["finish_reason"] != "length" else "max_output_tokens"
    return {
        "id": f"resp_{work.record.request_id}",
        "object": "response",
        "created_at": work.created,
        "status": "in_progress" if output is None else "incomplete" if is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": reason} if is_cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": work.record.model,
        "output": [] if output is None else [_item(work, output.text, "incomplete" if is_cut else "completed")],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": params.temperature if params.do_sample else 0.0,
        "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
        "tool_choice": "auto",
        "tools": [],
        "top_p": params.top_p,
        "truncation": "disabled",
        "usage": None if output is None else _usage(work),
    }


def _usage(work: TextWork) -> dict[str, Any]:
    counts = usage(work.generations)
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": counts.prompt_tokens_details,
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.total_tokens,
    }


def _item(work: TextWork, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    name = f"msg_{work.record.request_id}"
    return {"type": "message", "id": name, "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Events(StreamWriter):
    """Named and numbered events: a response with one message with one part."""

    def __init__(self, work: TextWork, body: ResponsesBody) -> None:
        self._work = work
        self._body = body
        self._number = 0
        self._place = {"item_id": f"msg_{work.record.request_id}", "output_index": 0, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> bytes:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {name}\n".encode() + data_event(encode(event))

    def step(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> bytes:  # noqa: ARG002
        started = b"" if self._number else self._start()
        text = "".join([token.text for token in tokens[0]])
        return started + (self._delta(text) if text else b"")

    def _delta(self, text: str) -> bytes:
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def _start(self) -> bytes:
        response = _response(self._work, self._body, None)
        return b"".join(
            [
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=_item(self._work, None, "in_progress")),
                self._event("response.content_part.added", **self._place, part=_part("")),
            ]
        )

    def end(self) -> bytes:
        output = self._work.generations[0].outputs[0]
        response = _response(self._work, self._body, output)
        return b"".join(
            [
                self._event("response.output_text.done", **self._place, text=output.text, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=_part(output.text)),
                self._event("response.output_item.done", output_index=0, item=response["output"][0]),
                self._event(f"response.{response['status']}", response=response),
            ]
        )

    def empty(self) -> None:
        """Every event of this shape says something."""

    def error(self, data: bytes) -> bytes:
        head = f'{{"type": "error", "sequence_number": {self._number}, '.encode()
        return b"event: error\n" + data_event(head + data.removeprefix(b"{"))
