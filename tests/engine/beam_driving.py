"""Beam searches over a dense forward pass, without an engine; and transformers' own, recorded step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode

from server.engine.beam_pool import Hypothesis
from server.engine.beam_ranking import advance
from server.engine.beams import BeamSearch
from server.engine.processors import order as processors_order
from server.engine.processors.base import LogitsProcessor, Start
from server.engine.stopping import Stopping
from server.protocol import SamplingParams
from server.vocabulary import Vocabulary

Forward = Callable[[list[list[int]]], Tensor]
"""Rows of token ids -> the logits after each, float32."""


def dense(module: PreTrainedModel) -> Forward:
    """Every prefix computed anew; rows of one length."""

    def forward(rows: list[list[int]]) -> Tensor:
        with torch.inference_mode():
            return module(torch.tensor(rows), use_cache=False).logits[:, -1].float()

    return forward


@dataclass
class Row:
    token_ids: list[int]
    processors: tuple[LogitsProcessor, ...]


@dataclass
class Run:
    """One search from its prompt to its answer."""

    prompt_ids: list[int]
    params: SamplingParams
    vocabulary: Vocabulary | None = None
    max_model_len: int = 512
    streamed: list[int] = field(default_factory=list)
    streamed_logprobs: list[float] = field(default_factory=list)
    num_steps: int = 0
    has_failed: bool = False

    def __post_init__(self) -> None:
        stopping = Stopping(self.params, len(self.prompt_ids), self.max_model_len)
        self.search = BeamSearch(
            self.params,
            ending_ids=stopping.ending_ids,
            max_tokens=stopping.max_tokens,
            num_prompt_tokens=len(self.prompt_ids),
            vocabulary=self.vocabulary,
        )
        start = Start(
            params=self.params,
            prompt_ids=np.array(self.prompt_ids, dtype=np.int64),
            output_ids=np.zeros(0, dtype=np.int64),
            ending_ids=stopping.ending_ids,
            max_tokens=stopping.max_tokens,
            vocabulary=self.vocabulary,
        )
        self.rows = [Row(list(self.prompt_ids), processors_order.for_sequence(start))]

    @property
    def is_over(self) -> bool:
        return self.has_failed or self.search.is_done

    @property
    def results(self) -> list[Hypothesis]:
        return self.search.results()

    @property
    def scores(self) -> list[float]:
        return [hypothesis.score for hypothesis in self.results]

    @property
    def outputs(self) -> list[list[int]]:
        return [hypothesis.token_ids.tolist() for hypothesis in self.results]


def drive(runs: list[Run], forward: Forward) -> list[Run]:
    """Step all searches together until each is done."""
    while live := [run for run in runs if not run.is_over]:
        logits = torch.cat([forward([row.token_ids for row in run.rows]) for run in live])
        processors = [[row.processors for row in run.rows] for run in live]
        steps = advance(logits, [run.search for run in live], processors)
        for run, step in zip(live, steps, strict=True):
            run.num_steps += 1
            run.has_failed = not step.is_finite
            run.rows = [
                Row([*run.rows[parent].token_ids, token_id], processors_order.fork(run.rows[parent].processors))
                for parent, token_id in zip(step.parents, step.token_ids, strict=True)
            ]
            for row in run.rows:
                for processor in row.processors:
                    processor.accept(row.token_ids[-1])
                row.processors = tuple(processor for processor in row.processors if not processor.is_spent)
            agreed = run.search.agreed()
            run.streamed += agreed.token_ids
            run.streamed_logprobs += agreed.logprobs
    return runs


def search(module: PreTrainedModel, prompt_ids: list[int], vocabulary: Vocabulary | None = None, **params: Any) -> Run:
    return drive([Run(prompt_ids, SamplingParams(**params), vocabulary)], dense(module))[0]


@dataclass
class Expected:
    """What transformers answers, its outputs without padding."""

    outputs: list[list[int]]
    scores: list[float]
    margin: float
    """The least difference between two neighbours among the scores that were ranked."""


@torch.inference_mode()
def transformers_search(
    module: PreTrainedModel,
    prompt_ids: list[int],
    *,
    eos: list[int] | None,
    processors: LogitsProcessorList | None = None,
    criteria: StoppingCriteriaList | None = None,
    **options: Any,
) -> Expected:
    """`generate` in transformers' own beam search, for one beam as well."""
    options.setdefault("do_sample", False)
    margins: list[float] = []
    topk = torch.topk

    def watched_topk(input: Tensor, k: int, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
        ranked = topk(input.flatten(), min(k + 1, input.numel())).values
        steps = (ranked[:-1] - ranked[1:])[ranked[1:] > -1e8]
        margins.extend(steps.tolist())
        return topk(input, k, *args, **kwargs)

    config = GenerationConfig(
        eos_token_id=eos,
        pad_token_id=399,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    with (
        # What the config leaves out would be taken from the model's.
        patch.object(module, "generation_config", GenerationConfig()),
        patch.object(GenerationConfig, "get_generation_mode", lambda *_: GenerationMode.BEAM_SEARCH),
        patch.object(torch, "topk", watched_topk),
    ):
        output = module.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=criteria,
        )
    lengths = (output.beam_indices >= 0).sum(-1).tolist()
    start = len(prompt_ids)
    outputs = [row[start : start + n].tolist() for row, n in zip(output.sequences, lengths, strict=True)]
    return Expected(outputs, output.sequences_scores.tolist(), min(margins))
