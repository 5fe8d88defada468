"""``POST /v1/completions``: texts continued, in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.openai.bodies import CompletionBody
from server.api.dialects.openai.dialect import OPENAI
from server.api.dialects.openai.logprobs import CompletionLogprobs, CompletionScribe
from server.api.dialects.openai.told import num_others, output_ids, prompt_ids, prompt_scores, token_name, told_options
from server.api.http.json_reply import json_reply
from server.api.text.prompt import prompt_source
from server.api.text.shapes import ending
from server.api.text.structure import structure_of
from server.api.text.work import Chunks, TextWork, by_output, generator_of
from server.errors import ConflictingParameters, UnsupportedParameter
from server.serving.generation import Generation
from server.serving.output_text import OutputText, OutputToken
from server.serving.prompts import PromptSource
from server.text.tokenizer import Tokenizer

router = DialectRouter(OPENAI, "openai")

OBJECT = "text_completion"


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionBody, context: ContextDep) -> Response:
    """Continue ``prompt``: a text, token ids, or a list of either; ``n`` samples of each, or a beam search's best."""
    if body.suffix:
        raise UnsupportedParameter("suffix", "inserting text is not supported")
    generator = await generator_of(context, body)
    if body.echo and generator.ready.max_source_len:
        raise UnsupportedParameter("echo", "the output does not continue the input")
    structure = structure_of(body)
    names = {
        "inputs": "prompt",
        "decoder_input_details": "echo with logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        **(structure.names if structure else {}),
    }
    work = TextWork(context, body, generator, names, is_scored=_is_scored(body))
    await work.prepare(_source(body), _added(body, structure and structure.grammar))
    if body.stream:
        return await work.stream(CompletionChunks(work, body))
    tokens = await work.run()
    # In a thread: the log-probabilities of long prompts take long to write.
    return await asyncio.to_thread(_reply, work, body, tokens)


def _source(body: CompletionBody) -> PromptSource:
    return prompt_source(body, {}, texts=_prompts(body.prompt))


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids:
        return [ids]
    return [item for item in prompt if not isinstance(item, int)]


def _is_scored(body: CompletionBody) -> bool:
    """Whether no token is asked for: the prompt's own are, with ``echo``, or their place in the prefix cache."""
    return bool(_no_tokens(body))


def _no_tokens(body: CompletionBody) -> list[str]:
    """The fields that say so."""
    return [name for name in ("max_tokens", "max_completion_tokens", "max_new_tokens") if getattr(body, name) == 0]


def _added(body: CompletionBody, grammar: Mapping[str, Any] | None) -> dict[str, Any]:
    added: dict[str, Any] = {} if grammar is None else {"grammar": grammar}
    if _is_scored(body):
        added["max_new_tokens"] = 1
        if body.logprob_token_ids:
            raise ConflictingParameters("logprob_token_ids", _no_tokens(body)[0], "there is no output")
    return added | told_options(body, body.logprobs, scores_prompt=bool(body.echo and body.logprobs is not None))


def _reply(work: TextWork, body: CompletionBody, tokens: Sequence[Sequence[OutputToken]]) -> Response:
    choices: list[dict[str, Any]] = []
    for generation, its_tokens in zip(work.generations, tokens, strict=True):
        of_output = by_output(its_tokens)
        for output in generation.answers:
            scribe = Scribe(work, body, generation)
            written = scribe.write(output, of_output[output.number])
            choices.append({"index": len(choices), **written, **prompt_scores(body, generation)})
    answer = {**work.head(OBJECT, "cmpl"), "choices": choices, "usage": work.usage()}
    return json_reply(answer)


def _scribe(body: CompletionBody, tokenizer: Tokenizer) -> CompletionScribe | None:
    if body.logprobs is None:
        return None
    num_told = num_others(body, body.logprobs)
    return CompletionScribe(tokenizer, body.logprobs, num_told, token_name(body, tokenizer))


class Scribe:
    """Writes one choice: text and log-probabilities, the prompt before them where it is wanted."""

    def __init__(self, work: TextWork, body: CompletionBody, generation: Generation) -> None:
        tokenizer = work.generator.tokenizer
        self._body = body
        self._generation = generation
        self._is_scored = work.is_scored
        self._logprobs = _scribe(body, tokenizer)
        self._is_first = True

    def write(self, output: OutputText, tokens: Sequence[OutputToken]) -> dict[str, Any]:
        """The choice's next tokens, and its ending after the last."""
        tokens = [] if self._is_scored else tokens
        has_prompt = self._is_first and bool(self._body.echo)
        text = "".join([token.text for token in tokens])
        choice: dict[str, Any] = {
            "text": self._generation.prompt.text + text if has_prompt else text,
            "logprobs": self._told(tokens, has_prompt),
            **(prompt_ids(self._body, self._generation) if self._is_first else {}),
            **output_ids(self._body, output, tokens),
            "finish_reason": None,
        }
        self._is_first = False
        return choice if output.finish_reason is None else {**choice, **self._ending(output)}

    def _told(self, tokens: Sequence[OutputToken], has_prompt: bool) -> CompletionLogprobs | None:
        if self._logprobs is None:
            return None
        found = self._logprobs.prompt(self._generation) if has_prompt else CompletionLogprobs()
        found.extend(self._logprobs.tokens(tokens))
        return found

    def _ending(self, output: OutputText) -> dict[str, Any]:
        return {"finish_reason": "length", "stop_reason": None} if self._is_scored else ending(output)


class CompletionChunks(Chunks):
    """A stream of ``/v1/completions``."""

    def __init__(self, work: TextWork, body: CompletionBody) -> None:
        nothing = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        super().__init__(work, work.head(OBJECT, "cmpl"), nothing)
        self._body = body
        self._scribes: dict[tuple[int, int], Scribe] = {}

    def choices(self, number: int, tokens: Mapping[int, Sequence[OutputToken]]) -> list[dict[str, Any]]:
        outputs = self.work.generations[number].outputs
        first = number * len(outputs)
        return [self._choice(number, outputs[i], first + i, its_tokens) for i, its_tokens in tokens.items()]

    def _choice(self, number: int, output: OutputText, index: int, tokens: Sequence[OutputToken]) -> dict[str, Any]:
        key = (number, output.number)
        scribe = self._scribes.get(key)
        if scribe is None:
            scribe = self._scribes[key] = Scribe(self.work, self._body, self.work.generations[number])
        return {"index": index, **scribe.write(output, tokens)}
