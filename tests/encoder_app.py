"""The web application over encoder engines in this process: everything real but the process boundary."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from starlette.testclient import TestClient
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from server.api.app import build_app
from server.config import ModelConfig, ServeConfig
from server.encoder.build import Wishes, build_forward
from server.encoder.engine import EncoderEngine
from server.errors import FAILURES
from server.protocol import Encode, Failed, Ready, Scores
from server.token_budget import TokenBudget
from tests.tiny_encoders import FAMILIES, MAX_MODEL_LEN, tiny_encoder, tiny_tokenizer, tokenizer_files

# Tiny models: a second thread only waits for the first.
torch.set_num_threads(1)

AS_LOADED = Wishes()


def engine_of(
    module: PreTrainedModel,
    task: str,
    *,
    wishes: Wishes = AS_LOADED,
    token_budget: TokenBudget | None = None,
    **limits: int,
) -> EncoderEngine:
    """An engine over a copy: building one changes the module."""
    limits = {"max_batch_tokens": 512, "max_model_len": MAX_MODEL_LEN, **limits}
    forward = build_forward(
        copy.deepcopy(module),
        pad_token_id=module.config.pad_token_id,
        max_model_len=limits["max_model_len"],
        wishes=wishes,
        pack=lambda module: None,
    )
    return EncoderEngine(forward, task=task, token_budget=token_budget, **limits)


class EngineWorker:
    """A `WorkerClient` whose engine steps in the event loop, between the handlers."""

    def __init__(self, name: str, task: str, module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = ModelConfig(name=name, path="nowhere")
        self.state = "ready"
        self.num_running = 0
        self.token_budget: int | None = None
        self.engine = engine_of(module, task)
        forward = self.engine._forward
        self.ready = msgspec.structs.replace(ready_of(task, module, tokenizer), batching=forward.batching)
        self.batch_sizes: list[int] = []
        self.aborted: list[str] = []
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[Scores]] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def encode(self, command: Encode, on_start: Callable[[], None]) -> Scores:
        wire_id = str(next(self._ids))
        future = self._waiting[wire_id] = asyncio.get_running_loop().create_future()
        self.engine.add(msgspec.structs.replace(command, request_id=wire_id))
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.ensure_future(self._step_while_needed())
        try:
            scores = await future
            on_start()
            return scores
        finally:
            del self._waiting[wire_id]
            if future.cancelled():
                self.aborted.append(wire_id)
                self.engine.abort(wire_id)

    async def _step_while_needed(self) -> None:
        while self.engine.has_work:
            await asyncio.sleep(0)
            *replies, stats = self.engine.step()
            self.batch_sizes.append(stats.batch_size)
            for reply in replies:
                future = self._waiting[reply.request_id]
                if isinstance(reply, Failed):
                    future.set_exception(FAILURES[reply.code](reply.message))
                else:
                    future.set_result(reply)


def ready_of(task: str, module: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Ready:
    """What a worker says of such a model."""
    config = module.config
    return Ready(
        task=task,
        architecture=type(module).__name__,
        tokenizer=tokenizer_files(tokenizer),
        vocab_size=config.vocab_size,
        max_model_len=MAX_MODEL_LEN,
        device="cpu",
        dtype="float32",
        executor="encoder",
        attention="sdpa",
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        weight_bytes=0,
        labels=[config.id2label[i] for i in range(config.num_labels)] if task in ("classify", "ner") else [],
        problem_type=config.problem_type if task in ("classify", "ner") else None,
    )


@dataclass
class LoadedSupervisor:
    """All workers are up."""

    clients: dict[str, Any] = field(default_factory=dict)

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return True


def tiny_worker(name: str, family: str, task: str, **options: Any) -> EngineWorker:
    return EngineWorker(name, task, tiny_encoder(family, task, **options), tiny_tokenizer(FAMILIES[family][0]))


def client_of(*workers: EngineWorker, **settings: Any) -> TestClient:
    """A client of an application that serves these models."""
    config = ServeConfig(models=tuple(worker.model for worker in workers), **settings)
    app = build_app(config, LoadedSupervisor({worker.model.name: worker for worker in workers}))  # type: ignore[arg-type]
    app.front.registry.load()
    app.front.lifecycle.is_loaded = True
    return TestClient(app)
