"""The load tests' client sees what the server sent, however the network cuts it."""

from __future__ import annotations

import asyncio

import pytest
from client import Timeline, send

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"index":0,"token":{"id":5,"text":" a \\"token\\":{ b"}}\n\n'


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def seen_by_client(pieces: list[bytes]) -> Timeline:
    """What the client notes when the server answers with ``pieces`` and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await send(f"http://127.0.0.1:{port}/generate", {"inputs": "x"})


def timeline_of(*pieces: bytes) -> Timeline:
    return asyncio.run(seen_by_client(list(pieces)))


def test_each_token_of_a_stream_is_counted_once_and_a_text_that_looks_like_one_is_not():
    timeline = timeline_of(HEAD + chunk(EVENT), chunk(EVENT + EVENT), b"0\r\n\r\n")
    assert timeline.is_whole
    assert len(timeline.token_times) == 3
    assert timeline.token_times[0] < timeline.token_times[1] == timeline.token_times[2]


@pytest.mark.parametrize("place", [1, 20, 27, 30])
def test_a_token_that_the_network_cut_in_two_is_counted_once(place):
    whole = chunk(EVENT)
    timeline = timeline_of(HEAD, whole[:place], whole[place:], b"0\r\n\r\n")
    assert timeline.is_whole
    assert len(timeline.token_times) == 1


def test_a_stream_that_breaks_off_is_an_error():
    timeline = timeline_of(HEAD + chunk(EVENT))
    assert timeline.error == "IncompleteAnswer"
    assert not timeline.is_whole


def test_an_error_event_is_the_error():
    event = b'event: error\ndata: {"error": {"code": "engine_restarting"}}\n\n'
    assert timeline_of(HEAD + chunk(EVENT) + chunk(event) + b"0\r\n\r\n").error == "engine_restarting"


def test_a_refusal_is_its_status_and_a_short_body_is_an_error():
    assert timeline_of(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}").error == "status 404"
    assert timeline_of(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}").error == "IncompleteAnswer"


def test_what_is_not_http_is_an_error_and_not_an_exception():
    assert timeline_of(b"").error == "ConnectionError"
    assert timeline_of(b"nonsense\r\n\r\n").error in {"ValueError", "IndexError"}


def test_a_timeline_is_filled_while_the_stream_runs():
    async def watch() -> int:
        timeline = Timeline(start=0.0)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + chunk(EVENT))
            await reader.read()  # until the client hangs up
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1")
        async with server:
            port = server.sockets[0].getsockname()[1]
            task = asyncio.create_task(send(f"http://127.0.0.1:{port}/", {}, timeline=timeline))
            while not timeline.token_times:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return len(timeline.token_times)

    assert asyncio.run(asyncio.wait_for(watch(), 20)) == 1
