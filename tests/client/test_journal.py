"""Who is blamed for a worker's death, without any process: deaths are played through on the journal alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.client.journal import Entry, Journal
from server.protocol import Encode, Generate, Output, SamplingParams, Tokens


def add(journal: Journal, name: str) -> Entry:
    return journal.add(Generate(name, [1], SamplingParams(max_new_tokens=10)))


def one_life(journal: Journal, pills: set[Entry], max_steps: int = 1000) -> bool:
    """Send and answer until nothing is left to send; False when a pill was in the worker, which then dies."""
    for _ in range(max_steps):
        new = journal.take_sendable()
        if not new:
            return True
        if pills.intersection(new):
            return False
        for entry in new:
            journal.mark_alive(entry)
    raise AssertionError("the journal never stops sending")


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_each_pill_is_found_and_nobody_else(num_requests: int, data: st.DataObject) -> None:
    journal = Journal()
    entries = [add(journal, str(i)) for i in range(num_requests)]
    pills = set(data.draw(st.lists(st.sampled_from(entries), min_size=1, max_size=3, unique=True)))
    found: set[Entry] = set()
    num_deaths = 0
    while not one_life(journal, pills - found):
        num_deaths += 1
        culprit = journal.worker_died().culprit
        if culprit is not None:
            found.add(culprit)
    assert found == pills
    assert num_deaths <= len(pills) * (4 + math.log2(num_requests))
    assert all(entry.sent and entry.progressed for entry in journal), "every innocent is in the worker"
    assert len(journal) == num_requests - len(pills)


@pytest.mark.parametrize("num_lives", [3, 10])
def test_deaths_with_progress_in_between_blame_nobody(num_lives: int) -> None:
    journal = Journal()
    entries = [add(journal, str(i)) for i in range(5)]
    for _ in range(num_lives):
        assert one_life(journal, set())
        assert all(entry.sent for entry in entries)
        assert journal.worker_died().culprit is None
    assert len(journal.take_sendable()) == 5


@given(st.integers(5, 100))
def test_three_deaths_in_silence_blame_none_of_many(num_requests: int) -> None:
    journal = Journal()
    for i in range(num_requests):
        add(journal, str(i))
    for _ in range(3):
        journal.take_sendable()
        assert journal.worker_died().culprit is None
    assert one_life(journal, set())
    assert all(entry.sent for entry in journal)


def test_suspects_go_last_and_in_halves() -> None:
    journal = Journal()
    suspects = [add(journal, str(i)) for i in range(4)]
    for _ in range(2):
        assert journal.take_sendable() == suspects
        journal.worker_died()
    new = add(journal, "new")
    assert journal.take_sendable() == [new, *suspects[:2]], "a request that no death has touched is not held back"
    journal.worker_died()
    assert journal.take_sendable() == [new], "now it must first show life"
    journal.mark_alive(new)
    assert journal.take_sendable() == suspects[:1]
    journal.mark_alive(suspects[0])
    assert journal.take_sendable() == suspects[1:2]
    journal.worker_died()
    assert journal.take_sendable() == suspects[1:2], "the last one gets a worker of its own"
    assert journal.worker_died().culprit is suspects[1]
    assert journal.take_sendable()[:2] == [suspects[0], new]


def test_a_resumed_command_holds_what_was_delivered() -> None:
    journal = Journal()
    entry = journal.add(Generate("r", [1, 2], SamplingParams(max_new_tokens=10)))
    entry.append(Tokens(entry.wire_id, [4, 5]))
    assert entry.resumed() == Generate(
        entry.wire_id, [1, 2], SamplingParams(max_new_tokens=10), outputs=[Output([4, 5])]
    )
    encode = journal.add(Encode("r", [1, 2], token_type_ids=[0, 1]))
    assert encode.resumed() == Encode(encode.wire_id, [1, 2], token_type_ids=[0, 1])


def test_messages_that_wait_for_their_consumer_are_joined_in_order() -> None:
    entry = add(Journal(), "r")
    entry.append(Tokens(entry.wire_id, [1], logprobs=[-0.1], num_cached_tokens=7))
    entry.append(Tokens(entry.wire_id, [2], logprobs=[-0.2]))
    assert entry.take() == [Tokens("r", [1, 2], logprobs=[-0.1, -0.2], num_cached_tokens=7)]
    entry.append(Tokens(entry.wire_id, [3], "length", logprobs=[-0.3], num_cached_tokens=9))
    assert entry.take() == [Tokens("r", [3], "length", logprobs=[-0.3])]
