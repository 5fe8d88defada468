"""A supervisor over fake workers, for tests: every wait has a limit and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from server.client.supervisor import Supervisor
from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.protocol import Generate, SamplingParams, Tokens

T = TypeVar("T")

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
FAST = {"restart_backoff_s": 0.01, "stall_timeout_s": 20.0, "max_restarts": 20, "start_timeout_s": 60.0}


def run(main: Coroutine[Any, Any, T], limit_s: float = 200.0) -> T:
    return asyncio.run(asyncio.wait_for(main, limit_s))


def fake_supervisor(
    folder: Path, *, fault: dict[str, Any] | None = None, max_running: int = 64, **settings: Any
) -> Supervisor:
    if fault is not None:
        (folder / "fault.json").write_text(json.dumps(fault))
    model = ModelConfig(name="fake", path=str(folder), threads=1, max_running=max_running)
    return Supervisor(ServeConfig(models=(model,), **{**FAST, **settings}), command=FAKE_WORKER)


@asynccontextmanager
async def supervised(folder: Path, **options: Any) -> AsyncIterator[tuple[Supervisor, WorkerClient]]:
    """A started supervisor of one fake model and its client."""
    supervisor = fake_supervisor(folder, **options)
    await supervisor.start()
    try:
        yield supervisor, supervisor.clients["fake"]
    finally:
        await supervisor.stop()
        assert not [pid for pid in worker_pids(folder) if is_alive(pid)], "a worker outlived its supervisor"


def generate(i: int, num_tokens: int = 40, prompt: list[int] | None = None) -> Generate:
    prompt_ids = prompt or [i, *range(i % 30)]
    return Generate(f"r{i}", prompt_ids, SamplingParams(max_new_tokens=num_tokens, seed=i))


async def collect(client: WorkerClient, command: Generate, seen: Callable[[Tokens], None] | None = None) -> list[int]:
    """All tokens of one request; the last message, and only that, has the finish reason."""
    token_ids: list[int] = []
    finished = False
    async with aclosing(client.stream(command)) as stream:
        async for [tokens] in stream:
            assert not finished
            assert tokens.request_id == command.request_id
            token_ids += tokens.token_ids
            finished = tokens.finish_reason == "length"
            if seen is not None:
                seen(tokens)
    assert finished
    return token_ids


async def collect_outputs(client: WorkerClient, command: Generate) -> list[list[int]]:
    """All tokens of each of a request's outputs; each has one finish reason, with its last tokens."""
    outputs: list[list[int]] = [[] for _ in range(command.params.num_return_sequences)]
    finished: set[int] = set()
    async with aclosing(client.stream(command)) as stream:
        async for messages in stream:
            for tokens in messages:
                assert tokens.index not in finished
                outputs[tokens.index] += tokens.token_ids
                if tokens.finish_reason is not None:
                    finished.add(tokens.index)
    assert finished == set(range(len(outputs)))
    return outputs


def worker_pids(folder: Path) -> list[int]:
    """Every worker that ever held the model in ``folder``, oldest first."""
    marks = sorted(folder.glob("pid-*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(mark.name.removeprefix("pid-")) for mark in marks]


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def kill_worker(folder: Path, number: signal.Signals = signal.SIGKILL) -> int:
    """Signal the newest worker, once it lives, and return its id."""
    await until(lambda: bool(worker_pids(folder)) and is_alive(worker_pids(folder)[-1]))
    pid = worker_pids(folder)[-1]
    os.kill(pid, number)
    return pid
