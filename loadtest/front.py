"""What the front costs: processor time per token of HTTP, IPC and text, with a worker that computes nothing.

    python loadtest/front.py [--streams 32] [--step-ms 16] [--case chat] [--against ../before]

A real front process streams to real connections. Its worker answers each step with one token for every request, taken
from the tokenizer of a default model, so that all that is measured is the front and, apart from it, the worker's side
of the connection. 32 streams and steps of 16 ms are 2,000 tokens/s. With ``--step-ms 0`` the worker never waits, which
shows the most that the front can carry. ``--against`` measures the code of another checkout in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from server.config import ModelConfig, ServeConfig
from server.protocol import (
    Encode,
    Generate,
    Ready,
    Reply,
    SamplingParams,
    Stats,
    TokenizerFiles,
    TokenLogprob,
    Tokens,
)

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models/smollm2-135m-instruct"
VOCAB_SIZE = 49_152
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


class Case(NamedTuple):
    """One dialect's request."""

    path: str
    body: dict[str, Any]
    length: str
    """The field for the number of tokens; dots lead into objects."""


CASES = {
    "generate": Case("/generate", {"inputs": "Once upon a time"}, "parameters.max_new_tokens"),
    "generate, 3 most likely told": Case(
        "/generate",
        {"inputs": "Once upon a time", "parameters": {"details": True, "top_n_tokens": 3}},
        "parameters.max_new_tokens",
    ),
    "chat": Case("/v1/chat/completions", {"messages": MESSAGES}, "max_tokens"),
    "chat, 3 most likely told": Case(
        "/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3}, "max_tokens"
    ),
}
SETTLE_STEPS = 20
"""Not counted: the requests are still being admitted."""


class ReplayingEngine:
    """A step takes as long as it is told, and yields a token of every request."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._requests: dict[str, int] = {}
        self._params: dict[str, SamplingParams] = {}
        self._numbers: dict[str, int] = {}
        self._started: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, command: Generate | Encode) -> None:
        assert isinstance(command, Generate)
        self._requests[command.request_id] = command.params.max_new_tokens
        self._params[command.request_id] = command.params
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
            reply = Tokens(request_id, [token_id], "length" if is_last else None)
            replies.append(_told(reply, self._params[request_id]))
            if is_last:
                del self._requests[request_id]
        started, self._started = self._started, []
        return [*replies, Stats(num_running=len(self._requests), batch_size=len(replies), started=started)]


def _told(reply: Tokens, params: SamplingParams) -> Tokens:
    """The reply with the log-probabilities that were asked for."""
    if not params.tells_logprobs:
        return reply
    [token_id] = reply.token_ids
    top = [TokenLogprob(token_id + i, -0.5 - i) for i in range(params.top_n_tokens)]
    return msgspec.structs.replace(reply, logprobs=[-0.5], top_logprobs=[top] if params.tells_others else None)


def worker(arguments: list[str]) -> None:
    """The worker process: its model's path is the length of a step in seconds."""
    from server.worker import process

    def build(model: ModelConfig, *_neighbours: int) -> tuple[ReplayingEngine, Ready]:
        tokenizer, template = (MODEL / name for name in ("tokenizer.json", "chat_template.jinja"))
        files = TokenizerFiles(tokenizer.read_text("utf-8"), template.read_text("utf-8"))
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
    from server.api.lifespan import load
    from server.api.run import bind, http_server
    from server.client.supervisor import Supervisor

    config = ServeConfig(models=(ModelConfig(name="replay", path=str(step_s)),), port=0, max_queued_tokens=1 << 24)
    supervisor = Supervisor(config, command=(sys.executable, __file__, "--worker"))
    app = build_app(config, supervisor)
    listener = bind(config.host, config.port)
    http = asyncio.create_task(http_server(app).serve(sockets=[listener]))
    await load(app)
    print(listener.getsockname()[1], flush=True)
    await http


@contextlib.contextmanager
def running_front(root: Path, step_s: float) -> Iterator[tuple[psutil.Process, int]]:
    """A front made of the code in ``root``, and its port."""
    command = [sys.executable, __file__, "--front", str(step_s)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), int(process.stdout.readline())
        finally:
            process.kill()


def connect(port: int, case: Case, num_tokens: int) -> socket.socket:
    fields = json.loads(json.dumps({**case.body, "stream": True}))
    *parents, last = case.length.split(".")
    target = fields
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = num_tokens
    body = json.dumps(fields)
    head = (
        f"POST {case.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall((head + body).encode())
    connection.setblocking(False)
    return connection


class Streams:
    """Connections that are read as cheaply as can be: events are counted, not parsed."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self.num_events = 0
        self.num_open = len(connections)
        self._selector = selectors.EpollSelector()
        for connection in connections:
            self._selector.register(connection, selectors.EVENT_READ)

    def read_until(self, num_events: float) -> None:
        while self.num_events < num_events and self.num_open:
            for key, _ in self._selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 16)
                if data.startswith(b"HTTP/1.1") and not data.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(data[-400:].decode())
                self.num_events += data.count(b"data:")
                if not data or b"0\r\n\r\n" in data:
                    self._selector.unregister(connection)
                    connection.close()
                    self.num_open -= 1


class Cost(NamedTuple):
    """Of one measurement, in seconds of processor time but for the last."""

    front_user_s: float
    front_system_s: float
    worker_s: float
    wall_s: float

    @classmethod
    def now(cls, front: psutil.Process, replayer: psutil.Process) -> Cost:
        ours, theirs = front.cpu_times(), replayer.cpu_times()
        return cls(ours.user, ours.system, theirs.user + theirs.system, time.perf_counter())


def measure(root: Path, case: Case, num_streams: int, num_tokens: int, step_s: float) -> dict[str, float]:
    """Processor time from the first tokens, when all are admitted, to the last ones."""
    with running_front(root, step_s) as (process, port):
        replayer = next(child for child in process.children() if child.name() == "sluice-worker")
        streams = Streams([connect(port, case, num_tokens) for _ in range(num_streams)])
        streams.read_until(num_streams * SETTLE_STEPS)
        before = Cost.now(process, replayer)
        streams.read_until(float("inf"))
        spent = Cost(*(after - was for after, was in zip(Cost.now(process, replayer), before, strict=True)))
    num_counted = num_streams * (num_tokens - SETTLE_STEPS)
    front_s = spent.front_user_s + spent.front_system_s
    return {
        "front us/token": 1e6 * front_s / num_counted,
        "of it system": 1e6 * spent.front_system_s / num_counted,
        "worker us/token": 1e6 * spent.worker_s / num_counted,
        "tokens/s": num_counted / spent.wall_s,
        "front's core": front_s / spent.wall_s,
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2:])
    if sys.argv[1:2] == ["--front"]:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(front(float(sys.argv[2])))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--step-ms", type=float, default=16.0)
    parser.add_argument("--case", action="append", choices=CASES, help="only this; may be given again")
    parser.add_argument("--rounds", type=int, default=1, help="medians of this many are shown")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    options = parser.parse_args()
    roots = {"": ROOT} if options.against is None else {"before": options.against.resolve(), "after": ROOT}
    for num_streams in options.streams:
        for name in options.case or CASES:
            found: dict[str, list[dict[str, float]]] = {label: [] for label in roots}
            for _ in range(options.rounds):
                for label, root in roots.items():
                    measured = measure(root, CASES[name], num_streams, options.tokens, options.step_ms / 1e3)
                    found[label].append(measured)
            for label, results in found.items():
                values = ", ".join(f"{key} {statistics.median(r[key] for r in results):.4g}" for key in results[0])
                print(f"{num_streams:4} streams of {name:28} {label:6} {values}", flush=True)
    return None


if __name__ == "__main__":
    main()
