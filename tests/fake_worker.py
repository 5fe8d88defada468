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
from server.protocol import (
    AdapterState,
    Encode,
    Failed,
    FinishReason,
    Generate,
    LoadAdapter,
    Ping,
    Ready,
    Reply,
    SamplingParams,
    Scores,
    SharedAdapter,
    Stats,
    TokenizerFiles,
    Tokens,
    UnloadAdapter,
)
from server.worker import process

POISON = 666
"""A prompt that begins with it, and with a number n after it, kills the worker whenever its token n is computed."""
FAILS = 667
"""A prompt that begins with it is answered Failed."""
STRAYS = 668
"""A prompt that begins with it has other tokens in each worker's life."""
CRASHES = "crash"
"""A file in an adapter's folder with which reading it kills the worker."""
COMMIT = 3
"""Beams send their tokens so many at a time."""
VOCAB_SIZE = 50_000
PREFILL_CHUNK = 8


def next_token(token_ids: Sequence[int], seed: int, adapter: str = "") -> int:
    data = struct.pack(f"<{len(token_ids) + 1}q", seed, *token_ids) + adapter.encode()
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def expected_tokens(command: Generate, index: int = 0) -> list[int]:
    """What a worker that nobody disturbs answers as output ``index``."""
    ids = list(command.prompt_ids)
    for _ in range(command.params.max_new_tokens - index):
        ids.append(next_token(ids, command.params.seed + index, command.adapter))
    return ids[len(command.prompt_ids) :]


def scores_of(token_ids: Sequence[int]) -> bytes:
    return struct.pack("<2f", float(sum(token_ids)), float(len(token_ids)))


@dataclass
class Running:
    """Output ``index`` ends ``index`` tokens before the first one."""

    command: Generate | Encode
    outputs: list[list[int]] = field(default_factory=list)
    num_sent: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    started: bool = False

    @property
    def params(self) -> SamplingParams:
        assert isinstance(self.command, Generate)
        return self.command.params

    def is_done(self, index: int) -> bool:
        return len(self.outputs[index]) >= self.params.max_new_tokens - index

    @property
    def num_computed(self) -> int:
        """Of the outputs that run, the fewest tokens."""
        return min(len(ids) for i, ids in enumerate(self.outputs) if not self.is_done(i))


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
        self.adapters: dict[str, LoadAdapter] = {}
        self.resident: set[str] = set()
        self.unread: list[str] = []
        self.is_announced = False

    @property
    def has_work(self) -> bool:
        return bool(self.requests or self.replies or self.unread)

    def change_adapters(self, command: LoadAdapter | UnloadAdapter) -> None:
        if isinstance(command, UnloadAdapter):
            del self.adapters[command.digest]
            return
        self.adapters[command.digest] = command
        if not command.is_known:
            self.unread.append(command.digest)

    def read_adapter(self) -> AdapterState:
        """One is announced in one step and read in the next one."""
        digest = self.unread[0]
        if not self.is_announced:
            self.is_announced = True
            return AdapterState(digest, "loading")
        model = self.adapters[self.unread.pop(0)].model
        self.is_announced = False
        if (Path(model.path) / CRASHES).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        self.resident.add(digest)
        facts = SharedAdapter(name=model.name, digest=digest, num_bytes=8, task="generate", max_model_len=4096)
        return AdapterState(digest, "resident", facts)

    def add(self, command: Generate | Encode) -> None:
        self.fail_if("queued")
        if isinstance(command, Generate) and command.prompt_ids[0] == FAILS:
            self.replies.append(Failed(command.request_id, "numerical_error", "The output is not finite."))
            return
        if isinstance(command, Encode):
            self.requests[command.request_id] = Running(command)
            return
        if command.adapter and command.adapter not in self.resident and command.adapter not in self.unread:
            assert command.adapter in self.adapters
            self.unread.append(command.adapter)
        assert command.params.num_beams == 1 or not command.outputs, "a beam search begins anew"
        outputs = [list(o.token_ids) for o in command.outputs] or [
            [] for _ in range(command.params.num_return_sequences)
        ]
        request = Running(command, outputs, [len(ids) for ids in outputs])
        done = [request.is_done(i) for i in range(len(outputs))]
        self.replies += [
            Tokens(command.request_id, [], "length", index=i)
            for i in range(len(outputs))
            if done[i] and not (command.outputs and command.outputs[i].is_finished)
        ]
        if not all(done):
            self.requests[command.request_id] = request

    def abort(self, request_id: str, index: int | None = None) -> None:
        if index is not None:
            return
        self.requests.pop(request_id, None)

    def step(self) -> list[Reply]:
        time.sleep(self.step_s)
        if self.finished_in_last_step:
            self.fail_if("finished")
        self.finished_in_last_step = False
        replies, self.replies = self.replies, []
        batch = [request for request in self.requests.values() if self.has_adapter(request)][: self.max_running]
        if self.unread:
            replies.append(self.read_adapter())
        started = [request.command.request_id for request in batch if not request.started]
        for request in batch:
            replies += self.advance(request)
        num_running = len(self.requests)
        return [*replies, Stats(num_running=num_running, batch_size=len(batch), started=started)]

    def has_adapter(self, request: Running) -> bool:
        adapter = request.command.adapter if isinstance(request.command, Generate) else ""
        return not adapter or adapter in self.resident

    def advance(self, request: Running) -> list[Reply]:
        request.started = True
        command = request.command
        if isinstance(command, Encode):
            self.fail_if("decode")
            del self.requests[command.request_id]
            return [Scores(command.request_id, (2,), scores_of(command.token_ids))]
        num_tokens = len(command.prompt_ids) + request.num_computed
        if request.num_prefilled + PREFILL_CHUNK < num_tokens and not request.num_prefilled < 0:
            self.fail_if("prefill")
            request.num_prefilled += PREFILL_CHUNK
            return []
        request.num_prefilled = -1
        return self.decode(request, command)

    def decode(self, request: Running, command: Generate) -> list[Reply]:
        """One more token of every output that runs."""
        num_computed = request.num_computed
        if num_computed == 3:
            self.fail_if("decode")
        if command.prompt_ids[0] == POISON and num_computed >= command.prompt_ids[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        running = [i for i in range(len(request.outputs)) if not request.is_done(i)]
        for i in running:
            request.outputs[i].append(self.token(command, request.outputs[i], i))
        if all(request.is_done(i) for i in range(len(request.outputs))):
            self.fail_if("finish")
            self.finished_in_last_step = True
            del self.requests[command.request_id]
        return [reply for i in running if (reply := self.reply(request, i)) is not None]

    def token(self, command: Generate, output_ids: list[int], index: int) -> int:
        strays = command.prompt_ids[0] == STRAYS and len(output_ids) > 1
        return next_token(command.prompt_ids + output_ids, command.params.seed + index + strays * os.getpid(),
                          command.adapter)  # fmt: skip

    def reply(self, request: Running, index: int) -> Tokens | None:
        """What may be sent of an output: of a sample all, of a beam search three tokens at a time and the rest."""
        token_ids, finished = request.outputs[index], request.is_done(index)
        num_sent = request.num_sent[index]
        if request.params.num_beams > 1 and not finished and len(token_ids) - num_sent < COMMIT:
            return None
        request.num_sent[index] = len(token_ids)
        finish_reason: FinishReason | None = "length" if finished else None
        return Tokens(request.command.request_id, token_ids[num_sent:], finish_reason, index=index)

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


def build(
    model: ModelConfig, num_loading: int, num_on_gpu: int, adapters: Sequence[LoadAdapter]
) -> tuple[FakeEngine, Ready]:
    folder = Path(model.path)
    if not folder.is_dir():
        raise ConfigurationError(f"Model {model.name}: {folder} is no folder.\nGive one.", exit_code=EXIT_MODEL)
    engine = FakeEngine(folder, model.max_running)
    for adapter in adapters:
        engine.change_adapters(adapter)
    (folder / f"pid-{os.getpid()}").touch()
    (folder / "num-loading").write_text(str(num_loading))
    (folder / "num-on-gpu").write_text(str(num_on_gpu))
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
