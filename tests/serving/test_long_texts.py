"""Long texts: refused before they are read, apart from short ones, and without keeping memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server import caller
from server.caller import Caller
from server.serving import text_threads
from server.text.tokenizer import Tokenizer
from tests.api.scripted import front, says
from tests.api.shell import client_of

LONG = "a" * 200_000


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer may be asked."""

    def encode(*_: Any) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr(Tokenizer, "encode", encode)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": LONG}),
        ("/generate", {"inputs": [LONG, "a"]}),
        ("/v1/completions", {"prompt": LONG, "model": "tiny"}),
    ],
)
def test_a_text_that_is_certainly_too_long_is_refused_unread(path: str, body: dict[str, Any]) -> None:
    reply = client_of(front(says("x"))).post(path, json=body)
    assert reply.status_code in (400, 422)
    error = reply.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "at least" in error["message"]


def test_a_long_text_is_cut_as_a_short_one_is() -> None:
    app = front(says("x"))
    words = "the mill " * 20_000
    for text in (words, words[-900:]):
        body = {"inputs": text, "parameters": {"truncate": 20, "max_new_tokens": 2}}
        assert client_of(app).post("/generate", json=body).status_code == 200
    long, short = app.state.worker.commands
    assert long.prompt_ids == short.prompt_ids


def test_a_short_text_does_not_wait_for_long_ones() -> None:
    async def main() -> None:
        release = threading.Event()
        caller.set_current(Caller("flood"))
        flood = [asyncio.create_task(text_threads.each(lambda _: release.wait(60), ["x"], 10**6)) for _ in range(20)]
        await asyncio.sleep(0)
        caller.set_current(Caller("other"))
        assert await text_threads.each(len, ["short"], 5) == [5]
        assert await text_threads.each(len, ["long"], 10**6) == [4]
        assert not any(task.done() for task in flood)
        release.set()
        await asyncio.gather(*flood)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_short_text_does_not_wait_for_threads_that_are_all_taken() -> None:
    async def main() -> None:
        release = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        taken = loop.run_in_executor(None, release.wait, 60)
        assert await text_threads.each(len, ["short"], 5) == [5]
        assert not taken.done()
        release.set()
        await taken

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_short_text_with_long_options_is_read_in_a_thread() -> None:
    async def main() -> None:
        [thread] = await text_threads.each(lambda _: threading.get_ident(), ["short"], 5, num_option_characters=10**5)
        assert thread != threading.get_ident()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_work_of_a_client_that_left_stops_before_its_next_text() -> None:
    async def main() -> None:
        began, release = threading.Event(), threading.Event()
        seen: list[int] = []

        def work(number: int) -> None:
            seen.append(number)
            began.set()
            release.wait(60)

        task = asyncio.create_task(text_threads.each(work, [1, 2, 3], 10**6))
        await asyncio.to_thread(began.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [1]
        assert await text_threads.each(len, ["next"], 10**6) == [4]

    asyncio.run(asyncio.wait_for(main(), 60))


def memory_kept_mib(*, first_lengths: list[int], lengths: list[int]) -> float:
    """How much memory a new process keeps from refusing texts of these lengths, after those of the first lengths.

    The texts are of a script that the bound knows nothing of, so they are read.
    """
    script = f"""
from tests.api.scripted import front, says
from tests.api.shell import client_of
from tests.serving.test_long_texts import rss_mib

client = client_of(front(says("x")))

def refuse(lengths):
    for length in lengths:
        assert client.post("/generate", json={{"inputs": "中" * length}}).status_code == 422

refuse({first_lengths})
before = rss_mib()
refuse({lengths})
print(rss_mib() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


def test_reading_long_texts_again_and_again_keeps_no_memory() -> None:
    assert memory_kept_mib(first_lengths=[200_000] * 4, lengths=[200_000] * 4) < 20


def test_memory_is_given_back_after_the_first_refusal() -> None:
    assert memory_kept_mib(first_lengths=[1100], lengths=[600_000]) < 50
