"""The worker's end: what it reads and when, and what it does with a front that is gone or mad."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server import framing
from server.config import ModelConfig
from server.errors import EXIT_INTERNAL
from server.protocol import Abort, Encode, Generate, Load, Ping, Pong, Ready, Reply, Stats, Tokens
from server.worker import loop
from server.worker.connection import Connection
from tests.fake_worker import expected_tokens
from tests.supervised import FAKE_WORKER, generate


class Scripted:
    """An engine that notes what it is told and has work for a given number of steps."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.log: list[str] = []

    @property
    def has_work(self) -> bool:
        return self.num_steps > 0

    def add(self, command: Generate | Encode) -> None:
        self.log.append(f"add {command.request_id}")

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.log.append(f"abort {request_id}" if index is None else f"abort {request_id}#{index}")

    def step(self) -> list[Reply]:
        self.num_steps -= 1
        self.log.append("step")
        return [Tokens("a", [1]), Tokens("b", [2]), Stats()]


@contextmanager
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours, theirs:
        yield ours, Connection(theirs)


def read_frame(sock: socket.socket) -> list[Reply]:
    """Exactly one frame."""
    header = sock.recv(4, socket.MSG_WAITALL)
    body = sock.recv(struct.unpack("<I", header)[0], socket.MSG_WAITALL)
    return framing.reply_decoder().feed(header + body)


def run_in_thread(engine: Scripted, connection: Connection) -> threading.Thread:
    thread = threading.Thread(target=loop.run, args=(engine, connection))
    thread.start()
    return thread


def test_all_frames_that_have_arrived_are_taken_before_a_step() -> None:
    with pair() as (front, connection):
        engine = Scripted(num_steps=0)
        for command in (generate(1), Encode("r2", [1]), Abort("r1"), Abort("unknown")):
            front.sendall(framing.encode([command]))
        worker = run_in_thread(engine, connection)
        assert read_frame(front) == [Tokens("a", [1]), Tokens("b", [2]), Stats()]
        front.close()
        worker.join(60)
        assert engine.log == ["add r1", "add r2", "abort r1", "abort unknown", "step"]


def test_nothing_is_computed_for_a_front_that_has_left() -> None:
    with pair() as (front, connection):
        engine = Scripted(num_steps=5)
        front.sendall(framing.encode([generate(1)]))
        front.close()
        loop.run(engine, connection)
        assert engine.log == []


def test_a_ping_is_answered_between_steps_in_the_step_s_own_frame() -> None:
    with pair() as (front, connection):
        engine = Scripted(num_steps=0)
        front.sendall(framing.encode([generate(1), Ping(), Abort("r1")]))
        worker = run_in_thread(engine, connection)
        assert read_frame(front) == [Pong(), Tokens("a", [1]), Tokens("b", [2]), Stats()]
        assert engine.log == ["add r1", "abort r1", "step"]
        front.close()
        worker.join(60)
        assert not worker.is_alive()


def test_a_worker_with_work_does_not_wait_for_commands() -> None:
    with pair() as (front, connection):
        engine = Scripted(num_steps=3)
        worker = run_in_thread(engine, connection)
        for _ in range(3):
            assert read_frame(front) == [Tokens("a", [1]), Tokens("b", [2]), Stats()]
        front.settimeout(0.1)
        with pytest.raises(TimeoutError):
            front.recv(1)
        front.close()
        worker.join(60)
        assert engine.log == ["step"] * 3, "an idle worker makes no steps"


def test_a_half_read_frame_does_not_stop_the_steps() -> None:
    with pair() as (front, connection):
        frame = framing.encode([generate(1)])
        front.sendall(frame[:-3])
        assert connection.receive(wait=False) == []
        front.sendall(frame[-3:])
        assert connection.receive(wait=True) == [generate(1)]
        assert connection.receive(wait=False) == []


@contextmanager
def started_worker(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A fake worker of its own that has loaded its model, driven by hand."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [*FAKE_WORKER, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
            )
        try:
            ours.sendall(framing.encode([Load(ModelConfig(name="fake", path=str(folder)))]))
            assert isinstance(read_frame(ours)[0], Ready)
            yield process, ours
        finally:
            process.kill()
            process.wait(60)
            assert process.stderr is not None
            process.stderr.close()


def test_a_worker_ends_in_peace_when_the_front_closes(tmp_path: Path) -> None:
    with started_worker(tmp_path) as (process, front):
        front.sendall(framing.encode([generate(1, num_tokens=1_000_000)]))
        read_frame(front)
        front.close()
        assert process.wait(2) == 0


def test_a_worker_serves_whoever_holds_the_other_end(tmp_path: Path) -> None:
    with started_worker(tmp_path) as (_, front):
        command = generate(3, num_tokens=5)
        front.sendall(framing.encode([command]))
        token_ids: list[int] = []
        while len(token_ids) < 5:
            token_ids += [i for reply in read_frame(front) if isinstance(reply, Tokens) for i in reply.token_ids]
        assert token_ids == expected_tokens(command)


@pytest.mark.parametrize("seed", range(5))
def test_random_frames_end_the_worker_and_do_not_hang_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with started_worker(tmp_path) as (process, front):
        body = rng.randbytes(rng.randrange(1, 2000))
        front.sendall(struct.pack("<I", len(body) if seed else 2**32 - 1) + body)
        assert process.wait(60) == EXIT_INTERNAL
        assert process.stderr is not None
        assert b"FrameError" in process.stderr.read()


def test_a_second_load_ends_the_worker(tmp_path: Path) -> None:
    with started_worker(tmp_path) as (process, front):
        front.sendall(framing.encode([Load(ModelConfig(name="other", path=str(tmp_path)))]))
        assert process.wait(60) == EXIT_INTERNAL


def test_an_exception_in_a_step_is_shown_and_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "fault.json").write_text('{"kind": "exception", "when": "decode"}')
    with started_worker(tmp_path) as (process, front):
        front.sendall(framing.encode([generate(1)]))
        assert process.wait(60) == EXIT_INTERNAL
        assert process.stderr is not None
        shown = process.stderr.read().decode()
        assert "Traceback" in shown
        assert "RuntimeError: a fault that a test asked for" in shown


def test_a_front_that_does_not_read_for_a_while_loses_nothing(tmp_path: Path) -> None:
    with started_worker(tmp_path) as (_, front):
        commands = [generate(i, num_tokens=200) for i in range(50)]
        front.sendall(framing.encode(commands))
        time.sleep(1.0)
        token_ids: dict[str, list[int]] = {command.request_id: [] for command in commands}
        while sum(map(len, token_ids.values())) < 50 * 200:
            for reply in read_frame(front):
                if isinstance(reply, Tokens):
                    token_ids[reply.request_id] += reply.token_ids
        assert token_ids == {command.request_id: expected_tokens(command) for command in commands}


def test_a_worker_without_a_socket_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "server.worker"], capture_output=True, timeout=120, check=False)
    assert done.returncode == 2
    assert b"--fd" in done.stderr
