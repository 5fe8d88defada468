"""All processors together: in any combination, in any batch, grown token by token and forked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.processors import order
from server.engine.processors.base import Start
from tests.engine.reference_rules import VOCAB_SIZE, ours, start, theirs
from tests.oracle_versions import is_oracle

torch.set_num_threads(1)

INF = float("inf")
token_ids = st.integers(0, VOCAB_SIZE - 1)
id_sets = st.lists(token_ids, max_size=5).map(tuple)
sequences = st.lists(token_ids, min_size=1, max_size=3).map(tuple)
small = st.integers(0, 4)  # a small alphabet repeats itself

OPTIONS: dict[str, Any] = {
    "sequence_bias": st.dictionaries(
        st.lists(small, min_size=1, max_size=3).map(tuple), st.sampled_from([-INF, -2.5, 0.25, 7.0]), max_size=8
    ).map(lambda biases: tuple(biases.items())),
    "logit_bias": st.dictionaries(token_ids, st.sampled_from([-INF, -100.0, -0.3, 1.7, 100.0]), max_size=6),
    "encoder_repetition_penalty": st.sampled_from([1.0, 0.6, 1.3]),
    "repetition_penalty": st.sampled_from([1.0, 0.7, 1.9]),
    "presence_penalty": st.sampled_from([0.0, 1.25, -0.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.75, -0.25]),
    "penalty_scope": st.sampled_from([None, "prompt", "output", "both", 1, 4, 1000]),
    "dry_multiplier": st.sampled_from([0.0, 0.8]),
    "dry_base": st.sampled_from([1.0, 1.75]),
    "dry_allowed_length": st.integers(1, 3),
    "dry_range": st.sampled_from([0, 1, 5, 12]),
    "dry_breaker_ids": st.lists(small, max_size=2).map(tuple),
    "no_repeat_ngram_size": st.sampled_from([0, 0, 0, 2, 3, 5]),
    "encoder_no_repeat_ngram_size": st.sampled_from([0, 0, 0, 2, 3]),
    "min_new_tokens": st.sampled_from([0, 2, 10]),
    "allowed_token_ids": st.none() | st.lists(token_ids, min_size=1, max_size=20).map(tuple),
    "forced_bos_token_id": st.none() | token_ids,
    "forced_eos_token_ids": id_sets,
    "exponential_decay_length_penalty": st.none() | st.tuples(st.integers(0, 5), st.sampled_from([0.8, 1.1, 2.0])),
    "suppress_tokens": id_sets,
    "begin_suppress_tokens": id_sets,
    "end_token_ids": id_sets,
    "stop_token_ids": id_sets,
    "ignore_eos": st.booleans(),
}
OPTIONS = {name: values for name, values in OPTIONS.items() if is_oracle(name)}
# One option in three is asked for: all at once would forbid nearly every token.
random_params = st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.none(), max_size=9).flatmap(
    lambda asked: st.fixed_dictionaries({name: OPTIONS[name] for name in asked})
)
random_starts = st.builds(
    lambda prompt, output, params, spans: start(prompt, output, template_spans=spans, **params),
    st.lists(small, min_size=1, max_size=20),
    st.lists(small, max_size=11),
    random_params,
    st.sampled_from([(), (), ((0, 1),), ((0, 2), (4, 6))]),
)
odd_logits = st.sampled_from([-0.0, 0.0, 1e-45, -1e-45, 1e-38, 1e30, -1e30, -INF])


def logits_of(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert torch.allclose(found, expected, rtol=2e-6, atol=2e-6)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(random_starts, min_size=1, max_size=5), st.integers(0, 1000))
def test_every_combination_does_what_transformers_processors_do_in_its_order(starts: list[Start], seed: int):
    logits = logits_of(len(starts), seed)
    found = ours(logits, starts)
    for row, row_start in enumerate(starts):
        assert_same(found[row], theirs(logits[row], row_start))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(random_starts, st.lists(odd_logits, min_size=VOCAB_SIZE, max_size=VOCAB_SIZE), st.integers(0, 100))
def test_odd_logits_stay_numbers_and_forbidden_tokens_stay_forbidden(row_start: Start, odd: list[float], seed: int):
    logits = torch.where(torch.arange(VOCAB_SIZE) % 3 == seed % 3, torch.tensor(odd), logits_of(1, seed)[0])
    found = ours(logits[None], [row_start])[0]
    expected = theirs(logits, row_start)
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
    assert not found.isnan().any()
    assert not (found == torch.inf).any()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(random_starts, st.lists(small, min_size=1, max_size=11))
def test_processors_that_grew_token_by_token_equal_new_ones(row_start: Start, more: list[int]):
    grown = order.for_sequence(row_start)
    for num_more in range(1, len(more) + 1):
        output = np.concatenate([row_start.output_ids, np.array(more[:num_more], dtype=np.int64)])
        if len(output) >= row_start.params.max_new_tokens:
            return
        for processor in grown:
            processor.accept(more[num_more - 1])
        grown = tuple(processor for processor in grown if not processor.is_spent)
        logits = logits_of(1, num_more)
        found = logits.clone()
        order.apply(found, [grown])
        new = start_with(row_start, output)
        assert torch.equal(found, ours(logits, [new]))
        assert_same(found[0], theirs(logits[0], new))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(random_starts, st.lists(small, min_size=3, max_size=3), st.lists(small, min_size=3, max_size=3))
def test_forks_do_not_change_one_another(row_start: Start, left: list[int], right: list[int]):
    if len(row_start.output_ids) + 3 >= row_start.params.max_new_tokens:
        return
    parent = order.for_sequence(row_start)
    child = order.fork(parent)
    for ours_next, theirs_next in zip(left, right, strict=True):  # by turns, so that shared memory would show
        for processor in parent:
            processor.accept(ours_next)
        for processor in child:
            processor.accept(theirs_next)
    logits = logits_of(2, 1)
    found = logits.clone()
    alive = [tuple(p for p in processors if not p.is_spent) for processors in (parent, child)]
    order.apply(found, alive)
    outputs = [np.concatenate([row_start.output_ids, np.array(more, dtype=np.int64)]) for more in (left, right)]
    assert torch.equal(found, ours(logits, [start_with(row_start, output) for output in outputs]))


def start_with(row_start: Start, output_ids: np.ndarray) -> Start:
    return Start(
        params=row_start.params,
        prompt_ids=row_start.prompt_ids,
        output_ids=output_ids,
        ending_ids=row_start.ending_ids,
        max_tokens=row_start.max_tokens,
        context=row_start.context,
    )


def test_a_sequence_that_asks_for_nothing_has_no_processor():
    assert order.for_sequence(start([1, 2], [3], end_token_ids=(1,), stop_token_ids=(2,))) == ()


@pytest.mark.parametrize(
    "params",
    [
        {"suppress_tokens": (3, 10**6)},
        {"logit_bias": {3: 1.0, 10**6: 5.0}},
        {"allowed_token_ids": (3, 10**6)},
        {"forced_bos_token_id": 10**6},
        {"sequence_bias": (((1, 10**6), 4.0),)},
        {"min_new_tokens": 9, "stop_token_ids": (10**6,)},
        {"exponential_decay_length_penalty": (0, 2.0), "stop_token_ids": (10**6,)},
    ],
)
def test_a_token_that_the_vocabulary_does_not_have_touches_no_other_row(params: dict[str, Any]):
    logits = logits_of(2, 5)
    output = [] if "forced_bos_token_id" in params else [1]
    found = ours(logits, [start([1, 2, 1], output, **params), start([1])])
    assert torch.equal(found[1], logits[1])
