"""Replicas behind HAProxy and nginx, with the files of deploy/, are replaced one after the other while clients ask."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.conftest import TINY_SETTINGS
from tests.deploy.balancers import BALANCERS, LONG, addresses, num_answered, three_servers
from tests.server_process import running_server
from tests.system.clients import TIMEOUT_S, Outcome, body, eventually, generate

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


class Load:
    """Clients that ask one thing after another until they are told to stop: streams, whole answers, long bodies.

    They keep their connections, as most client libraries do.
    """

    def __init__(self, url: str) -> None:
        self.outcomes: list[Outcome | Exception] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(url)), daemon=True)
        self._thread.start()

    async def _run(self, url: str) -> None:
        texts = ("Number one", "Number two", "Number three", LONG)
        async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
            asking = (self._ask(client, text, is_stream=is_stream) for text in texts for is_stream in (True, False))
            await asyncio.gather(*asking)

    async def _ask(self, client: httpx2.AsyncClient, text: str, *, is_stream: bool) -> None:
        request = body(text, stream=is_stream, max_new_tokens=40, truncate=64)
        while not self._is_over.is_set():
            try:
                self.outcomes.append(await generate(client, request, None))
            except httpx2.TransportError as error:
                self.outcomes.append(error)

    def finish(self) -> list[Outcome | Exception]:
        self._is_over.set()
        self._thread.join(90)
        assert not self._thread.is_alive()
        return self.outcomes


@pytest.mark.parametrize("drain_delay_s", ["0", "3"])
@pytest.mark.parametrize("name", BALANCERS)
def test_a_rolling_restart_under_load_loses_no_request(name: str, drain_delay_s: str, tiny_llama: Path, tmp_path: Path):
    flags = ("--drain-delay-s", drain_delay_s)
    with (
        ExitStack() as replacements,
        three_servers(tiny_llama, *flags) as servers,
        BALANCERS[name](addresses(servers), tmp_path) as url,
    ):
        load = Load(url)
        for old in servers:
            assert eventually(lambda old=old: num_answered(old) > 0, within_s=60)
            old.signal(signal.SIGTERM)
            assert old.wait(60) == 0
            port = old.url.rpartition(":")[2]
            command = ("--model", f"chat={tiny_llama}", *TINY_SETTINGS, *flags, "--port", port)
            new = replacements.enter_context(running_server(*command))
            assert eventually(lambda new=new: num_answered(new) > 0, within_s=60)
        outcomes = load.finish()
    assert len(outcomes) > 20
    assert [outcome for outcome in outcomes if not (isinstance(outcome, Outcome) and outcome.is_whole)] == []
