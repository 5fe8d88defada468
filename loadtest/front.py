"""What the front costs: processor time per token of HTTP, IPC and text, with a worker that computes nothing.

    python loadtest/front.py [--streams 1 8 32 128] [--tokens 300] [--step-ms 20]

A real front process streams to real connections. Its worker answers each step with one token for every request, taken
from the tokenizer of a default model, so that all that is measured is the front and, apart from it, the worker's side
of the connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from server.config import ModelConfig, ServeConfig
from server.protocol import Encode, Generate, Ready, Reply, Stats, TokenizerFiles, Tokens

MODEL = Path(__file__).parents[1] / "models/smollm2-135m-instruct"
VOCAB_SIZE = 49_152
SETTLE_STEPS = 20
"""Not counted: the requests are still being admitted."""


class ReplayingEngine:
    """A step takes as long as it is told, and yields a token of every request."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._requests: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._started: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, command: Generate | Encode) -> None:
        assert isinstance(command, Generate)
        self._requests[command.request_id] = command.params.max_new_tokens
        self._numbers[command.request_id] = len(self._numbers) * 7919
        self._started.append(command.request_id)

    def abort(self, request_id: str, index: int | None = None) -> None:  # noqa: ARG002
        self._requests.pop(request_id, None)

    def step(self) -> list[Reply]:
        time.sleep(self._step_s)
        replies: list[Reply] = []
        for request_id in list(self._requests):
            self._requests[request_id] -= 1
            self._numbers[request_id] += 1
            is_last = self._requests[request_id] == 0
            token_id = 1000 + self._numbers[request_id] % 40_000
            replies.append(Tokens(request_id, [token_id], "length" if is_last else None))
            if is_last:
                del self._requests[request_id]
        started, self._started = self._started, []
        return [*replies, Stats(num_running=len(self._requests), batch_size=len(replies), started=started)]


def worker(arguments: list[str]) -> None:
    """The worker process: its model's path is the length of a step in seconds."""
    from server.worker import process

    def build(model: ModelConfig, _num_loading: int) -> tuple[ReplayingEngine, Ready]:
        files = TokenizerFiles((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
        ready = Ready(
            task="generate",
            architecture="Replay",
            tokenizer=files,
            vocab_size=VOCAB_SIZE,
            max_model_len=8192,
            device="cpu",
            dtype="float32",
            executor="generic",
            attention="none",
            num_parameters=1,
            weight_bytes=4,
        )
        return ReplayingEngine(float(model.path)), ready

    process.main(build, arguments)


async def front(step_s: float) -> None:
    """The front process, as `sluice serve` runs it but for its worker."""
    from server.api.app import build_app
    from server.api.run import bind, http_server
    from server.client.supervisor import Supervisor

    config = ServeConfig(models=(ModelConfig(name="replay", path=str(step_s)),), port=0, max_queued_tokens=1 << 24)
    supervisor = Supervisor(config, command=(sys.executable, __file__, "--worker"))
    app = build_app(config, supervisor)
    listener = bind(config.host, config.port)
    http = asyncio.create_task(http_server(app).serve(sockets=[listener]))
    await app.state.registry.services.start()
    await supervisor.start()
    app.state.registry.load()
    app.state.lifecycle.is_loaded = True
    print(listener.getsockname()[1], flush=True)
    await http


@contextlib.contextmanager
def running_front(step_s: float) -> Iterator[tuple[psutil.Process, int]]:
    command = [sys.executable, __file__, "--front", str(step_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), int(process.stdout.readline())
        finally:
            process.kill()


def request(port: int, num_tokens: int) -> socket.socket:
    body = json.dumps({"inputs": "Once upon a time", "stream": True, "parameters": {"max_new_tokens": num_tokens}})
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall((head + body).encode())
    connection.setblocking(False)
    return connection


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class Streams:
    """Connections that are read as cheaply as can be: events are counted, not parsed."""

    def __init__(self, port: int, num_streams: int, num_tokens: int) -> None:
        self.num_events = 0
        self.num_open = num_streams
        self._selector = selectors.EpollSelector()
        for _ in range(num_streams):
            self._selector.register(request(port, num_tokens), selectors.EVENT_READ)

    def read_until(self, num_events: int) -> None:
        while self.num_events < num_events and self.num_open:
            for key, _ in self._selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 16)
                self.num_events += data.count(b"data:")
                if not data or b"0\r\n\r\n" in data:
                    self._selector.unregister(connection)
                    connection.close()
                    self.num_open -= 1


def measure(num_streams: int, num_tokens: int, step_s: float) -> str:
    with running_front(step_s) as (process, port):
        replayer = next(child for child in process.children() if child.name() == "sluice-worker")
        streams = Streams(port, num_streams, num_tokens)
        streams.read_until(num_streams * SETTLE_STEPS)
        before, worker_before, events_before, start_s = cpu_s(process), cpu_s(replayer), streams.num_events, time.time()
        streams.read_until(num_streams * (num_tokens - SETTLE_STEPS))
        num_events, elapsed_s = streams.num_events - events_before, time.time() - start_s
        front_s, worker_s = cpu_s(process) - before, cpu_s(replayer) - worker_before
        streams.read_until(num_streams * num_tokens)
        assert streams.num_events == num_streams * num_tokens
    per_token = [1e6 * seconds / num_events for seconds in (front_s, worker_s)]
    per_step_ms = front_s * num_streams / num_events * 1e3
    return (
        f"{num_streams:>7}   {per_token[0]:>8.1f}   {per_step_ms:>8.2f}   {per_token[1]:>9.1f}   "
        f"{num_events / elapsed_s:>8.0f}"
    )


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2:])
    if sys.argv[1:2] == ["--front"]:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(front(float(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--tokens", type=int, default=300, help="of each stream")
    parser.add_argument("--step-ms", type=float, default=20.0)
    options = parser.parse_args()
    print("streams   front us/token   ms/step   worker us/token   tokens/s")
    for num_streams in options.streams:
        print(measure(num_streams, options.tokens, options.step_ms / 1e3), flush=True)
    return None


if __name__ == "__main__":
    main()
