"""n-grams that may not return, and DRY, against definitions that look at every place anew."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from server.engine.processors.base import HIGHEST_LOGIT
from server.engine.processors.ngrams import Dry, Repeats
from tests.engine.reference_rules import VOCAB_SIZE, dry_penalties, ours, start

few = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def penalties(tokens: list[int], **params: object) -> dict[int, float]:
    made = Dry.for_sequence(start(tokens, dry_multiplier=1.0, dry_base=2.0, **params))
    assert made is not None
    return made.penalties()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tokens=few, num_first=st.integers(0, 40), breakers=st.sets(st.integers(0, 2), max_size=1))
def test_repeats_equal_a_comparison_of_every_place_with_the_end(tokens, num_first, breakers):
    repeats = Repeats(np.array(tokens[:num_first], dtype=np.int64), breakers=breakers)
    for token_id in tokens[num_first:]:
        repeats.accept(token_id)
    size = len(tokens)
    lengths = []
    for place in range(size):
        length = 0
        while length < place and tokens[place - 1 - length] == tokens[size - 1 - length] not in breakers:
            length += 1
        lengths.append(length)
    ids, found = repeats.continuations(0)
    assert found.tolist() == lengths
    assert ids.tolist() == tokens


@settings(max_examples=200, deadline=None, derandomize=True)
@given(prompt=few, output=few, size=st.integers(1, 6))
def test_no_ngram_returns_as_in_transformers(prompt, output, size):
    logits = torch.zeros(1, VOCAB_SIZE)
    ids = torch.tensor([prompt + output])
    whole = start(prompt, output, max_new_tokens=50, no_repeat_ngram_size=size)
    assert torch.equal(ours(logits, [whole]), hf.NoRepeatNGramLogitsProcessor(size)(ids, logits))
    encoder = start(prompt, output, max_new_tokens=50, encoder_no_repeat_ngram_size=size)
    theirs = hf.EncoderNoRepeatNGramLogitsProcessor(size, torch.tensor([prompt]))(ids, logits)
    assert torch.equal(ours(logits, [encoder]), theirs)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    prompt=few,
    output=few,
    allowed_length=st.integers(1, 4),
    last=st.sampled_from([0, 1, 2, 7, 30]),
    breakers=st.sets(st.integers(0, 2), max_size=2).map(tuple),
    spans=st.sampled_from([(), ((0, 3),), ((2, 3), (5, 9))]),
)
def test_dry_penalises_as_its_definition_says(prompt, output, allowed_length, last, breakers, spans):
    row = start(
        prompt,
        output,
        max_new_tokens=50,
        dry_multiplier=0.8,
        dry_allowed_length=allowed_length,
        dry_range=last,
        dry_breaker_ids=breakers,
        template_spans=spans,
    )
    found = Dry(row).penalties()
    expected = dry_penalties(row)
    assert found.keys() == expected.keys()
    assert all(found[token_id] == pytest.approx(expected[token_id]) for token_id in found)


def test_dry_lowers_the_token_that_goes_on_with_the_longest_repeat_most():
    # After "1 2 3" came 4, after "2 3" came 5 as well.
    assert penalties([1, 2, 3, 4, 8, 2, 3, 5, 9, 1, 2, 3]) == {4: 2.0, 5: 1.0}


def test_dry_reaches_across_no_breaker_and_no_further_than_its_range():
    tokens = [1, 2, 3, 4, 1, 2, 3]
    assert penalties(tokens) == {4: 2.0}
    assert penalties(tokens, dry_breaker_ids=(1,)) == {4: 1.0}
    assert penalties(tokens, dry_breaker_ids=(3,)) == {}
    assert penalties(tokens, dry_breaker_ids=(4,)) == {}
    assert penalties(tokens, dry_range=6) == {4: 1.0}
    assert penalties(tokens, dry_range=5) == {}


def test_a_long_repeat_costs_much_and_nothing_infinite():
    found = penalties([1] * 3000, dry_allowed_length=1)
    assert found == {1: HIGHEST_LOGIT}
    assert ours(torch.zeros(1, VOCAB_SIZE), [start([1] * 3000, dry_multiplier=1.0)]).isfinite().all()


def test_the_worst_repetition_costs_no_more_a_step_than_any_text():
    """One token over and over agrees everywhere with everything."""

    def seconds(tokens: list[int]) -> float:
        begin = time.process_time()
        repeats = Repeats(np.array(tokens, dtype=np.int64))
        for token_id in tokens[:300]:
            repeats.accept(token_id)
            repeats.continuations(4000)
        return time.process_time() - begin

    varied = np.random.default_rng(0).integers(50_000, size=8000).tolist()
    seconds(varied)
    assert seconds([7] * 8000) < 5 * seconds(varied) + 0.05
