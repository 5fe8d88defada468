"""What transformers makes of a request: an independent reading of every option, without batch or engine.

Greedy search and beam search are `generate` itself. For sampled tokens the processors are those that transformers
builds for the same `GenerationConfig`, in its order, and the token is drawn with the same uniform number as ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import msgspec
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation import TemperatureLogitsWarper

from server.engine.randomness import uniforms
from server.protocol import Generate, SamplingParams

SAME_NAME = (
    "max_new_tokens",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_return_sequences",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "renormalize_logits",
    "guidance_scale",
)
"""Options that a `GenerationConfig` has under the same name with the same neutral value."""

NOISE = 3e-6
"""Of the size of rounding errors in float32 logits of the tiny models."""
NUM_TRIALS = 24


@dataclass(frozen=True)
class Sample:
    token_ids: list[int]
    score: float | None = None


def generation_config(command: Generate, module: PreTrainedModel) -> GenerationConfig:
    params = command.params
    theirs: dict[str, Any] = {name: getattr(params, name) for name in SAME_NAME}
    theirs["use_cache"] = True
    theirs["min_p"] = params.min_p or None
    theirs["suppress_tokens"] = list(params.suppress_tokens) or None
    theirs["begin_suppress_tokens"] = list(params.begin_suppress_tokens) or None
    theirs["forced_bos_token_id"] = params.forced_bos_token_id
    theirs["forced_eos_token_id"] = list(params.forced_eos_token_ids) or None
    theirs["exponential_decay_length_penalty"] = params.exponential_decay_length_penalty
    theirs["eos_token_id"] = list(params.end_token_ids + params.stop_token_ids) or None
    theirs["pad_token_id"] = module.generation_config.pad_token_id
    theirs["decoder_start_token_id"] = module.generation_config.decoder_start_token_id
    bias = {tuple(ids): float(value) for ids, value in params.sequence_bias}
    bias |= {(token_id,): float(value) for token_id, value in params.logit_bias.items()}
    theirs["sequence_bias"] = bias or None
    return GenerationConfig(**theirs)


class OutputPenalty(LogitsProcessor):
    """OpenAI's presence and frequency penalty."""

    def __init__(self, params: SamplingParams, num_prompt_tokens: int) -> None:
        self.params = params
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, ids in enumerate(input_ids[:, self.num_prompt_tokens :].tolist()):
            for token_id in set(ids):
                scores[row, token_id] -= self.params.presence_penalty
                scores[row, token_id] -= self.params.frequency_penalty * ids.count(token_id)
        return scores


class AllowedTokens(LogitsProcessor):
    def __init__(self, params: SamplingParams) -> None:
        self.allowed = [*(params.allowed_token_ids or ()), *params.end_token_ids, *params.stop_token_ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.allowed] = scores[:, self.allowed]
        return masked


class TopNSigma(LogitsProcessor):
    def __init__(self, num_sigmas: float) -> None:
        self.num_sigmas = num_sigmas

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores[0][scores[0].isfinite()]
        return scores.masked_fill(scores < finite.max() - self.num_sigmas * finite.std(correction=0), -torch.inf)


class Noise(LogitsProcessor):
    """A rounding error, to see whether a choice hangs on one. First in the list."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + NOISE * torch.randn(scores.shape, generator=self.generator)


def stable_sorts() -> AbstractContextManager[Any]:
    """Within it, top_p keeps the highest ids of equal logits. Without it, torch's kernel for the processor decides."""
    return mock.patch.object(torch, "sort", partial(torch.sort, stable=True))


def own_processors(command: Generate) -> LogitsProcessorList:
    """Rules that transformers does not have."""
    params = command.params
    own = LogitsProcessorList()
    if params.presence_penalty or params.frequency_penalty:
        own.append(OutputPenalty(params, len(command.prompt_ids)))
    if params.allowed_token_ids is not None:
        own.append(AllowedTokens(params))
    return own


def processors_of(command: Generate, module: PreTrainedModel) -> LogitsProcessorList:
    """As `generate` builds them, the rules of the draw included."""
    config = generation_config(command, module)
    config.max_length = len(command.prompt_ids) + command.params.max_new_tokens
    module._prepare_special_tokens(config, True, device=torch.device("cpu"))
    prompt = torch.tensor([command.prompt_ids])
    source = torch.tensor([command.source_ids or command.prompt_ids])
    negative = torch.tensor([command.negative_prompt_ids]) if command.negative_prompt_ids else None
    found = module._get_logits_processor(
        config,
        input_ids_seq_length=prompt.shape[1],
        encoder_input_ids=source,
        logits_processor=own_processors(command),
        device="cpu",
        model_kwargs={},
        negative_prompt_ids=negative,
    )
    if command.params.top_n_sigma:
        places = [i for i, processor in enumerate(found) if isinstance(processor, TemperatureLogitsWarper)]
        found.insert(places[-1] + 1 if places else _num_before_draw(found), TopNSigma(command.params.top_n_sigma))
    return found


def _num_before_draw(found: LogitsProcessorList) -> int:
    draws = ("LogitsWarper", "LogitNormalization")
    return next((i for i, p in enumerate(found) if type(p).__name__.endswith(draws)), len(found))


def inputs_of(command: Generate, token_ids: list[int]) -> dict[str, Tensor]:
    """What the module reads when the sequence is ``token_ids`` so far."""
    if not command.source_ids:
        return {"input_ids": torch.tensor([token_ids])}
    return {"input_ids": torch.tensor([command.source_ids]), "decoder_input_ids": torch.tensor([token_ids])}


class Reader:
    """Gives the logits ``[1, V]`` of the token after all that are read so far.

    An encoder-decoder is read with its cache, as by `generate`: without one, some take an output's token for padding,
    and ProphetNet's logits change with the number of tokens in a call.
    """

    def __init__(self, module: PreTrainedModel, command: Generate) -> None:
        self._module, self._command = module, command
        self._num_read = 0
        self._options: dict[str, Any] = {"use_cache": False}
        if command.source_ids:
            states = module.get_encoder()(input_ids=torch.tensor([command.source_ids]))
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            self._options = {"encoder_outputs": states, "past_key_values": cache, "use_cache": True}

    def logits(self, token_ids: list[int]) -> Tensor:
        """``token_ids`` are all, with those that were read before."""
        inputs = inputs_of(self._command, token_ids[self._num_read :] if self._command.source_ids else token_ids)
        self._num_read = len(token_ids)
        logits: Tensor = self._module(**inputs, **self._options).logits
        return logits[:, -1].float()


@torch.inference_mode()
def sample(module: PreTrainedModel, command: Generate, sample_index: int = 0, noise: int | None = None) -> Sample:
    """Tokens of one sample, of a decoder each from a forward pass over all before it."""
    params = command.params
    processors = processors_of(command, module)
    if noise is not None:
        processors.insert(0, Noise(noise))
    ids, reader = list(command.prompt_ids), Reader(module, command)
    ending = {*params.end_token_ids, *params.stop_token_ids}
    for position in range(params.max_new_tokens):
        scores = processors(torch.tensor([ids]), reader.logits(ids))[0]
        if params.do_sample:
            cumulated = scores.double().softmax(-1).cumsum(-1)
            uniform = uniforms([params.seed], [sample_index], [position])[0]
            token_id = int((cumulated > uniform * cumulated[-1]).nonzero()[0])
        else:
            token_id = int(scores.argmax())
        ids.append(token_id)
        if token_id in ending:
            break
    return Sample(ids[len(command.prompt_ids) :])


@torch.inference_mode()
def search(module: PreTrainedModel, command: Generate, noise: int | None = None) -> list[Sample]:
    """`generate`: greedy or beams; hypotheses from the best on."""
    inputs = inputs_of(command, command.prompt_ids)
    config = generation_config(command, module)
    config.return_dict_in_generate = config.output_scores = True
    own = own_processors(command)
    if noise is not None:
        own.insert(0, Noise(noise))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = module.generate(
            generation_config=config,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            logits_processor=own,
            negative_prompt_ids=torch.tensor([command.negative_prompt_ids]) if command.negative_prompt_ids else None,
            **inputs,
        )
    ending = {*command.params.end_token_ids, *command.params.stop_token_ids}
    scores = output.get("sequences_scores")
    return [
        Sample(_cut(row[len(command.prompt_ids) :].tolist(), ending), None if scores is None else float(scores[i]))
        for i, row in enumerate(output.sequences)
    ]


def _cut(token_ids: list[int], ending: set[int]) -> list[int]:
    """Without the padding after the end token."""
    end = next((i for i, token_id in enumerate(token_ids) if token_id in ending), len(token_ids) - 1)
    return token_ids[: end + 1]


def expected(module: PreTrainedModel, command: Generate) -> list[Sample]:
    """All that the request should answer, by index. The same module is asked once, however many engines it judges."""
    known = _KNOWN.setdefault(module, {})
    key = msgspec.msgpack.encode(command)
    if key not in known:
        known[key] = _answer(module, command)
    return known[key]


_KNOWN: WeakKeyDictionary[PreTrainedModel, dict[bytes, list[Sample]]] = WeakKeyDictionary()


def _answer(module: PreTrainedModel, command: Generate, noise: int | None = None) -> list[Sample]:
    with stable_sorts():
        if command.params.num_beams > 1:
            return search(module, command, noise)
        return [sample(module, command, i, noise) for i in range(command.params.num_return_sequences)]


def is_tie(module: PreTrainedModel, command: Generate, got: list[Sample], same: Callable[..., bool]) -> bool:
    """Whether ours is what transformers itself answers under some rounding error."""
    return any(same(got, _answer(module, command, noise)) for noise in range(NUM_TRIALS))
