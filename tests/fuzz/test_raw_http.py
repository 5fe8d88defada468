"""Clients that break HTTP get an answer of the one shape or none, soon, and leave nothing behind."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI

from tests.api.scripted import front, happens, says
from tests.api.shell import listening
from tests.fuzz.raw_http import SMUGGLING, Program, answers, play, program
from tests.fuzz.scale import SCALE

CLIENTS = 200 * SCALE
AT_ONCE = 16
LIMIT_S = 20.0
"""A server that closes at all does so at once; the bound is for a busy machine."""
REFUSALS = {400, 404, 405, 408, 413, 414, 415, 421, 422, 431}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return front(says("The mill runs."))


@pytest.fixture(scope="module")
def port(app: FastAPI) -> Iterator[int]:
    with listening(app) as port:
        yield port


def judge(client: Program, received: bytes) -> list[int]:
    """The statuses of all answers, once each has been found sound."""
    found = answers(received)
    for status, body in found:
        assert status in REFUSALS | {200}, (client, received)
        if status != 200 and body:
            error: dict[str, Any] = json.loads(body)["error"]
            assert error["code"] and error["message"] and len(error["request_id"]) in range(1, 65)
    return [status for status, _ in found]


def test_no_broken_client_is_answered_wrongly_or_kept(
    app: FastAPI, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    programs = [program(random.Random(f"raw {number}")) for number in range(CLIENTS)]
    num_threads = threading.active_count()
    with caplog.at_level(logging.ERROR), ThreadPoolExecutor(AT_ONCE) as pool:
        received = pool.map(lambda client: play(port, client, LIMIT_S), programs)
        statuses = [status for client, data in zip(programs, received, strict=True) for status in judge(client, data)]
    assert {200, 400} <= set(statuses)
    assert happens(lambda: app.front.lifecycle.num_active == 0 and not app.state.worker.running)
    assert not [record for record in caplog.records if record.name.startswith("sluice")], caplog.text
    assert threading.active_count() <= num_threads + AT_ONCE + 40
    alive = Program((b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",), 0.0, "half close")
    assert [status for status, _ in answers(play(port, alive, LIMIT_S))] == [200]


@pytest.mark.parametrize("sent", SMUGGLING)
def test_a_request_behind_an_ambiguous_one_is_never_read(port: int, sent: bytes) -> None:
    received = play(port, Program((sent,), 0.0, "half close"), LIMIT_S)
    assert b" 404 " not in received and b"smuggled" not in received
    assert [status for status, _ in answers(received)] in ([400], [413], [415], [422])
