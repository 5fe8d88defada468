"""Beam search against transformers' own, over a dense forward pass: what the search itself decides."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from server.engine.beam_ranking import advance
from server.protocol import SamplingParams
from tests.engine.beam_driving import Expected, Run, dense, drive, search, transformers_search
from tests.oracle_versions import needs_oracle
from tests.tiny_models import tiny_decoder

NUM_BEAMS = [1, 2, 3, 4, 8]
LENGTH_PENALTIES = [-1.0, 0.0, 0.6, 1.0, 2.0]
EARLY_STOPPING = [False, True, "never"]
END_IDS = [[11], [2, 11, 40, 77, 90], None, [1, 275]]
LENGTHS = [12, 1, 20, 2, 7]
TOSS = 1e-5
"""Scores that are nearer than this may change places by rounding."""


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder("llama")


def prompt_of(seed: int, length: int = 5) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 380, (length,), generator=generator).tolist()


def assert_same(run: Run, expected: Expected) -> None:
    assert not run.has_failed
    if run.outputs != expected.outputs:
        assert expected.margin < TOSS, "the search went another way"
        return
    # Relative as well: a negative length penalty multiplies the rounding errors of the sums.
    assert run.scores == pytest.approx(expected.scores, abs=1e-4, rel=2e-6)
    for output, hypothesis in zip(run.outputs, run.results, strict=True):
        is_end = output[-1] in run.search.ending_ids
        assert hypothesis.finish_reason == ("stop" if is_end else "length")


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
def test_hypotheses_and_scores_are_those_of_transformers(module, num_beams):
    for case, (length_penalty, early_stopping) in enumerate(itertools.product(LENGTH_PENALTIES, EARLY_STOPPING)):
        prompt_ids = prompt_of(100 * num_beams + case)
        end_ids = END_IDS[case % len(END_IDS)]
        options: dict[str, Any] = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_new_tokens": LENGTHS[case % len(LENGTHS)],
            "num_return_sequences": 1 + case % num_beams,
        }
        run = search(module, prompt_ids, end_token_ids=tuple(end_ids or ()), **options)
        assert_same(run, transformers_search(module, prompt_ids, eos=end_ids, **options))


def test_searches_that_end_by_end_tokens_end_in_the_same_step(llama):
    """The heuristics decide: likely end tokens fill the pools long before the greatest length."""
    num_stopped_early = 0
    for case, (num_beams, length_penalty, early_stopping) in enumerate(
        itertools.product([2, 4], LENGTH_PENALTIES, EARLY_STOPPING)
    ):
        options: dict[str, Any] = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_new_tokens": 24,
        }
        end_ids = list(range(2, 62))
        prompt_ids = prompt_of(1000 + case)
        run = search(llama, prompt_ids, end_token_ids=tuple(end_ids), num_return_sequences=num_beams, **options)
        expected = transformers_search(llama, prompt_ids, eos=end_ids, num_return_sequences=num_beams, **options)
        assert_same(run, expected)
        num_stopped_early += run.num_steps < 24
    assert num_stopped_early > 10


def test_never_goes_on_while_a_longer_hypothesis_could_be_better_as_in_transformers(llama):
    end_ids = list(range(2, 62))
    for seed in (9, 11, 13):
        prompt_ids = [5 + seed, 90, 41 + seed]
        options: dict[str, Any] = {"num_beams": 2, "length_penalty": 2.0, "max_new_tokens": 24}
        early, late = (
            search(llama, prompt_ids, end_token_ids=tuple(end_ids), early_stopping=early_stopping, **options)
            for early_stopping in (False, "never")
        )
        assert early.num_steps < late.num_steps
        assert early.scores[0] < late.scores[0]
        assert_same(late, transformers_search(llama, prompt_ids, eos=end_ids, early_stopping="never", **options))


RULES: list[Any] = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"no_repeat_ngram_size": 1},
    {"renormalize_logits": True, "repetition_penalty": 1.3},
    {"exponential_decay_length_penalty": (3, 1.5)},
    {"suppress_tokens": [275, 95, 377]},
    pytest.param(
        {"begin_suppress_tokens": [95, 275], "encoder_repetition_penalty": 1.4},
        marks=needs_oracle("encoder_repetition_penalty with beams"),
    ),
    {"encoder_no_repeat_ngram_size": 1, "min_new_tokens": 3},
    {"sequence_bias": [[[95], 4.0], [[275, 95], -3.0]]},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_rules_on_logits_act_on_log_probabilities_as_in_transformers(module, rules):
    ours = {name: tuple(value) if isinstance(value, list) else value for name, value in rules.items()}
    if "sequence_bias" in ours:
        ours["sequence_bias"] = tuple((tuple(ids), bias) for ids, bias in rules["sequence_bias"])
    for case, num_beams in enumerate([2, 4, 3]):
        prompt_ids = prompt_of(7 + case, length=9)
        options: dict[str, Any] = {"num_beams": num_beams, "num_return_sequences": num_beams, "max_new_tokens": 14}
        run = search(module, prompt_ids, end_token_ids=(11, 40), **options, **ours)
        assert_same(run, transformers_search(module, prompt_ids, eos=[11, 40], **options, **rules))


def test_searches_in_one_step_do_not_feel_one_another(llama):
    runs, alone = ([
        Run(
            prompt_of(50 + i, length=4 + i),
            SamplingParams(
                num_beams=num_beams,
                num_return_sequences=num_beams,
                max_new_tokens=6 + 2 * i,
                end_token_ids=tuple(range(2, 2 + 3 * i)),
                repetition_penalty=1.0 + 0.2 * (i % 3),
                logprobs=bool(i % 2),
                num_beam_groups=2 if num_beams == 6 else 1,
                diversity_penalty=0.5 if num_beams == 6 else 0.0,
            ),
        )
        for i, num_beams in enumerate([2, 4, 6, 3, 8])
    ] for _ in range(2))  # fmt: skip
    drive(runs, dense(llama))
    for run, lone in zip(runs, alone, strict=True):
        drive([lone], dense(llama))
        assert run.outputs == lone.outputs
        assert run.scores == lone.scores
        assert run.streamed == lone.streamed


def test_streamed_tokens_begin_every_answer_and_never_more_than_is_certain(llama):
    num_streamed = 0
    for case, (num_beams, num_return) in enumerate([(2, 1), (2, 2), (4, 1), (4, 4), (3, 2), (8, 1)] * 4):
        run = search(
            llama,
            prompt_of(300 + case),
            num_beams=num_beams,
            num_return_sequences=num_return,
            max_new_tokens=30,
            end_token_ids=tuple(range(2, 2 + case)),
            logprobs=True,
        )
        for hypothesis in run.results:
            assert hypothesis.token_ids[: len(run.streamed)].tolist() == run.streamed
            assert hypothesis.logprobs[: len(run.streamed)].tolist() == run.streamed_logprobs
        num_streamed += len(run.streamed)
    assert num_streamed > 100


def test_a_finished_hypothesis_that_can_still_be_answered_holds_the_stream_back():
    """Row 0 ends with a good score at once; the rows that go on agree on a token that it does not have."""
    run = Run([1], SamplingParams(num_beams=2, max_new_tokens=6, end_token_ids=(0,), length_penalty=0.0))
    first = torch.full((1, 9), -20.0)
    first[0, [0, 3, 4]] = torch.tensor([3.0, 2.9, 2.8])
    after = torch.full((2, 9), -20.0)
    after[0, [5, 6]] = torch.tensor([0.1, 0.0])
    advance(first, [run.search], [[()]])
    assert run.search.agreed().token_ids == []
    advance(after, [run.search], [[(), ()]])
    assert [lane.histories.token_ids[:, 0].tolist() for lane in run.search.lanes] == [[3, 3]]
    assert run.search.agreed().token_ids == []


def test_log_probabilities_are_the_models_own_whatever_the_rules(llama):
    run = search(
        llama,
        prompt_of(5),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=10,
        end_token_ids=(11,),
        repetition_penalty=1.8,
        top_n_tokens=3,
    )
    for hypothesis in run.results:
        for i, token_id in enumerate(hypothesis.token_ids.tolist()):
            raw = dense(llama)([run.prompt_ids + hypothesis.token_ids[:i].tolist()]).double().log_softmax(-1)[0]
            assert hypothesis.logprobs[i] == pytest.approx(raw[token_id].item(), abs=1e-5)
            top = raw.topk(3)
            assert [told.token_id for told in hypothesis.top_logprobs[i]] == top.indices.tolist()
            assert [told.logprob for told in hypothesis.top_logprobs[i]] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_without_rules_the_log_probabilities_sum_to_the_score(llama):
    run = search(llama, prompt_of(6), num_beams=4, max_new_tokens=10, length_penalty=0.0, logprobs=True)
    assert run.results[0].logprobs.sum() == pytest.approx(run.scores[0], abs=1e-4)


def test_processed_log_probabilities_are_those_of_what_is_ranked(llama):
    """With one rule that a reader can follow: the tokens of the prompt are less likely, whichever they are."""
    prompt_ids = prompt_of(5)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 1, "repetition_penalty": 1.8, "top_n_tokens": 4}
    run = search(llama, prompt_ids, logprobs_mode="processed", **options)
    scores = dense(llama)([prompt_ids]).log_softmax(-1)[0]
    scores[prompt_ids] *= 1.8
    top = scores.log_softmax(-1).topk(4)
    told = run.results[0].top_logprobs[0]
    assert [entry.token_id for entry in told] == top.indices.tolist()
    assert [entry.logprob for entry in told] == pytest.approx(top.values.tolist(), abs=1e-5)
    assert run.results[0].logprobs[0] == pytest.approx(told[0].logprob)
    assert told[0].logprob != pytest.approx(run.results[0].score), "the score is not normalised again"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_search_whose_logits_are_not_finite_has_failed_and_its_neighbours_go_on(bad):
    runs = [Run([1], SamplingParams(num_beams=2, max_new_tokens=5)) for _ in range(3)]
    logits = torch.randn((3, 50), generator=torch.Generator().manual_seed(0))
    clean = advance(logits.clone(), [Run([1], runs[0].params).search for _ in runs], [[()]] * 3)
    logits[1, 7] = bad
    steps = advance(logits, [run.search for run in runs], [[()]] * 3)
    assert [step.is_finite for step in steps] == [True, False, True]
    assert [steps[0], steps[2]] == [clean[0], clean[2]]


def test_a_search_that_nothing_can_continue_has_failed():
    run = Run([1], SamplingParams(num_beams=3, max_new_tokens=5, min_new_tokens=5, stop_token_ids=tuple(range(30))))
    assert drive([run], lambda rows: torch.zeros(len(rows), 30))[0].has_failed


def test_fewer_continuations_than_beams_make_fewer_rows_and_the_last_answer_is_repeated():
    """A vocabulary of two tokens, one of which ends: two outputs of two tokens exist, and one of one."""
    params = SamplingParams(num_beams=4, num_return_sequences=4, max_new_tokens=2, end_token_ids=(0,))
    run = drive([Run([1], params)], lambda rows: torch.tensor([[0.0, 1.0]] * len(rows)))[0]
    assert sorted(run.outputs) == sorted([[1, 1], [1, 0], [0], run.outputs[-1]])
    assert run.outputs[-1] == run.outputs[-2]


def test_the_widest_window_of_a_row_is_the_vocabulary():
    params = SamplingParams(num_beams=8, num_return_sequences=8, max_new_tokens=3, end_token_ids=(0, 1, 2))
    run = drive([Run([1], params)], lambda rows: torch.arange(20.0).expand(len(rows), -1) / 7)[0]
    assert len(run.outputs) == 8
    assert np.isfinite(run.scores).all()
