"""Outputs of a chat as OpenAI's messages and chunks of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.api.dialects.openai.bodies import ChatBody
from server.api.dialects.openai.logprobs import ChatTeller
from server.api.dialects.openai.told import num_others, output_ids, prompt_ids, prompt_scores, token_name
from server.api.text.messages import text_of
from server.api.text.scribe import Scribe
from server.api.text.turn_plan import TurnPlan
from server.api.text.work import Chunks, TextWork, by_output
from server.serving.output_text import OutputText, OutputToken
from server.text.turns.pieces import CallDelta, Piece, Reasoning


def chat_answer(work: TextWork, body: ChatBody, plan: TurnPlan, tokens: Sequence[OutputToken]) -> dict[str, Any]:
    """The whole answer; ``tokens`` are those of all outputs."""
    (generation,) = work.generations
    of_output = by_output(tokens)
    teller = _teller(work, body)
    choices = []
    for index, output in enumerate(generation.answers):
        mine = of_output[output.number]
        scribe = Scribe(work, plan, output)
        pieces = [*([said] if (said := echoed(body)) else []), *scribe.read(mine)]
        choice = {"index": index, "message": _message(pieces), "logprobs": teller and teller.tell(mine)}
        choices.append({**choice, **output_ids(body, output, mine), **scribe.ending()})
    told = {**prompt_ids(body, generation), **prompt_scores(body, generation)}
    return {**work.head("chat.completion", "chatcmpl"), "choices": choices, "usage": work.usage(), **told}


def echoed(body: ChatBody) -> str:
    """What goes before each answer with ``echo``: the text of an assistant's last message, which it may continue."""
    last = body.messages[-1]
    return text_of(last) if body.echo and last.role == "assistant" else ""


def _message(pieces: Iterable[Piece]) -> dict[str, Any]:
    text = reasoning = ""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif isinstance(piece, Reasoning):
            reasoning += piece.text
        elif piece.name is not None:
            calls[piece.index] = _first_part(piece)
        else:
            calls[piece.index]["function"]["arguments"] += piece.arguments
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    return {**message, "tool_calls": list(calls.values())} if calls else message


def _teller(work: TextWork, body: ChatBody) -> ChatTeller | None:
    if not body.logprobs:
        return None
    tokenizer = work.generator.tokenizer
    return ChatTeller(tokenizer, num_others(body, body.top_logprobs or 0), token_name(body, tokenizer))


def _first_part(call: CallDelta) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class ChatChunks(Chunks):
    """A stream of ``/v1/chat/completions``."""

    def __init__(self, work: TextWork, body: ChatBody, plan: TurnPlan) -> None:
        nothing = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        super().__init__(work, work.head("chat.completion.chunk", "chatcmpl"), nothing)
        self.once = prompt_ids(body, work.generations[0])
        self._body = body
        self._plan = plan
        self._teller = _teller(work, body)
        self._scribes: dict[int, Scribe] = {}

    def choices(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> list[dict[str, Any]]:
        outputs = self.work.generations[number].outputs
        return [choice for i, its_tokens in tokens.items() for choice in self._choices(outputs[i], its_tokens)]

    def _choices(self, output: OutputText, tokens: Sequence[OutputToken]) -> list[dict[str, Any]]:
        """The role comes with an output's first token: a client takes the first chunk for it."""
        scribe = self._scribes.get(output.number)
        is_first = scribe is None
        if scribe is None:
            scribe = self._scribes[output.number] = Scribe(self.work, self._plan, output)
        deltas = [_delta(piece) for piece in scribe.read(tokens)] or [{}]
        if is_first and (said := echoed(self._body)):
            deltas = [{"content": said}, *filter(None, deltas)]
        if is_first:
            deltas[0] = {"role": "assistant", "content": "" if deltas[0].keys() <= {"content"} else None, **deltas[0]}
        choices = [{**self.nothing, "index": output.number, "delta": delta} for delta in deltas]
        choices[0]["logprobs"] = self._teller and self._teller.tell(tokens)
        choices[0] |= output_ids(self._body, output, tokens)
        if output.finish_reason is None:
            return choices
        says_nothing = choices == [{**self.nothing, "index": output.number}]
        return [*([] if says_nothing else choices), {**self.nothing, "index": output.number, **scribe.ending()}]


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"content": piece}
    if isinstance(piece, Reasoning):
        return {"reasoning_content": piece.text}
    part = _first_part(piece) if piece.name is not None else {"function": {"arguments": piece.arguments}}
    return {"tool_calls": [{"index": piece.index, **part}]}
