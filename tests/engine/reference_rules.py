"""What every rule on token ids does to one row's logits: transformers' own classes, in the order of its
``_get_logits_processor``, and for the rules that it does not have a short reading of their definition.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from server.engine.processors import order
from server.engine.processors.base import Start
from server.protocol import PromptContext, SamplingParams

VOCAB_SIZE = 31


def start(
    prompt_ids: list[int], output_ids: list[int] | None = None, asked: SamplingParams | None = None, **params: Any
) -> Start:
    """As a sequence makes it that may have 12 new tokens; ``template_spans`` may be among the parameters."""
    spans = [(first, min(stop, len(prompt_ids))) for first, stop in params.pop("template_spans", ())]
    asked = asked or SamplingParams(**{"max_new_tokens": 12, **params})
    ending_ids = frozenset(asked.stop_token_ids) | (frozenset() if asked.ignore_eos else frozenset(asked.end_token_ids))
    return Start(
        params=asked,
        prompt_ids=np.array(prompt_ids, dtype=np.int64),
        output_ids=np.array(output_ids or [], dtype=np.int64),
        ending_ids=ending_ids,
        max_tokens=len(prompt_ids) + asked.max_new_tokens,
        context=PromptContext(template_spans=spans),
    )


def ours(logits_RV: Tensor, starts: list[Start]) -> Tensor:
    """The rows after all processors."""
    logits_RV = logits_RV.clone()
    order.apply(logits_RV, [order.for_sequence(start) for start in starts])
    return logits_RV


def theirs(logits_V: Tensor, start: Start) -> Tensor:
    """One row after the same rules."""
    params = start.params
    prompt, output, ids = start.prompt_ids.tolist(), start.output_ids.tolist(), torch.from_numpy(start.token_ids)[None]
    scores = logits_V[None].clone()
    ending = sorted(start.ending_ids)

    def apply(processor: Any) -> None:
        nonlocal scores
        scores = processor(ids, scores)

    if finite := {seq: bias for seq, bias in params.sequence_bias if bias != -np.inf}:
        apply(hf.SequenceBiasLogitsProcessor(finite))
    if params.logit_bias:
        apply(hf.SequenceBiasLogitsProcessor({(i,): float(bias) for i, bias in params.logit_bias.items()}))
    if params.encoder_repetition_penalty != 1.0:
        counted = torch.tensor([_scoped(start, "prompt")], dtype=torch.int64)
        apply(hf.EncoderRepetitionPenaltyLogitsProcessor(params.encoder_repetition_penalty, counted))
    if params.repetition_penalty != 1.0:
        counted = torch.tensor([_scoped(start, params.penalty_scope or "both")], dtype=torch.int64)
        scores = hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(counted, scores)
    for token_id, count in Counter(_scoped(start, params.penalty_scope or "output")).items():
        scores[0, token_id] += -(params.presence_penalty + params.frequency_penalty * count)
    if params.dry_multiplier:
        for token_id, penalty in dry_penalties(start).items():
            scores[0, token_id] -= penalty
    if params.no_repeat_ngram_size:
        apply(hf.NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    if params.encoder_no_repeat_ngram_size:
        apply(hf.EncoderNoRepeatNGramLogitsProcessor(params.encoder_no_repeat_ngram_size, torch.tensor([prompt])))
    if bans := [list(seq) for seq, bias in params.sequence_bias if bias == -np.inf]:
        apply(hf.NoBadWordsLogitsProcessor(bans))
    if params.min_new_tokens and ending:
        apply(hf.MinNewTokensLengthLogitsProcessor(len(prompt), params.min_new_tokens, ending))
    if params.allowed_token_ids is not None:
        apply(hf.PrefixConstrainedLogitsProcessor(lambda *_: [*params.allowed_token_ids, *ending], 1))
    if params.forced_bos_token_id is not None and not output:
        scores = hf.ForcedBOSTokenLogitsProcessor(params.forced_bos_token_id)(ids[:, :1], scores)
    if params.forced_eos_token_ids:
        apply(hf.ForcedEOSTokenLogitsProcessor(start.max_tokens, list(params.forced_eos_token_ids)))
    if params.exponential_decay_length_penalty and ending:
        apply(hf.ExponentialDecayLengthPenalty(params.exponential_decay_length_penalty, ending, len(prompt)))
    if params.suppress_tokens:
        apply(hf.SuppressTokensLogitsProcessor(params.suppress_tokens))
    if params.begin_suppress_tokens:
        first = len(prompt) + (params.forced_bos_token_id is not None)
        apply(hf.SuppressTokensAtBeginLogitsProcessor(params.begin_suppress_tokens, first))
    return scores[0]


def drawn_from(scores_V: Tensor, params: SamplingParams, num_kept: int = 1, excludes_top: bool = False) -> Tensor:
    """One row's scores after the draw's rules."""
    scores, ids = scores_V[None], torch.zeros((1, 1), dtype=torch.int64)
    rules: list[tuple[bool, Any]] = [
        (params.temperature != 1.0, lambda: hf.TemperatureLogitsWarper(params.temperature)),
        (params.top_n_sigma > 0.0, lambda: _top_n_sigma(params.top_n_sigma)),
        (params.top_k != 0, lambda: hf.TopKLogitsWarper(params.top_k, min_tokens_to_keep=num_kept)),
        (params.top_p < 1.0, lambda: hf.TopPLogitsWarper(params.top_p, min_tokens_to_keep=num_kept)),
        (params.min_p > 0.0, lambda: hf.MinPLogitsWarper(params.min_p, min_tokens_to_keep=num_kept)),
        (params.typical_p < 1.0, lambda: hf.TypicalLogitsWarper(params.typical_p, min_tokens_to_keep=num_kept)),
        (params.epsilon_cutoff > 0, lambda: hf.EpsilonLogitsWarper(params.epsilon_cutoff, min_tokens_to_keep=num_kept)),
        (params.eta_cutoff > 0, lambda: hf.EtaLogitsWarper(params.eta_cutoff, min_tokens_to_keep=num_kept)),
        (excludes_top, lambda: _exclude_top(params.xtc_threshold)),
        (params.renormalize_logits, hf.LogitNormalization),
    ]
    for is_asked, make in rules:
        if is_asked:
            scores = make()(ids, scores)
    return scores[0]


def dry_penalties(start: Start) -> dict[int, float]:
    """DRY as its author describes it: for each earlier place the longest match that ends there, token by token."""
    params = start.params
    tokens: list[int | None] = start.token_ids.tolist()
    for first, stop in start.context.template_spans:
        tokens[first:stop] = [None] * (stop - first)
    if params.dry_range:
        tokens = tokens[-params.dry_range :]
    breakers = {*params.dry_breaker_ids, None}
    longest: dict[int, int] = {}
    for place in range(1, len(tokens)):
        length = 0
        while (
            length < place and tokens[place - 1 - length] == tokens[-1 - length] and tokens[-1 - length] not in breakers
        ):
            length += 1
        following = tokens[place]
        if length >= params.dry_allowed_length and following is not None and following not in breakers:
            longest[following] = max(length, longest.get(following, 0))
    return {
        token_id: params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
        for token_id, length in longest.items()
    }


def _scoped(start: Start, scope: str | int) -> list[int]:
    in_template = {place for first, stop in start.context.template_spans for place in range(first, stop)}
    num_prompt = len(start.prompt_ids)
    tokens = list(enumerate(start.token_ids.tolist()))
    chosen = {"both": tokens, "prompt": tokens[:num_prompt], "output": tokens[num_prompt:]}
    some = tokens[-scope:] if isinstance(scope, int) else chosen[scope]
    return [token_id for place, token_id in some if place not in in_template]


def _top_n_sigma(num_sigmas: float) -> Any:
    def apply(_: Tensor, scores: Tensor) -> Tensor:
        finite = scores[scores.isfinite()].double()
        least = finite.max() - num_sigmas * finite.std(correction=0)
        return scores.masked_fill(scores < least, -torch.inf)

    return apply


def _exclude_top(threshold: float) -> Any:
    def apply(_: Tensor, scores: Tensor) -> Tensor:
        probs = scores[0].softmax(-1)
        above = [i for i in probs.argsort(descending=True).tolist() if probs[i] >= threshold]
        scores = scores.clone()
        scores[0, above[:-1]] = -torch.inf
        return scores

    return apply
