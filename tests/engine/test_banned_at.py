"""What forbidding tokens at places promises."""

from __future__ import annotations

import numpy as np
import torch

from server.engine.processors.banned_at import BannedAt
from server.engine.processors.base import Start
from server.protocol import SamplingParams


def start(banned_at: dict[int, set[int]], num_output_tokens: int = 0) -> Start:
    return Start(
        params=SamplingParams(max_new_tokens=8),
        prompt_ids=np.array([1, 2]),
        output_ids=np.zeros(num_output_tokens, dtype=np.int64),
        ending_ids=frozenset(),
        max_tokens=10,
        banned_at=banned_at,
    )


def forbidden(*processors: BannedAt) -> list[list[int]]:
    logits_SV = torch.zeros(len(processors), 5)
    BannedAt.apply(logits_SV, list(range(len(processors))), list(processors))
    return [row.isinf().nonzero().flatten().tolist() for row in logits_SV]


def test_tokens_are_forbidden_at_their_place_and_nowhere_else() -> None:
    processor = BannedAt.for_sequence(start({1: {3}, 2: {0, 4}}))
    seen = []
    for _ in range(3):
        assert not processor.is_spent
        seen += forbidden(processor)
        processor.accept(1)
    assert seen == [[], [3], [0, 4]]
    assert processor.is_spent


def test_rows_are_at_their_own_places() -> None:
    first, second = (BannedAt.for_sequence(start({2: {i}}, num_output_tokens=2)) for i in (0, 1))
    third = BannedAt.for_sequence(start({2: {2}}, num_output_tokens=1))
    assert forbidden(first, second, third) == [[0], [1], []]


def test_a_sequence_that_never_went_back_or_has_passed_every_place_has_no_such_rule() -> None:
    assert BannedAt.for_sequence(start({})) is None
    assert BannedAt.for_sequence(start({1: {3}}, num_output_tokens=2)) is None


def test_a_fork_counts_for_itself() -> None:
    parent = BannedAt.for_sequence(start({1: {3}}))
    child = parent.fork()
    child.accept(0)
    assert forbidden(parent, child) == [[], [3]]


def test_the_rule_does_not_change_when_the_sequence_goes_back_further() -> None:
    banned_at = {1: {3}}
    processor = BannedAt.for_sequence(start(banned_at, num_output_tokens=1))
    banned_at[1].add(4)
    assert forbidden(processor) == [[3]]
