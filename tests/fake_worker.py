"""A worker process with everything real but the model: the next token is a hash of all tokens before it.

So a token that is lost, repeated or mixed up between requests changes all that follow. The model's path is a folder;
``fault.json`` in it says how this worker is to fail.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import framing
from server.config import ModelConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.protocol import Encode, Failed, Generate, Ping, Ready, Reply, Scores, Stats, TokenizerFiles, Tokens
from server.worker import process

POISON = 666
"""A prompt that begins with it, and with a number n after it, kills the worker whenever its token n is computed."""
FAILS = 667
"""A prompt that begins with it is answered Failed."""
VOCAB_SIZE = 50_000
PREFILL_CHUNK = 8


def next_token(token_ids: Sequence[int], seed: int) -> int:
    digest = hashlib.blake2b(struct.pack(f"<{len(token_ids) + 1}q", seed, *token_ids), digest_size=8).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def expected_tokens(command: Generate) -> list[int]:
    """What a worker that nobody disturbs answers."""
    ids = list(command.prompt_ids)
    for _ in range(command.params.max_new_tokens):
        ids.append(next_token(ids, command.params.seed))
    return ids[len(command.prompt_ids) :]


def scores_of(token_ids: Sequence[int]) -> bytes:
    return struct.pack("<2f", float(sum(token_ids)), float(len(token_ids)))


@dataclass
class Running:
    command: Generate | Encode
    output_ids: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    started: bool = False


class FakeEngine:
    """Steps that take a millisecond, prompts in chunks, a bounded batch, and faults on demand."""

    def __init__(self, folder: Path, max_running: int) -> None:
        self.folder = folder
        self.max_running = max_running
        self.requests: dict[str, Running] = {}
        self.replies: list[Reply] = []
        path = folder / "fault.json"
        self.fault: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.step_s = float(self.fault.get("step_s", 0.001))
        self.finished_in_last_step = False

    @property
    def has_work(self) -> bool:
        return bool(self.requests or self.replies)

    def add(self, command: Generate | Encode) -> None:
        self.fail_if("queued")
        if isinstance(command, Generate) and command.prompt_ids[0] == FAILS:
            self.replies.append(Failed(command.request_id, "numerical_error", "The output is not finite."))
            return
        output_ids = list(command.outputs[0].token_ids) if isinstance(command, Generate) and command.outputs else []
        if isinstance(command, Generate) and len(output_ids) >= command.params.max_new_tokens:
            self.replies.append(Tokens(command.request_id, [], "length"))
            return
        self.requests[command.request_id] = Running(command, output_ids)

    def abort(self, request_id: str) -> None:
        self.requests.pop(request_id, None)

    def step(self) -> list[Reply]:
        time.sleep(self.step_s)
        if self.finished_in_last_step:
            self.fail_if("finished")
        self.finished_in_last_step = False
        replies, self.replies = self.replies, []
        batch = list(self.requests.values())[: self.max_running]
        started = [request.command.request_id for request in batch if not request.started]
        for request in batch:
            reply = self.advance(request)
            if reply is not None:
                replies.append(reply)
        num_running = len(self.requests)
        return [*replies, Stats(num_running=num_running, batch_size=len(batch), started=started)]

    def advance(self, request: Running) -> Reply | None:
        request.started = True
        command = request.command
        if isinstance(command, Encode):
            self.fail_if("decode")
            del self.requests[command.request_id]
            return Scores(command.request_id, (2,), scores_of(command.token_ids))
        prefix = command.prompt_ids + request.output_ids
        if request.num_prefilled + PREFILL_CHUNK < len(prefix) and not request.num_prefilled < 0:
            self.fail_if("prefill")
            request.num_prefilled += PREFILL_CHUNK
            return None
        request.num_prefilled = -1
        return self.decode(request, command, prefix)

    def decode(self, request: Running, command: Generate, prefix: list[int]) -> Tokens:
        if len(request.output_ids) == 3:
            self.fail_if("decode")
        if command.prompt_ids[0] == POISON and len(request.output_ids) >= command.prompt_ids[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        token_id = next_token(prefix, command.params.seed)
        request.output_ids.append(token_id)
        finished = len(request.output_ids) >= command.params.max_new_tokens
        if finished:
            self.fail_if("finish")
            self.finished_in_last_step = True
            del self.requests[command.request_id]
        return Tokens(command.request_id, [token_id], finish_reason="length" if finished else None)

    def fail_if(self, when: str) -> None:
        """The fault that is asked for at this point, ``times`` times in the lives of all workers together."""
        if self.fault.get("when") != when:
            return
        marks = list(self.folder.glob("mark-*"))
        if len(marks) >= self.fault.get("times", 1):
            return
        (self.folder / f"mark-{len(marks)}").touch()
        fail(self.fault["kind"])


def fail(kind: str) -> None:
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "segv":
            faulthandler._sigsegv()  # type: ignore[attr-defined]
        case "exit":
            os._exit(0)
        case "exception":
            raise RuntimeError("a fault that a test asked for")
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "loop":
            while True:
                pass
        case "garbage":
            os.write(socket_fd(), b"\xff" * 100)
        case "nonsense":
            os.write(socket_fd(), struct.pack("<I", 3) + b"\xc0" * 3)
        case "unexpected":
            os.write(socket_fd(), framing.encode([Ping()]))
        case _:
            raise ValueError(kind)


def socket_fd() -> int:
    return int(sys.argv[sys.argv.index("--fd") + 1])


def build(model: ModelConfig) -> tuple[FakeEngine, Ready]:
    folder = Path(model.path)
    if not folder.is_dir():
        raise ConfigurationError(f"Model {model.name}: {folder} is no folder.\nGive one.", exit_code=EXIT_MODEL)
    engine = FakeEngine(folder, model.max_running)
    (folder / f"pid-{os.getpid()}").touch()
    time.sleep(engine.fault.get("load_s", 0.0))
    if engine.fault.get("when") == "load":
        engine.fail_if("load")
    ready = Ready(
        task="generate",
        architecture="Fake",
        tokenizer=TokenizerFiles("{}"),
        vocab_size=VOCAB_SIZE,
        max_model_len=4096,
        device="cpu",
        dtype="float32",
        executor="generic",
        attention="none",
        num_parameters=1,
        weight_bytes=4,
    )
    return engine, ready


if __name__ == "__main__":
    process.main(build)
