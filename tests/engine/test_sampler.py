"""The sampler against transformers' own processors, and its independence of batch mates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import cutoffs
from server.engine.controls import Controls
from server.engine.randomness import XTC_STREAM, side_keys, stream_keys, uniforms, uniforms_at
from server.engine.reductions import Scratch
from server.engine.sampler import Sampled, Sampler
from server.engine.sequence import Sequence
from tests.engine.driving import generate
from tests.engine.reference_rules import drawn_from, start, theirs
from tests.native import variants

torch.set_num_threads(1)


@pytest.fixture(params=variants.WAYS, autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(request.param, monkeypatch)


PROMPT = [3, 5, 7, 5, 11]
OUTPUT = [7, 2, 2, 9]


def sequence(output_ids: list[int] | None = None, **params: Any) -> Sequence:
    command = generate("r", PROMPT, OUTPUT if output_ids is None else output_ids, max_new_tokens=400, **params)
    return Sequence(command, max_model_len=4096, block_size=32)


@torch.inference_mode()
def sample(logits: torch.Tensor, sequences: list[Sequence]) -> Sampled:
    return Sampler().sample(logits.clone(), sequences)


def logits_of(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def excludes_top(row: Sequence) -> bool:
    """Whether XTC has its way at the row's next position."""
    keys = side_keys(stream_keys([row.params.seed], [row.sample_index]), XTC_STREAM)
    return bool(uniforms_at(keys, [row.num_output_tokens])[0] < row.params.xtc_probability)


def processed(logits_V: torch.Tensor, row: Sequence) -> torch.Tensor:
    """Scores as `generate` leaves them: its classes, in the order of its ``_get_logits_processor``."""
    params = row.params
    scores = theirs(logits_V, start(PROMPT, row.output_ids, params))
    return drawn_from(scores, params, excludes_top=excludes_top(row)) if params.do_sample else scores


def expected_token(logits_V: torch.Tensor, row: Sequence) -> int:
    """The rule in four lines: the first token id whose cumulated probability is above the uniform number."""
    scores_V = processed(logits_V, row)
    if not row.params.do_sample:
        return int(scores_V.argmax())
    cumulated = scores_V.double().softmax(-1).cumsum(-1)
    u = uniforms([row.params.seed], [row.sample_index], [row.num_output_tokens])[0]
    return int((cumulated > u * cumulated[-1]).nonzero()[0])


OPTIONS: dict[str, Any] = {
    "temperature": [0.05, 0.7, 1.0, 1.6],
    "top_k": [0, 1, 5, 50, 56, 57, 300, 1500, 10**6],
    "top_p": [1.0, 0.01, 0.5, 0.9, 0.999],
    "min_p": [0.0, 0.02, 0.3, 1.0],
    "typical_p": [1.0, 0.1, 0.6, 0.95],
    "top_n_sigma": [0.0, 0.5, 1.0, 2.5],
    "epsilon_cutoff": [0.0, 0.0003, 0.02, 0.9],
    "eta_cutoff": [0.0, 0.0003, 0.02, 0.9],
    "xtc_probability": [0.0, 0.5, 1.0],
    "xtc_threshold": [0.1, 0.02, 0.3],
    "renormalize_logits": [False, True],
    "repetition_penalty": [1.0, 0.8, 1.7],
    "presence_penalty": [0.0, 1.1, -0.5],
    "frequency_penalty": [0.0, 0.9, -0.4],
    "min_new_tokens": [0, 2, 10],
    "end_token_ids": [(), (1, 4)],
    "stop_token_ids": [(), (2, 5_000_000)],
    "ignore_eos": [False, True],
}


COMPANIONS: dict[str, dict[str, Any]] = {
    "ignore_eos": {"end_token_ids": (1, 4), "min_new_tokens": 10},
    "xtc_threshold": {"xtc_probability": 0.5},
}


@pytest.mark.parametrize("vocab_size", [17, 128, 1000, 5003])
def test_greedy_rows_take_the_most_likely_token(vocab_size):
    logits = logits_of(40, vocab_size)
    assert sample(logits, [sequence()] * 40).token_ids == logits.argmax(-1).tolist()


def test_of_equal_logits_a_greedy_row_takes_the_lowest_token_id_as_transformers_does():
    logits = logits_of(200, 3001).round()
    assert sample(logits, [sequence()] * 200).token_ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in OPTIONS.items() for value in values[1:]]
)
@pytest.mark.parametrize(("vocab_size", "scale"), [(29, 2.0), (2003, 1.0), (6007, 2.5)])
def test_each_option_alone_chooses_what_transformers_processors_leave(option, value, vocab_size, scale):
    companions = COMPANIONS.get(option, {})
    rows = [sequence(do_sample=i < 6, seed=i, **companions, **{option: value}) for i in range(8)]
    logits = logits_of(8, vocab_size, seed=1, scale=scale)
    assert sample(logits, rows).token_ids == [expected_token(logits[i], row) for i, row in enumerate(rows)]


random_params = st.fixed_dictionaries(
    {
        **{option: st.sampled_from(values) for option, values in OPTIONS.items()},
        "do_sample": st.sampled_from([True, True, True, False]),
        "seed": st.integers(0, 2**63 - 1),
    }
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rows=st.lists(random_params, min_size=1, max_size=6),
    outputs=st.lists(st.lists(st.integers(0, 28), max_size=30), min_size=6, max_size=6),
    vocab_size=st.sampled_from([29, 700, 2003]),
    scale=st.sampled_from([0.5, 2.0, 6.0]),
    seed=st.integers(0, 1000),
)
def test_every_combination_chooses_what_transformers_processors_leave(rows, outputs, vocab_size, scale, seed):
    sequences = [sequence(output, **row) for output, row in zip(outputs, rows, strict=False)]
    logits = logits_of(len(sequences), vocab_size, seed, scale)
    expected = [expected_token(logits[i], row) for i, row in enumerate(sequences)]
    assert sample(logits, sequences).token_ids == expected


@pytest.mark.parametrize("num_levels", [3, 40])
@pytest.mark.parametrize(
    "params", [{"top_k": 5}, {"top_k": 50}, {"top_k": 300}, {"top_k": 60, "min_p": 0.2}, {"typical_p": 0.3}]
)
def test_ties_at_the_edge_are_kept_as_in_transformers(params, num_levels):
    """bfloat16 models have many equal logits; they may reach over the edge of any window."""
    logits = (logits_of(24, 2003, seed=4, scale=1.0) * num_levels).round() / num_levels
    rows = [sequence(do_sample=True, seed=i, **params) for i in range(24)]
    assert sample(logits, rows).token_ids == [expected_token(logits[i], row) for i, row in enumerate(rows)]


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.9])
def test_of_ties_at_the_edge_of_the_nucleus_as_many_stay_as_in_transformers(top_p):
    """Which of them is left open there: torch's sort is not stable."""
    logits = (logits_of(8, 2003, seed=5, scale=1.0) * 3).round() / 3
    for i in range(8):
        row = sequence(do_sample=True, top_p=top_p)
        controls = Controls.of([row.params], logits[i : i + 1])
        kept = cutoffs.window(2003, logits[i : i + 1], controls, Scratch()).scores_RW.isfinite()
        expected = processed(logits[i], row).isfinite()
        assert int(kept.sum()) == int(expected.sum())


def test_a_row_does_not_depend_on_its_batch_mates():
    generator = np.random.default_rng(0)
    rows = [
        sequence(
            **{option: values[generator.integers(len(values))] for option, values in OPTIONS.items()},
            do_sample=bool(generator.integers(4)),
            seed=i,
            logprobs=bool(generator.integers(2)),
        )
        for i in range(48)
    ]
    logits = logits_of(48, 5003, seed=2, scale=2.0)
    together = sample(logits, rows)
    for i, row in enumerate(rows):
        alone = sample(logits[i : i + 1], [row])
        assert alone.token_ids == [together.token_ids[i]]
        assert alone.logprobs == [together.logprobs[i]]


def test_a_sampler_that_has_seen_other_rows_chooses_and_tells_as_a_new_one():
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 0.9}
    rows = [
        sequence(),
        sequence(**drawn, seed=1, logprobs=True),
        sequence(**drawn, seed=2, top_k=20, top_n_tokens=3, logprobs_mode="processed"),
        sequence(**drawn, seed=3, xtc_probability=0.5, xtc_threshold=0.01, repetition_penalty=1.3),
    ]
    sampler = Sampler()
    for step, some in enumerate([rows, rows, rows[:3], rows[::-1], rows, rows]):
        if step == 5:
            rows[1].sample_index = 4
        logits = logits_of(len(some), 300, seed=step)
        found = sampler.sample(logits.clone(), some)
        assert found == Sampler().sample(logits.clone(), some)
        for row, token_id in zip(some, found.token_ids, strict=True):
            row.append(token_id)


def test_penalties_that_are_kept_step_by_step_equal_those_of_the_whole_output():
    params: dict[str, Any] = {"repetition_penalty": 1.4, "presence_penalty": 0.6, "frequency_penalty": 0.3}
    growing = sequence([], **params)
    for position in range(60):
        logits = logits_of(1, 97, seed=position, scale=1.0)
        whole = sequence(growing.output_ids, **params)
        token = sample(logits, [growing]).token_ids[0]
        assert token == sample(logits, [whole]).token_ids[0] == expected_token(logits[0], whole)
        growing.append(token)


def test_logprobs_are_those_of_the_raw_model_whatever_the_rules():
    logits = logits_of(6, 5003, seed=3)
    rows = [
        sequence(logprobs=True),
        sequence(),
        sequence(logprobs=True, do_sample=True, temperature=0.2, top_k=7),
        sequence(logprobs=True, repetition_penalty=1.9, presence_penalty=2.0),
        sequence(logprobs=True, do_sample=True, top_p=0.9),
        sequence(logprobs=True, do_sample=True),
    ]
    result = sample(logits, rows)
    raw = logits.double().log_softmax(-1)
    for i, row in enumerate(rows):
        if row.params.logprobs:
            assert result.logprobs[i] == pytest.approx(raw[i, result.token_ids[i]].item(), abs=2e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("params", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 9, "top_p": 0.8}])
def test_a_row_that_is_not_finite_is_told_and_its_neighbours_are_untouched(bad, params):
    logits = logits_of(3, 5003)
    rows = [sequence(seed=i, repetition_penalty=1.2, **params) for i in range(3)]
    clean = sample(logits, rows)
    logits[1, 777] = bad
    result = sample(logits, rows)
    assert result.is_finite == [True, False, True]
    assert [result.token_ids[i] for i in (0, 2)] == [clean.token_ids[i] for i in (0, 2)]


def test_a_token_of_minus_infinity_is_only_forbidden():
    logits = logits_of(2, 300)
    logits[:, 100:] = -torch.inf
    result = sample(logits, [sequence(), sequence(do_sample=True, temperature=5.0)])
    assert result.is_finite == [True, True]
    assert max(result.token_ids) < 100


def test_a_row_whose_every_token_is_forbidden_is_told():
    rows = [sequence(min_new_tokens=9, stop_token_ids=tuple(range(20)))]
    assert sample(logits_of(1, 20), rows).is_finite == [False]


@pytest.mark.parametrize("params", [{}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.05, "temperature": 1.5}])
def test_tokens_are_drawn_as_often_as_their_probability_says(params):
    num_draws = 4000
    logits_V = logits_of(1, 200, seed=9, scale=1.5)[0]
    rows = [sequence(do_sample=True, seed=i, **params) for i in range(num_draws)]
    tokens = sample(logits_V.expand(num_draws, -1), rows).token_ids
    probs = processed(logits_V, rows[0]).double().softmax(-1).numpy()
    counts = np.bincount(tokens, minlength=200)
    assert counts[probs == 0].sum() == 0
    is_common = probs * num_draws >= 5
    expected = np.append(probs[is_common], probs[~is_common].sum()) * num_draws
    observed = np.append(counts[is_common], counts[~is_common].sum())
    chi_square = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_uniform_numbers_are_even_and_differ_in_each_part_of_their_key():
    numbers = uniforms(range(20_000), [0] * 20_000, [7] * 20_000)
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 45
    base = uniforms([1], [2], [3])
    assert (
        len(
            {float(base[0]), *(float(uniforms(*key)[0]) for key in (([2], [2], [3]), ([1], [3], [3]), ([1], [2], [4])))}
        )
        == 4
    )
    assert len(set(uniforms([5] * 5000, [0] * 5000, range(5000)).tolist())) == 5000
    assert uniforms([2**63 - 1], [0], [0])[0] != uniforms([0], [0], [0])[0]
