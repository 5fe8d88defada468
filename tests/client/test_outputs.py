"""Several outputs, and beam searches, through any death of the worker: each token once, none taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.client.journal import Entry, Journal
from server.errors import OutputDiverged
from server.protocol import Generate, Output, PromptLogprobs, SamplingParams, TokenLogprob, Tokens
from tests.fake_worker import STRAYS, expected_tokens
from tests.supervised import collect_outputs, run, supervised, worker_pids


def entry_of(*, n: int = 1, num_beams: int = 1) -> tuple[Journal, Entry]:
    params = SamplingParams(max_new_tokens=10, num_return_sequences=n, num_beams=num_beams)
    journal = Journal()
    entry = journal.add(Generate("r", [1, 2], params))
    assert journal.take_sendable() == [entry]
    return journal, entry


def test_each_output_with_news_is_one_message() -> None:
    _, entry = entry_of(n=3)
    entry.append(Tokens(entry.wire_id, [1], index=0))
    entry.append(Tokens(entry.wire_id, [5], index=2))
    entry.append(Tokens(entry.wire_id, [6], index=2))
    assert entry.take() == [Tokens("r", [1], index=0), Tokens("r", [5, 6], index=2)]
    assert entry.all_taken and not entry.news.is_set()


def test_a_request_is_finished_when_all_its_outputs_are() -> None:
    _, entry = entry_of(n=2)
    entry.append(Tokens(entry.wire_id, [1], "stop", index=1, score=-0.5))
    assert not entry.is_finished
    entry.append(Tokens(entry.wire_id, [], "length", index=0))
    assert entry.is_finished
    assert entry.take() == [Tokens("r", [], "length"), Tokens("r", [1], "stop", index=1, score=-0.5)]


def test_what_is_told_of_tokens_goes_with_them_once() -> None:
    _, entry = entry_of()
    told = [[TokenLogprob(1, -0.1), TokenLogprob(2, -0.2)]]
    prompt = PromptLogprobs([-1.5])
    first = Tokens(entry.wire_id, [1], None, [-0.1], 1, 0, told, prompt)
    entry.append(first)
    entry.append(Tokens(entry.wire_id, [2], None, [-0.3], 1, 0, told))
    assert entry.take() == [Tokens("r", [1, 2], None, [-0.1, -0.3], 1, 0, told * 2, prompt)]
    entry.append(Tokens(entry.wire_id, [3], None, [-0.4], None, 0, told, num_rewinds=2))
    assert entry.take() == [Tokens("r", [3], None, [-0.4], None, 0, told, num_rewinds=2)]


def test_an_output_that_was_dropped_has_no_news_and_counts_as_finished() -> None:
    journal, entry = entry_of(n=2)
    entry.append(Tokens(entry.wire_id, [4, 5], index=0))
    entry.append(Tokens(entry.wire_id, [6], index=1))
    entry.take()
    assert entry.drop([0]) == [0]
    assert entry.drop([0]) == []
    entry.append(Tokens(entry.wire_id, [7], "stop", index=0))
    assert entry.all_taken
    entry.append(Tokens(entry.wire_id, [8], index=1))
    assert entry.take() == [Tokens("r", [8], index=1)]
    journal.worker_died()
    resumed = entry.resumed()
    assert isinstance(resumed, Generate)
    assert resumed.outputs == [Output([4, 5], is_finished=True), Output([6, 8])]
    entry.append(Tokens(entry.wire_id, [], "length", index=1))
    assert entry.is_finished


def test_a_resumed_command_tells_how_far_each_output_is() -> None:
    journal, entry = entry_of(n=3)
    entry.append(Tokens(entry.wire_id, [4, 5], index=0, num_rewinds=1))
    entry.append(Tokens(entry.wire_id, [6], "stop", index=2))
    journal.worker_died()
    resumed = entry.resumed()
    assert isinstance(resumed, Generate)
    assert resumed.outputs == [Output([4, 5], num_rewinds=1), Output(), Output([6], is_finished=True)]


def test_a_beam_search_begins_anew_and_what_was_delivered_is_left_out() -> None:
    journal, entry = entry_of(n=2, num_beams=2)
    entry.append(Tokens(entry.wire_id, [4, 5, 6], index=0, logprobs=[-0.1, -0.2, -0.3]))
    entry.append(Tokens(entry.wire_id, [4, 5], index=1))
    entry.take()
    journal.worker_died()
    assert entry.resumed() == Generate(entry.wire_id, [1, 2], entry.command.params)  # type: ignore[union-attr]
    journal.take_sendable()
    entry.append(Tokens(entry.wire_id, [4, 5], index=0, logprobs=[-0.1, -0.2], num_cached_tokens=1))
    entry.append(Tokens(entry.wire_id, [4], index=1))
    assert entry.all_taken and not entry.news.is_set()
    entry.append(Tokens(entry.wire_id, [6, 7], "stop", index=0, logprobs=[-0.3, -0.4], score=-2.0))
    entry.append(Tokens(entry.wire_id, [5], "length", index=1, score=-3.0))
    assert entry.take() == [
        Tokens("r", [7], "stop", [-0.4], index=0, score=-2.0),
        Tokens("r", [], "length", index=1, score=-3.0),
    ]


def test_an_output_that_was_finished_before_the_death_ends_once() -> None:
    journal, entry = entry_of(n=2, num_beams=2)
    entry.append(Tokens(entry.wire_id, [4, 5], "stop", index=0, score=-1.0))
    entry.take()
    journal.worker_died()
    entry.append(Tokens(entry.wire_id, [4, 5], "stop", index=0, score=-1.0))
    assert entry.all_taken
    entry.append(Tokens(entry.wire_id, [4, 6], "stop", index=1))
    assert entry.take() == [Tokens("r", [4, 6], "stop", index=1)]


@pytest.mark.parametrize(
    "replayed",
    [
        Tokens("", [4, 9]),
        Tokens("", [9, 5, 6, 7]),
        Tokens("", [4, 5], "stop"),
    ],
    ids=["another token", "another beginning", "a shorter output"],
)
def test_a_beam_search_that_comes_out_otherwise_is_an_error_and_nothing_is_taken_back(replayed: Tokens) -> None:
    journal, entry = entry_of(num_beams=2)
    entry.append(Tokens(entry.wire_id, [4, 5, 6]))
    assert entry.take() == [Tokens("r", [4, 5, 6])]
    journal.worker_died()
    with pytest.raises(OutputDiverged):
        entry.append(replayed)
    assert entry.all_taken


def command(i: int, *, n: int, num_beams: int = 1, num_tokens: int = 12) -> Generate:
    params = SamplingParams(max_new_tokens=num_tokens, seed=1000 * i, num_return_sequences=n, num_beams=num_beams)
    return Generate(f"r{i}", [i, *range(i % 30)], params)


@pytest.mark.parametrize("num_beams", [1, 4], ids=["samples", "beams"])
@pytest.mark.parametrize("when", ["queued", "prefill", "decode", "finish", "finished"])
def test_a_death_at_any_point_changes_none_of_several_outputs(tmp_path: Path, when: str, num_beams: int) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": "kill", "when": when}, max_running=4) as (_, client):
            commands = [command(i, n=1 + i % 3, num_beams=num_beams) for i in range(9)]
            outputs = await asyncio.gather(*(collect_outputs(client, command) for command in commands))
            expected = [[expected_tokens(command, i) for i in range(1 + j % 3)] for j, command in enumerate(commands)]
            assert outputs == expected
            assert len(worker_pids(tmp_path)) == 2
            assert client.num_running == 0

    run(main())


def test_a_beam_search_that_another_worker_cannot_repeat_ends_in_an_error_that_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": "kill", "when": "decode"}) as (_, client):
            strays = Generate("s", [STRAYS], SamplingParams(max_new_tokens=9, num_return_sequences=2, num_beams=2))
            other = asyncio.create_task(collect_outputs(client, command(1, n=2)))
            with pytest.raises(OutputDiverged, match="differs from what was already sent"):
                await collect_outputs(client, strays)
            assert await other == [expected_tokens(command(1, n=2), i) for i in range(2)]
            assert client.num_running == 0

    run(main())
