"""The sandbox's promises: limits that hold, a server that lives, no process left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from server.client.sandbox import Sandbox
from server.errors import SandboxFailure, SandboxTimeout, ServerShutdown, SluiceError

T = TypeVar("T")
HOSTILE = (sys.executable, str(Path(__file__).with_name("hostile_functions.py")))


def run(main: Coroutine[Any, Any, T], limit_s: float = 200.0) -> T:
    return asyncio.run(asyncio.wait_for(main, limit_s))


@asynccontextmanager
async def hostile_sandbox(num_processes: int = 2) -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(num_processes=num_processes, command=HOSTILE)
    try:
        yield sandbox
    finally:
        pids = sandbox.pids
        await sandbox.close()
        assert not [pid for pid in pids if psutil.pid_exists(pid)], "a process outlived its sandbox"


@pytest.fixture(autouse=True)
def root_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_values_come_back_as_they_went() -> None:
    async def main() -> Any:
        async with hostile_sandbox() as sandbox:
            return await sandbox.call("echo", {"a": [1, 2.5, None, True, "\U0001f600 中 \x00"]})

    assert run(main()) == {"a": [1, 2.5, None, True, "\U0001f600 中 \x00"]}


def test_no_process_runs_before_the_first_call_and_one_serves_many() -> None:
    async def main() -> tuple[list[int], list[int], list[int]]:
        async with hostile_sandbox() as sandbox:
            before = sandbox.pids
            await sandbox.call("echo", 1)
            first = sandbox.pids
            for i in range(20):
                await sandbox.call("echo", i)
            return before, first, sandbox.pids

    before, first, last = run(main())
    assert before == []
    assert len(first) == 1
    assert last == first


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("refuse", (), "It is refused."),
        ("fail", (), "boom"),
        ("recurse", (), "nested too deep"),
        ("allocate", (1 << 31,), "memory limit"),
        ("die", (), "memory or nesting limit"),
        ("abort", (), "memory or nesting limit"),
        ("flood", (17 << 20,), "longer than the limit"),
        ("run", (), "not allowed in the sandbox"),
        ("signal_parent", (), "not allowed in the sandbox"),
        ("unheard_of", (), "unheard_of"),
    ],
)
def test_a_call_that_fails_is_the_callers_error_and_the_next_one_works(
    function: str, arguments: tuple[Any, ...], message: str
) -> None:
    async def main() -> None:
        async with hostile_sandbox(1) as sandbox:
            with pytest.raises(SandboxFailure, match=message):
                await sandbox.call(function, *arguments)
            assert await sandbox.call("echo", 7) == 7

    run(main())


def test_an_endless_call_is_killed_in_time_and_the_next_one_works() -> None:
    async def main() -> tuple[list[int], list[int]]:
        async with hostile_sandbox(1) as sandbox:
            await sandbox.call("echo", 1)
            before = sandbox.pids
            with pytest.raises(SandboxTimeout, match=r"0\.5 s"):
                await sandbox.call("spin", timeout_s=0.5)
            assert await sandbox.call("echo", 7) == 7
            return before, sandbox.pids

    before, after = run(main())
    assert before != after
    assert not psutil.pid_exists(before[0])


def test_a_call_that_only_waits_is_killed_too() -> None:
    async def main() -> None:
        async with hostile_sandbox(1) as sandbox:
            await sandbox.call("echo", 1)
            with pytest.raises(SandboxTimeout):
                await sandbox.call("sleep", 3600.0, timeout_s=0.2)

    run(main())


def test_a_process_that_is_killed_in_the_middle_of_a_call_costs_nobody_an_answer() -> None:
    async def main() -> str:
        async with hostile_sandbox(1) as sandbox:
            await sandbox.call("echo", 1)
            call = asyncio.create_task(sandbox.call("sleep", 0.3))
            await asyncio.sleep(0.1)
            os.kill(sandbox.pids[0], signal.SIGKILL)
            return await call

    assert run(main()) == "slept"


def test_a_process_that_was_killed_while_idle_is_replaced() -> None:
    async def main() -> Any:
        async with hostile_sandbox(1) as sandbox:
            await sandbox.call("echo", 1)
            os.kill(sandbox.pids[0], signal.SIGKILL)
            return await sandbox.call("echo", 2)

    assert run(main()) == 2


def test_a_caller_who_leaves_ends_the_work() -> None:
    async def main() -> None:
        async with hostile_sandbox(1) as sandbox:
            await sandbox.call("echo", 1)
            [pid] = sandbox.pids
            call = asyncio.create_task(sandbox.call("spin", timeout_s=30.0))
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert await sandbox.call("echo", 3) == 3
            assert pid not in sandbox.pids

    run(main())


def test_fifty_calls_at_once_share_two_processes_and_the_event_loop_goes_on() -> None:
    async def main() -> tuple[list[Any], int, float]:
        async with hostile_sandbox(2) as sandbox:
            calls = [sandbox.call("echo", "x" * 10_000 + str(i)) for i in range(50)]
            work = asyncio.gather(*calls)
            num_turns, worst_busy_s = 0, 0.0
            while not work.done():
                start_busy_s = time.thread_time()
                await asyncio.sleep(0.001)
                worst_busy_s = max(worst_busy_s, time.thread_time() - start_busy_s)
                num_turns += 1
            assert num_turns > 10, "the loop stood still while it waited"
            return await work, len(sandbox.pids), worst_busy_s

    answers, num_processes, worst_busy_s = run(main())
    assert answers == ["x" * 10_000 + str(i) for i in range(50)]
    assert num_processes <= 2
    # Of its own: the clock on the wall would count what other processes of a busy machine take.
    assert worst_busy_s < 0.05


def test_while_a_call_spins_others_are_answered() -> None:
    async def main() -> None:
        async with hostile_sandbox(2) as sandbox:
            spinning = asyncio.create_task(sandbox.call("spin", timeout_s=1.0))
            await asyncio.sleep(0)
            assert await asyncio.wait_for(sandbox.call("echo", 1), 20) == 1
            assert not spinning.done()
            with pytest.raises(SandboxTimeout):
                await spinning

    run(main())


def test_files_and_the_network_are_out_of_reach(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        async with hostile_sandbox(1) as sandbox:
            with pytest.raises(SandboxFailure, match="cannot write files"):
                await sandbox.call("write", str(tmp_path / "file"))
            with pytest.raises(SandboxFailure, match="not allowed in the sandbox"):
                await sandbox.call("connect", port)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        run(main(listener.getsockname()[1]))
        with pytest.raises(TimeoutError):
            listener.accept()
    assert not (tmp_path / "file").exists()


def test_secrets_in_our_environment_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")

    async def main() -> list[str]:
        async with hostile_sandbox(1) as sandbox:
            return await sandbox.call("environment")

    assert "API_TOKEN" not in run(main())


def test_a_closed_sandbox_takes_no_calls() -> None:
    async def main() -> None:
        sandbox = Sandbox(command=HOSTILE)
        await sandbox.close()
        with pytest.raises(ServerShutdown):
            await sandbox.call("echo", 1)

    run(main())


def test_a_process_that_cannot_start_is_the_servers_error() -> None:
    async def main() -> None:
        sandbox = Sandbox(command=(sys.executable, "-c", "raise SystemExit(3)"))
        with pytest.raises(SluiceError, match="could not start") as caught:
            await sandbox.call("echo", 1)
        assert caught.value.status == 500
        await sandbox.close()

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="a kernel's service")
def test_a_spinning_process_dies_with_its_parent() -> None:
    script = (
        "import asyncio, sys; from server.client.sandbox import Sandbox\n"
        f"sandbox = Sandbox(num_processes=1, command={HOSTILE!r})\n"
        "async def main():\n"
        "    await sandbox.call('echo', 1)\n"
        "    print(sandbox.pids[0], flush=True)\n"
        "    await sandbox.call('spin', timeout_s=60.0)\n"
        "asyncio.run(main())"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, "the process outlived its parent"
        time.sleep(0.02)
