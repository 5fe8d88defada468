"""Start, stall, crash loop and stop: no hang, no orphan, and a cause in one line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop

from server.client.supervisor import Supervisor
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_CRASH_LOOP, EXIT_INTERNAL, EXIT_MODEL, ConfigurationError, ServerShutdown
from tests.fake_worker import POISON, expected_tokens
from tests.supervised import (
    FAKE_WORKER,
    collect,
    fake_supervisor,
    generate,
    is_alive,
    kill_worker,
    run,
    supervised,
    until,
    worker_pids,
)


def test_the_front_runs_on_uvloop_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": "kill", "when": "decode"}) as (supervisor, client):
            assert supervisor.is_ready()
            commands = [generate(i) for i in range(20)]
            answers = await asyncio.gather(*(collect(client, command) for command in commands))
            assert answers == [expected_tokens(command) for command in commands]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 60))


def test_models_are_loaded_side_by_side_and_know_of_it(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    models = tuple(ModelConfig(name=folder.name, path=str(folder)) for folder in folders)

    async def main() -> None:
        supervisor = Supervisor(ServeConfig(models=models), command=FAKE_WORKER)
        assert not supervisor.is_ready()
        start = asyncio.create_task(supervisor.start())
        await until(lambda: all(worker_pids(folder) for folder in folders))
        await start
        assert supervisor.is_ready()
        assert [(folder / "num-loading").read_text() for folder in folders] == ["3", "3", "3"]
        await kill_worker(folders[0])
        await until(lambda: (folders[0] / "num-loading").read_text() == "1")
        await until(supervisor.is_ready)
        await supervisor.stop()
        assert not supervisor.is_ready()
        assert not any(is_alive(pid) for folder in folders for pid in worker_pids(folder))

    run(main())


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason_and_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = ModelConfig(name="good", path=str(tmp_path))
    bad = ModelConfig(name="bad", path=str(tmp_path / "missing"))

    async def main() -> None:
        supervisor = Supervisor(ServeConfig(models=(good, bad)), command=FAKE_WORKER)
        with pytest.raises(ConfigurationError, match=r"^Model bad: .*missing is no folder\. Give one\.$") as failure:
            await supervisor.start()
        assert failure.value.exit_code == EXIT_MODEL

    run(main())
    assert not any(is_alive(pid) for pid in worker_pids(tmp_path)), "the other model's worker is ended too"
    assert capfd.readouterr().err == "", "the reason is shown once, by the front"


@pytest.mark.parametrize(
    ("kind", "message", "exit_code"),
    [
        ("kill", "its worker ended with signal SIGKILL", EXIT_MODEL),
        ("exit", "its worker ended with exit code 0", EXIT_MODEL),
        ("exception", "could not be loaded: RuntimeError: a fault that a test asked for", EXIT_INTERNAL),
    ],
)
def test_a_worker_that_dies_while_loading_ends_the_start(
    tmp_path: Path, kind: str, message: str, exit_code: int
) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match=message) as failure:
            await fake_supervisor(tmp_path, fault={"kind": kind, "when": "load"}).start()
        assert failure.value.exit_code == exit_code

    run(main())


def test_a_worker_that_is_not_ready_in_time_ends_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        fault = {"kind": "loop", "when": "load"}
        with pytest.raises(ConfigurationError, match=r"not ready within 0\.3 s"):
            await fake_supervisor(tmp_path, fault=fault, start_timeout_s=0.3, stall_timeout_s=1).start()

    run(main())
    assert not any(is_alive(pid) for pid in worker_pids(tmp_path))


@pytest.mark.parametrize("kind", ["stop", "loop"])
def test_a_worker_that_hangs_in_a_step_is_replaced(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": kind, "when": "decode"}, stall_timeout_s=1.5) as (_, client):
            commands = [generate(i) for i in range(10)]
            answers = await asyncio.gather(*(collect(client, command) for command in commands))
            assert answers == [expected_tokens(command) for command in commands]
            assert len(worker_pids(tmp_path)) == 2

    run(main())


def test_a_stalled_worker_writes_where_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"kind": "loop", "when": "decode"}, stall_timeout_s=0.3) as (_, client):
            await collect(client, generate(1))

    run(main())
    assert "in fail_if" in capfd.readouterr().err


def test_an_idle_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, stall_timeout_s=0.3) as (_, client):
            pid = await kill_worker(tmp_path, signal.SIGSTOP)
            await until(lambda: not is_alive(pid))
            assert await collect(client, generate(1)) == expected_tokens(generate(1))

    run(main())


def test_an_idle_worker_and_a_long_step_are_no_stall(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"step_s": 0.7}, stall_timeout_s=1.5) as (_, client):
            await asyncio.sleep(2.0)
            assert await collect(client, generate(1, num_tokens=2)) == expected_tokens(generate(1, num_tokens=2))
            assert len(worker_pids(tmp_path)) == 1

    run(main())


def test_a_crash_loop_ends_the_server_and_answers_what_still_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, max_restarts=4) as (supervisor, client):
            running = asyncio.create_task(collect(client, generate(1, num_tokens=1_000_000)))
            server = asyncio.create_task(supervisor.run())
            for number in range(4):
                await until(lambda: client.state == "ready")
                assert not server.done(), number
                num_frames = client.num_frames
                await until(lambda num_frames=num_frames: client.num_frames > num_frames + 2)
                await kill_worker(tmp_path)
                await until(lambda: client.state != "ready")
            with pytest.raises(ConfigurationError, match="died 4 times without finishing a request") as failure:
                await server
            assert failure.value.exit_code == EXIT_CRASH_LOOP
            with pytest.raises(ServerShutdown):
                await running
            assert not supervisor.is_live()
            assert client.state == "stopped"

    run(main())


def test_a_worker_that_fails_for_every_request_is_a_crash_loop_and_not_a_row_of_pills(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, max_restarts=5) as (supervisor, client):
            server = asyncio.create_task(supervisor.run())
            pills = [generate(i, prompt=[POISON, 0, i]) for i in range(20)]
            answers = await asyncio.gather(*(collect(client, pill) for pill in pills), return_exceptions=True)
            assert sum(isinstance(answer, ServerShutdown) for answer in answers) >= 16
            with pytest.raises(ConfigurationError):
                await server

    run(main())


def test_deaths_between_finished_requests_are_no_crash_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, max_restarts=2) as (supervisor, client):
            for _ in range(4):
                command = generate(1, num_tokens=3)
                assert await collect(client, command) == expected_tokens(command)
                await kill_worker(tmp_path)
                await until(lambda: client.state == "restarting")
            await until(supervisor.is_ready)

    run(main())


def test_stop_ends_running_requests_and_a_worker_that_hangs(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (supervisor, client):
            running = asyncio.create_task(collect(client, generate(1, num_tokens=1_000_000)))
            await until(lambda: client.num_frames > 3)
            await kill_worker(tmp_path, signal.SIGSTOP)
            await supervisor.stop()
            with pytest.raises(ServerShutdown):
                await running
            with pytest.raises(ServerShutdown):
                await collect(client, generate(2))

    run(main())


def test_stop_during_a_restart_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path, fault={"load_s": 0.3}) as (supervisor, client):
            for _ in range(2):
                await kill_worker(tmp_path)
                await until(lambda: client.state == "restarting")
            await until(lambda: len(worker_pids(tmp_path)) > 1)
            await supervisor.stop()

    run(main())


def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> None:
        supervisor = fake_supervisor(tmp_path, fault={"load_s": 10.0})
        start = asyncio.create_task(supervisor.start())
        await until(lambda: bool(worker_pids(tmp_path)))
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not is_alive(worker_pids(tmp_path)[0])

    run(main())


FRONT = """
import asyncio, sys
from pathlib import Path
from tests.supervised import *

async def main():
    async with supervised(Path(sys.argv[1])) as (_, client):
        await collect(client, generate(1, num_tokens=1_000_000))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"step_s": 60.0},
        {"kind": "loop", "when": "decode"},
        {"load_s": 60.0},
    ],
    ids=["stepping", "in a long step", "in an endless loop", "loading"],
)
def test_a_killed_front_leaves_no_worker(tmp_path: Path, fault: dict[str, object]) -> None:
    (tmp_path / "fault.json").write_text(json.dumps(fault))
    process = subprocess.Popen([sys.executable, "-c", FRONT, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        deadline_s = time.monotonic() + 60
        while not worker_pids(tmp_path) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.3)
        (pid,) = worker_pids(tmp_path)
        assert is_alive(pid)
    finally:
        process.kill()
        process.wait(60)
    deadline_s = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    alive = is_alive(pid)
    if alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive
