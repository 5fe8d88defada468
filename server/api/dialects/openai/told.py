"""What choices tell beside their text where vLLM's fields ask for it: token ids, and scores of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from server.api.dialects.openai.logprobs import finite
from server.api.text.schemas import ToldFields
from server.errors import InvalidParameter, InvalidRequest
from server.protocol import TokenLogprob
from server.serving.generation import Generation
from server.serving.options.table import MAX_TOP_TOKENS
from server.serving.output_text import OutputText, OutputToken
from server.text.tokenizer import Tokenizer


def told_options(body: ToldFields, num_top: int | None, *, scores_prompt: bool = False) -> dict[str, Any]:
    """The options that tell what the body asks for.

    ``num_top`` is the body's own field for log-probabilities; ``scores_prompt``: it asks for those of the prompt too.
    """
    if body.prompt_logprobs is not None and not 0 <= body.prompt_logprobs <= MAX_TOP_TOKENS:
        raise InvalidParameter("prompt_logprobs", body.prompt_logprobs, f"must be from 0 to {MAX_TOP_TOKENS}")
    if body.logprob_token_ids and num_top is None:
        raise InvalidRequest("logprob_token_ids requires logprobs.", param="logprob_token_ids")
    tops = [top for top in (num_top, body.prompt_logprobs) if top is not None]
    if not tops:
        return {}
    scores_prompt = scores_prompt or body.prompt_logprobs is not None
    # Given tokens take the place of the most likely ones, but not at the prompt's places.
    count = 0 if body.logprob_token_ids and not scores_prompt else max(tops)
    told: dict[str, Any] = {"details": True, "top_n_tokens": count}
    return {**told, "decoder_input_details": True} if scores_prompt else told


def num_others(body: ToldFields, num_top: int) -> int:
    """How many tokens other than the chosen one the log-probabilities of an output's place are about, at most."""
    return len(body.logprob_token_ids) if body.logprob_token_ids else num_top


def token_name(body: ToldFields, tokenizer: Tokenizer) -> Callable[[int], str]:
    """What log-probabilities call a token."""
    return "token_id:{}".format if body.return_tokens_as_token_ids else tokenizer.token_text


def prompt_ids(body: ToldFields, generation: Generation) -> dict[str, Any]:
    return {"prompt_token_ids": generation.prompt.input_ids} if body.return_token_ids else {}


def output_ids(body: ToldFields, output: OutputText, tokens: Sequence[OutputToken]) -> dict[str, Any]:
    """Those of ``tokens`` that were computed, an end token among them."""
    if not body.return_token_ids:
        return {}
    return {"token_ids": [token.id for token in tokens if token.place <= output.num_tokens]}


def prompt_scores(body: ToldFields, generation: Generation) -> dict[str, Any]:
    """For each token of the prompt, by id: itself and the most likely ones at its place; null for the first."""
    count, scores = body.prompt_logprobs, generation.prompt_logprobs
    if count is None or scores is None:
        return {}
    tokenizer = generation.tokenizer
    tops = scores.top_logprobs or [[]] * len(scores.logprobs)
    places = zip(generation.prompt.ids[1:], scores.logprobs, tops, strict=True)
    return {"prompt_logprobs": [None, *(_place(tokenizer, id_, value, top, count) for id_, value, top in places)]}


def _place(
    tokenizer: Tokenizer, token_id: int, logprob: float, top: Sequence[TokenLogprob], count: int
) -> dict[str, dict[str, Any]]:
    ranks = {pair.token_id: rank for rank, pair in enumerate(top, start=1)}
    found = {token_id: logprob, **{pair.token_id: pair.logprob for pair in top[:count]}}
    return {
        str(id_): {"logprob": finite(value), "rank": ranks.get(id_), "decoded_token": tokenizer.token_text(id_)}
        for id_, value in found.items()
    }
