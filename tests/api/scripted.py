"""The whole front over a worker whose replies a test writes down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from server.api.app import build_app
from server.config import ModelConfig, ServeConfig
from server.protocol import Generate, Ready, Tokens
from server.text.tokenizer import Tokenizer
from tests.tiny_tokenizers import EOS, tokenizer_files

MODEL = ModelConfig(name="tiny", path="nowhere")
TOKENIZER = Tokenizer(tokenizer_files("byte_level"))
END_ID = TOKENIZER.backend.token_to_id(EOS)
MILL = TOKENIZER.encode("mill").ids[0]
VOCAB_SIZE = TOKENIZER.backend.get_vocab_size()
MAX_MODEL_LEN = 128

Step = Tokens | list[Tokens] | Exception | float
"""A reply, several that come together, a failure, or a pause in seconds."""
Script = Callable[[Generate], Iterator[Step]]


def ready(**changes: Any) -> Ready:
    fields: dict[str, Any] = {
        "task": "generate",
        "architecture": "LlamaForCausalLM",
        "tokenizer": tokenizer_files("byte_level"),
        "vocab_size": VOCAB_SIZE,
        "max_model_len": MAX_MODEL_LEN,
        "device": "cpu",
        "dtype": "float32",
        "executor": "generic",
        "attention": "torch",
        "num_parameters": 1,
        "weight_bytes": 4,
        "max_running": 64,
        "generation_config": {"end_token_ids": [END_ID]},
    }
    return Ready(**{**fields, **changes})


class ScriptedWorker:
    """Stands for a `WorkerClient`; knows which requests hold blocks."""

    def __init__(self, script: Script, ready: Ready) -> None:
        self.model = MODEL
        self.ready = ready
        self.state = "ready"
        self.token_budget: int | None = None
        self.script = script
        self.commands: list[Generate] = []
        self.running: set[str] = set()

    @property
    def num_running(self) -> int:
        return len(self.running)

    async def stream(
        self,
        command: Generate,
        on_start: Callable[[], None],
        unwanted: Callable[[], Iterable[int]],
    ) -> AsyncGenerator[list[Tokens], None]:
        assert command.request_id not in self.running
        self.commands.append(command)
        self.running.add(command.request_id)
        try:
            for step in self.script(command):
                on_start()
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step if isinstance(step, list) else [step]
        finally:
            self.running.discard(command.request_id)


def says(text: str, *, pause_s: float = 0.0) -> Script:
    """A model that says ``text`` and its end token, one token a reply, within the limits it was given."""

    def script(command: Generate) -> Iterator[Step]:
        ids = [*TOKENIZER.encode(text).ids, END_ID]
        limit = command.params.max_new_tokens
        for i, token_id in enumerate(ids[:limit], start=1):
            ends = token_id == END_ID or token_id in command.params.stop_token_ids
            finish = "stop" if ends else "length" if i == limit else None
            logprobs = [-0.5 * i] if command.params.logprobs else None
            yield Tokens(command.request_id, [token_id], finish, logprobs, 3 if i == 1 else None)
            if finish is not None:
                return
            yield pause_s

    return script


def one_token_then(step: Step) -> Script:
    """A token, then what ``step`` says, then the end, if it comes to that."""

    def script(command: Generate) -> Iterator[Step]:
        yield Tokens(command.request_id, [MILL])
        yield step
        yield Tokens(command.request_id, [END_ID], "stop")

    return script


def talks_for_ever(command: Generate) -> Iterator[Step]:
    """One token every ten milliseconds, until it is stopped."""
    ids = TOKENIZER.encode(" the mill").ids
    while True:
        for token_id in ids:
            yield Tokens(command.request_id, [token_id])
            yield 0.01


def silent(command: Generate) -> Iterator[Step]:
    """A request that waits in the queue, or whose prompt takes long."""
    while True:
        yield 0.01


@dataclass
class FakeSupervisor:
    config: ServeConfig
    clients: dict[str, Any]

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return True


def front(
    script: Script,
    *,
    generation_config: dict[str, Any] | None = None,
    vocab_size: int = VOCAB_SIZE,
    **settings: Any,
) -> FastAPI:
    """The application, ready; its worker is at ``app.state.worker``."""
    changes = {} if generation_config is None else {"generation_config": generation_config}
    worker = ScriptedWorker(script, ready(vocab_size=vocab_size, **changes))
    config = ServeConfig(models=(MODEL,), **settings)
    app = build_app(config, FakeSupervisor(config, {MODEL.name: worker}))  # type: ignore[arg-type]
    app.front.registry.load()
    app.front.lifecycle.is_loaded = True
    app.state.worker = worker
    return app


def happens(condition: Callable[[], bool]) -> bool:
    """Whether something comes true on another thread's event loop, before a stream's next sign of life is due."""
    end_s = time.monotonic() + 10.0
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.005)
    return condition()
