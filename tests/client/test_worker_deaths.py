"""Whatever ends a worker, every request gets the tokens that it would have got in peace."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from server.availability_errors import EngineRestarting
from server.client import worker_client
from server.client.connection import MAX_UNSENT_BYTES
from server.client.worker_client import WorkerClient
from server.errors import NumericalError, RequestQuarantined
from server.protocol import Encode, Generate, Output
from tests.fake_worker import FAILS, POISON, expected_tokens, scores_of
from tests.supervised import collect, generate, kill_worker, run, supervised, until, worker_pids


async def all_tokens(client: WorkerClient, commands: list[Generate]) -> list[list[int]]:
    return list(await asyncio.gather(*(collect(client, command) for command in commands)))


@pytest.mark.parametrize("kind", ["kill", "segv", "abort", "exit", "exception"])
@pytest.mark.parametrize("when", ["queued", "prefill", "decode", "finish", "finished"])
def test_a_death_of_any_kind_at_any_point_changes_no_output(tmp_path: Path, kind: str, when: str) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": kind, "when": when}, max_running=8) as (_, client):
            commands = [generate(i, num_tokens=8) for i in range(20)]
            assert await all_tokens(client, commands) == [expected_tokens(command) for command in commands]
            assert len(worker_pids(tmp_path)) == 2
            assert client.num_running == 0

    run(main())


@pytest.mark.parametrize("kind", ["garbage", "nonsense", "unexpected"])
def test_a_worker_that_breaks_the_protocol_is_replaced(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": kind, "when": "decode"}) as (_, client):
            commands = [generate(i, num_tokens=8) for i in range(5)]
            assert await all_tokens(client, commands) == [expected_tokens(command) for command in commands]
            assert len(worker_pids(tmp_path)) == 2

    run(main())


def test_a_worker_that_does_not_read_holds_back_what_is_sent_to_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            pid = await kill_worker(tmp_path, signal.SIGSTOP)
            prompt = list(range(1_000_000, 1_050_000))
            for i in range(50):
                left = asyncio.create_task(collect(client, generate(i, prompt=prompt)))
                await asyncio.sleep(0)
                left.cancel()
                await asyncio.wait([left])
            stays = asyncio.create_task(collect(client, generate(99)))
            await asyncio.sleep(0.05)
            assert client._connection is not None
            assert client._connection._transport is not None
            assert client._connection._transport.get_write_buffer_size() < 2 * MAX_UNSENT_BYTES
            os.kill(pid, signal.SIGCONT)
            assert await stays == expected_tokens(generate(99))

    run(main())


def test_three_kills_in_a_row_during_100_streams_change_no_output_and_blame_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"step_s": 0.005}, max_running=32) as (_, client):
            commands = [generate(i, num_tokens=60) for i in range(100)]
            streams = asyncio.create_task(all_tokens(client, commands))
            for _ in range(3):
                num_frames = client.num_frames
                await until(lambda num_frames=num_frames: client.num_frames > num_frames + 5)
                await kill_worker(tmp_path)
                await until(lambda: client.state == "restarting")
            assert await streams == [expected_tokens(command) for command in commands]

    run(main())


def test_kills_before_the_worker_has_computed_anything_blame_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"step_s": 0.05}, max_running=32) as (_, client):
            commands = [generate(i, num_tokens=10) for i in range(100)]
            streams = asyncio.create_task(all_tokens(client, commands))
            await asyncio.sleep(0)
            for _ in range(3):
                await until(lambda: client.state == "ready")
                await kill_worker(tmp_path)
                await until(lambda: client.state == "restarting")
            assert await streams == [expected_tokens(command) for command in commands]

    run(main())


def test_answers_that_are_not_streams_survive_a_death_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": "segv", "when": "decode"}) as (_, client):
            commands = [Encode("one", [1, 2, i]) for i in range(20)]
            answers = await asyncio.gather(*(client.encode(command) for command in commands))
            assert [answer.data for answer in answers] == [scores_of(command.token_ids) for command in commands]
            assert all(answer.request_id == "one" for answer in answers)
            assert len(worker_pids(tmp_path)) == 2

    run(main())


def test_a_poison_pill_is_found_and_50_innocents_finish(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, max_restarts=5) as (_, client):
            commands = [generate(i, num_tokens=30) for i in range(50)]
            innocents = asyncio.create_task(all_tokens(client, commands))
            with pytest.raises(RequestQuarantined):
                await collect(client, generate(99, prompt=[POISON, 0]))
            assert await innocents == [expected_tokens(command) for command in commands]
            assert len(worker_pids(tmp_path)) - 1 <= 9

    run(main())


def test_a_pill_that_kills_late_gives_its_tokens_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            commands = [generate(i, num_tokens=60) for i in range(10)]
            innocents = asyncio.create_task(all_tokens(client, commands))
            pill, token_ids = generate(99, prompt=[POISON, 5]), []
            with pytest.raises(RequestQuarantined):
                await collect(client, pill, lambda tokens: token_ids.extend(tokens.token_ids))
            assert token_ids == expected_tokens(pill)[:5]
            assert await innocents == [expected_tokens(command) for command in commands]

    run(main())


def test_a_request_that_its_client_left_while_the_worker_was_down_is_not_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            async with aclosing(client.stream(generate(1, prompt=[POISON, 2]))) as stream:
                async for _ in stream:
                    await until(lambda: client.state == "restarting")
                    break
            assert client.num_running == 0
            await until(lambda: client.state == "ready")
            command = generate(2)
            assert await collect(client, command) == expected_tokens(command)
            assert len(worker_pids(tmp_path)) == 2

    run(main())


def test_a_request_that_comes_while_the_worker_is_down_waits_for_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            await kill_worker(tmp_path)
            await until(lambda: client.state == "restarting")
            command = generate(1)
            assert await collect(client, command) == expected_tokens(command)

    run(main())


def test_a_request_that_no_worker_took_in_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "MAX_WAIT_S", 0.05)

    async def main() -> None:
        async with supervised(tmp_path, restart_backoff_s=5.0) as (_, client):
            running = asyncio.create_task(collect(client, generate(1, num_tokens=100_000)))
            await until(lambda: client.num_frames > 3)
            await kill_worker(tmp_path)
            await until(lambda: client.state == "restarting")
            with pytest.raises(EngineRestarting):
                await collect(client, generate(2))
            await asyncio.sleep(0.1)
            assert not running.done(), "a request that a worker has had is never given up"
            running.cancel()
            await asyncio.wait([running])
            assert client.num_running == 0

    run(main())


def test_a_request_that_lacks_only_its_end_is_not_computed_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            full = generate(1, num_tokens=4)
            resumed = Generate("full", full.prompt_ids, full.params, outputs=[Output(expected_tokens(full))])
            assert await collect(client, resumed) == []

    run(main())


def test_leaving_early_frees_the_request_in_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    monkeypatch.setattr(worker_client.metrics, "record_step", lambda model, stats: running.append(stats.num_running))

    async def main() -> None:
        async with supervised(tmp_path) as (_, client):

            async def leave(i: int, num_messages: int) -> None:
                async with aclosing(client.stream(generate(i, num_tokens=1_000_000))) as stream:
                    async for _ in stream:
                        num_messages -= 1
                        if num_messages == 0:
                            return

            await asyncio.gather(*(leave(i, num_messages=1 + i % 5) for i in range(32)))
            tasks = [asyncio.create_task(collect(client, generate(i, num_tokens=1_000_000))) for i in range(32)]
            await until(lambda: running[-1] == 32)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert client.num_running == 0
            await until(lambda: running[-1] == 0)

    run(main())


def test_the_end_of_a_request_s_time_in_the_queue_is_told_once_and_before_its_tokens(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": "kill", "when": "decode"}, max_running=1) as (_, client):

            async def events_of(i: int) -> list[str]:
                events: list[str] = []
                async with aclosing(client.stream(generate(i, num_tokens=5), lambda: events.append("start"))) as stream:
                    async for [tokens] in stream:
                        events += ["token"] * len(tokens.token_ids)
                return events

            assert await asyncio.gather(events_of(1), events_of(2)) == [["start"] + ["token"] * 5] * 2
            assert len(worker_pids(tmp_path)) == 2, "one of the two was resumed"
            events: list[str] = []
            await client.encode(Encode("e", [1]), lambda: events.append("start"))
            assert events == ["start"]

    run(main())


def test_one_failed_request_ends_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            other = asyncio.create_task(collect(client, generate(1)))
            with pytest.raises(NumericalError, match="not finite"):
                await collect(client, generate(2, prompt=[FAILS]))
            assert await other == expected_tokens(generate(1))

    run(main())


def test_requests_with_one_id_do_not_meet(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            commands = [Generate("same", [i], generate(i).params) for i in range(5)]
            assert await all_tokens(client, commands) == [expected_tokens(command) for command in commands]

    run(main())


def test_a_consumer_that_stops_reading_is_aborted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "MAX_UNREAD_S", 0.05)

    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            messages: list[Any] = []
            async with aclosing(client.stream(generate(1, num_tokens=1_000_000))) as stream:
                messages += await anext(stream)
                await until(lambda: client.num_running == 0)
                messages += [tokens async for [tokens] in stream]
            assert messages[-1].finish_reason == "abort"
            assert len(messages) == 2, "what a slow consumer missed comes in one message"

    run(main())


def test_sigterm_and_sigint_are_left_to_the_front(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            pid = await kill_worker(tmp_path, signal.SIGTERM)
            assert await kill_worker(tmp_path, signal.SIGINT) == pid
            assert await collect(client, generate(1)) == expected_tokens(generate(1))
            assert worker_pids(tmp_path) == [pid]

    run(main())
