"""Diverse beam search against recorded outputs of the last transformers that has it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from server.engine.beam_pool import Candidates
from server.engine.beams import BeamSearch
from server.protocol import SamplingParams
from tests.engine.beam_driving import search
from tests.tiny_models import tiny_decoder

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "diverse_beams.json").read_text())["cases"]
SHAPES = sorted({(case["options"]["num_beams"], case["options"]["num_beam_groups"]) for case in RECORDED})


@cache
def module_of(family: str) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(family)


def run(case: dict[str, Any], **changes: Any) -> Any:
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in case["options"].items()}
    options |= {"end_token_ids": tuple(case["end_ids"]), **changes}
    return search(module_of(case["family"]), case["prompt_ids"], **options)


def as_recorded(output: list[int], end_ids: list[int]) -> list[int]:
    """There a hypothesis gets the first end token, whichever ended it."""
    return [*output[:-1], end_ids[0]] if output[-1] in end_ids else output


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_diverse_hypotheses_and_scores_are_those_recorded(shape):
    cases = [case for case in RECORDED if (case["options"]["num_beams"], case["options"]["num_beam_groups"]) == shape]
    assert len(cases) == 30
    for case in cases:
        found = run(case)
        assert [as_recorded(output, case["end_ids"]) for output in found.outputs] == case["outputs"]
        assert found.scores == pytest.approx(case["scores"], abs=1e-4, rel=2e-6)


def test_streamed_tokens_of_a_diverse_search_begin_every_answer():
    num_streamed = 0
    for case in RECORDED[::5]:
        # Groups of which each has the same favourite: what they agree on is certain.
        found = run(case, diversity_penalty=1e-3, num_return_sequences=1)
        assert found.outputs[0][: len(found.streamed)] == found.streamed
        num_streamed += len(found.streamed)
    assert num_streamed > 10


def test_a_greater_penalty_makes_the_groups_differ_more():
    case = next(case for case in RECORDED if case["options"]["num_beams"] == 8)
    changes = {"num_return_sequences": 8, "max_new_tokens": 8, "end_token_ids": ()}
    first_tokens = [
        len({output[0] for output in run(case, diversity_penalty=penalty, **changes).outputs})
        for penalty in (1e-3, 50.0)
    ]
    assert first_tokens[0] < first_tokens[1]


def candidates(*pairs: tuple[int, float]) -> Candidates:
    """Of the first row, token 0 ending it."""
    ids = np.array([token_id for token_id, _ in pairs], dtype=np.int64)
    scores = np.array([score for _, score in pairs], dtype=np.float32)
    return Candidates(np.zeros_like(ids), ids, scores, ids == 0, np.zeros_like(scores))


def diverse_search(num_beams: int, **options: Any) -> BeamSearch:
    params = SamplingParams(num_beams=num_beams, num_beam_groups=2, max_new_tokens=9, **options)
    return BeamSearch(params, ending_ids=frozenset({0}), max_tokens=10, num_prompt_tokens=1)


def test_a_group_that_is_done_leads_the_others_away_in_its_last_step_only():
    search = diverse_search(2, early_stopping=True)
    search.take(0, candidates((0, -1.0), (3, -2.0)))
    assert search.lanes[0].is_done
    assert search.chosen_before(1) == [3]
    search.take(1, candidates((5, -1.0), (0, -2.0)))
    assert search.end_step().token_ids == [5]
    assert search.chosen_before(1) == []


def test_a_group_goes_on_while_any_candidate_is_better_than_its_worst_hypothesis():
    """Also one that has just ended: there transformers' two beam searches differ."""
    lane = diverse_search(4, length_penalty=0.0).lanes[0]
    lane.take(candidates((3, -2.0), (0, -3.0), (4, -4.0)))
    lane.take(candidates((0, -2.5), (5, -5.0), (6, -6.0)))
    assert lane.pool.is_full
    assert not lane.is_done
    lane.take(candidates((5, -6.0), (6, -7.0), (0, -8.0)))
    assert lane.is_done
