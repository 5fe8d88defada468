"""Outputs of a chat as OpenAI's messages and chunks of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.api.openai.calls import CallDelta, ChosenCall, HermesCalls, OneCall, Piece, PlainText, Reader
from server.api.openai.logprobs import ChatLogprobs, chat_logprobs
from server.api.openai.schemas import ChatBody
from server.api.openai.shapes import ending, usage
from server.api.openai.structure import forced_tools
from server.api.openai.work import Chunks, TextWork, by_output
from server.serving.generation import OutputText, OutputToken


def chat_answer(work: TextWork, body: ChatBody, tokens: Sequence[OutputToken]) -> dict[str, Any]:
    """The whole answer; ``tokens`` are those of all outputs."""
    (generation,) = work.generations
    of_output = by_output(tokens)
    choices = []
    for index, output in enumerate(generation.answers):
        scribe = ChatScribe(work, body, output)
        pieces = scribe.read(of_output[output.number])
        choice = {"index": index, "message": _message(pieces), "logprobs": scribe.logprobs(of_output[output.number])}
        choices.append({**choice, **scribe.ending()})
    return {**work.head("chat.completion", "chatcmpl"), "choices": choices, "usage": usage(work.generations)}


def _message(pieces: Iterable[Piece]) -> dict[str, Any]:
    text = ""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif piece.name is not None:
            calls[piece.index] = _first_part(piece)
        else:
            calls[piece.index]["function"]["arguments"] += piece.arguments
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    return {**message, "tool_calls": list(calls.values())} if calls else message


def _first_part(call: CallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class ChatScribe:
    """Reads one output as it grows."""

    def __init__(self, work: TextWork, body: ChatBody, output: OutputText) -> None:
        self._output = output
        self._tokenizer = work.generator.tokenizer
        self._tells_logprobs = bool(body.logprobs)
        self._reader = _reader(body, f"call_{work.record.request_id[:16]}_{output.number}")

    def read(self, tokens: Sequence[OutputToken]) -> list[Piece]:
        """What the output's next tokens, perhaps its last ones, make certain."""
        pieces = self._reader.push("".join([token.text for token in tokens]))
        if self._output.finish_reason is not None:
            pieces += self._reader.finish(is_cut=self._output.finish_reason == "length")
        return pieces

    def logprobs(self, tokens: Sequence[OutputToken]) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, tokens) if self._tells_logprobs else None

    def ending(self) -> dict[str, Any]:
        """Of an output that has ended and been read."""
        told = ending(self._output)
        return {**told, "finish_reason": "tool_calls"} if self._has_called(told) else told

    def _has_called(self, told: Mapping[str, Any]) -> bool:
        return told["finish_reason"] == "stop" and self._reader.num_calls > 0


def _reader(body: ChatBody, id_prefix: str) -> Reader:
    def ids(index: int) -> str:
        return f"{id_prefix}_{index}"

    forced = forced_tools(body)
    if forced is not None:
        return OneCall(forced[0].function.name, ids) if len(forced) == 1 else ChosenCall(ids)
    return HermesCalls(ids) if body.tools and body.tool_choice != "none" else PlainText()


class ChatChunks(Chunks):
    """A stream of ``/v1/chat/completions``."""

    def __init__(self, work: TextWork, body: ChatBody) -> None:
        nothing = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        super().__init__(work, work.head("chat.completion.chunk", "chatcmpl"), nothing)
        self._body = body
        self._scribes: dict[int, ChatScribe] = {}

    def choices(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> list[dict[str, Any]]:
        outputs = self.work.generations[number].outputs
        return [choice for i, its_tokens in tokens.items() for choice in self._choices(outputs[i], its_tokens)]

    def _choices(self, output: OutputText, tokens: Sequence[OutputToken]) -> list[dict[str, Any]]:
        """The role comes with an output's first token: a client takes the first chunk for it."""
        scribe = self._scribes.get(output.number)
        is_first = scribe is None
        if scribe is None:
            scribe = self._scribes[output.number] = ChatScribe(self.work, self._body, output)
        deltas = [_delta(piece) for piece in scribe.read(tokens)] or [{}]
        if is_first:
            deltas[0] = {"role": "assistant", "content": None if "tool_calls" in deltas[0] else "", **deltas[0]}
        choices = [{**self.nothing, "index": output.number, "delta": delta} for delta in deltas]
        choices[0]["logprobs"] = scribe.logprobs(tokens)
        if output.finish_reason is None:
            return choices
        says_nothing = choices == [{**self.nothing, "index": output.number}]
        return [*([] if says_nothing else choices), {**self.nothing, "index": output.number, **scribe.ending()}]


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"content": piece}
    part = _first_part(piece) if piece.name is not None else {"function": {"arguments": piece.arguments}}
    return {"tool_calls": [{"index": piece.index, **part}]}
