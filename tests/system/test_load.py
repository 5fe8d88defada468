"""More work than the server takes, clients that leave, and workers that are killed under load."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.clients import Outcome, body, eventually, generate_all

pytestmark = pytest.mark.timeout(270)

MAX_QUEUED = 20


@pytest.fixture(scope="module")
def narrow_server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with running_server(
        "--model", f"chat={tiny_llama}", *TINY_SETTINGS, "--max-queued-requests", str(MAX_QUEUED)
    ) as server:
        yield server


def resident_bytes(server: ServerProcess) -> int:
    """Of the front and its workers together."""
    pids = [server.process.pid, *server.worker_pids()]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def test_ten_times_the_queues_bound_is_refused_in_order_and_nothing_is_lost(narrow_server):
    def wave() -> list[Outcome]:
        requests = [body(f"Number {i}", stream=i % 2 == 0, max_new_tokens=60) for i in range(10 * MAX_QUEUED)]
        return asyncio.run(generate_all(narrow_server.url, requests))

    wave()
    settled_bytes = resident_bytes(narrow_server)
    outcomes = [outcome for _ in range(3) for outcome in wave()]
    served = [outcome for outcome in outcomes if outcome.status == 200]
    refused = [outcome for outcome in outcomes if outcome.status != 200]
    assert len(served) >= 3 * MAX_QUEUED
    assert all(outcome.is_whole and len(outcome.token_ids) == 60 for outcome in served)
    assert {(outcome.status, outcome.error_code) for outcome in refused} == {(503, "queue_full")}
    assert all(1 <= int(outcome.headers["retry-after"]) <= 60 for outcome in refused)
    assert resident_bytes(narrow_server) < 1.1 * settled_bytes
    assert narrow_server.metric("sluice_rejections_total", reason="queue_full") >= len(refused)
    assert narrow_server.metric("sluice_admitted_requests") == 0
    assert narrow_server.get("/readyz")[0] == 200


def test_clients_that_hang_up_give_every_block_back(tiny_server):
    async def hang_up(number: int, client: httpx2.AsyncClient) -> None:
        request = body(f"Number {number}", stream=number % 2 == 0, max_new_tokens=480)
        if not request["stream"]:
            with pytest.raises(httpx2.ReadTimeout):
                await client.post("/generate", json=request, timeout=httpx2.Timeout(60, read=0.3))
            return
        async with client.stream("POST", "/generate", json=request) as response:
            async for line in response.aiter_lines():
                if line:
                    return

    async def all_hang_up() -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(base_url=tiny_server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(hang_up(i, client) for i in range(32)))

    gone_before = tiny_server.metric("sluice_client_disconnects_total", model="chat")
    asyncio.run(all_hang_up())
    assert eventually(lambda: tiny_server.metric("sluice_kv_blocks_used", model="chat") == 0, within_s=2)
    assert tiny_server.metric("sluice_running_requests", model="chat") == 0
    assert tiny_server.metric("sluice_admitted_requests", model="chat") == 0
    assert tiny_server.metric("sluice_client_disconnects_total", model="chat") == gone_before + 32


def mixed_requests(count: int) -> list[dict[str, Any]]:
    """Greedy and seeded, streamed and not, of many lengths."""
    seeded = {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
    return [
        body(
            f"The miller counts sack number {i}, and " + "the river runs " * (i % 7),
            stream=i % 3 != 0,
            max_new_tokens=200 + 2 * i,
            **({**seeded, "seed": 1000 + i} if i % 2 else {}),
        )
        for i in range(count)
    ]


def test_a_worker_killed_three_times_under_load_changes_no_token(tiny_server):
    requests = mixed_requests(100)
    undisturbed = asyncio.run(generate_all(tiny_server.url, requests))
    assert all(outcome.is_whole for outcome in undisturbed)

    killer = Killer(tiny_server, times=3)
    disturbed = asyncio.run(generate_all(tiny_server.url, requests))
    assert killer.finish() == 3
    for request, before, after in zip(requests, undisturbed, disturbed, strict=True):
        assert after.is_whole, (request, after)
        assert after.token_ids == before.token_ids, request
        assert after.text == before.text
    assert tiny_server.metric("sluice_worker_restarts_total", model="chat") >= 3
    assert tiny_server.metric("sluice_worker_restarts_total", model="mood") == 0
    assert eventually(lambda: tiny_server.metric("sluice_kv_blocks_used", model="chat") == 0)


class Killer:
    """Kills the worker of ``chat`` whenever it has done some work, until it has done so ``times`` times."""

    def __init__(self, server: ServerProcess, times: int) -> None:
        self.num_kills = 0
        self._server = server
        self._times = times
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> int:
        self._thread.join(5)
        return self.num_kills

    def _run(self) -> None:
        deadline = time.monotonic() + 120
        while self.num_kills < self._times and time.monotonic() < deadline:
            done = self._computed()
            if eventually(lambda done=done: self._computed() > done + 500, within_s=60):
                os.kill(self._server.worker_pid("chat"), signal.SIGKILL)
                self.num_kills += 1

    def _computed(self) -> float:
        return self._server.metric("sluice_computed_tokens_total", model="chat")


def test_no_prompt_is_in_any_log(tiny_server):
    secret = "a word that only this test says"
    asyncio.run(generate_all(tiny_server.url, [body(secret, stream=True, max_new_tokens=5)]))
    assert eventually(lambda: any(line.get("output_tokens") == 5 for line in tiny_server.log_lines()))
    assert secret not in tiny_server.logs()
    line = next(line for line in tiny_server.log_lines() if line.get("output_tokens") == 5)
    assert {"request_id", "route", "model", "status", "finish_reason", "prompt_tokens", "ttft_ms", "total_ms"} <= set(
        line
    )
