"""The product's engine in this process, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from gpu import models
from gpu.setting import Setting
from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.model_runner import ModelRunner
from server.models.packed_linear import pack_linears
from server.protocol import Generate, Output, SamplingParams, Tokens

MAX_RUNNING = 256


class Engine:
    """A `DecoderEngine` and the requests that are in it."""

    def __init__(self, runner: ModelRunner, max_model_len: int, max_batch_tokens: int) -> None:
        self.runner = runner
        self._engine = DecoderEngine(
            runner,
            max_model_len=max_model_len,
            max_batch_tokens=max_batch_tokens,
            max_running=MAX_RUNNING,
            prefix_cache=False,
        )
        self._running: dict[str, int] = {}
        self._num_added = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, prompt_ids: list[int], num_new: int, **params: Any) -> None:
        name = f"r{self._num_added}"
        self._num_added += 1
        self._running[name] = num_new
        asked = SamplingParams(max_new_tokens=num_new, ignore_eos=True, **params)
        self._engine.add(Generate(name, prompt_ids, asked, list[Output]()))

    def step(self) -> int:
        """New tokens."""
        count = 0
        for reply in self._engine.step():
            if isinstance(reply, Tokens):
                count += len(reply.token_ids)
                if reply.finish_reason is not None:
                    self._running.pop(reply.request_id, None)
        return count

    def drop_all(self) -> None:
        for name in list(self._running):
            self._engine.abort(name)
        self._running.clear()
        self._engine.step()


def engine_of(
    setting: Setting, device: torch.device, config: PreTrainedConfig | None = None, max_model_len: int = 4096
) -> Engine:
    """Over ``config``'s shape, or the small one's."""
    module = models.made(config or models.small(setting), device)
    max_model_len = setting.pick(max_model_len, 512)
    settings = ModelConfig(
        name="check", path="unused", device=setting.device, max_running=MAX_RUNNING,
        kv_cache_gib=setting.pick(24.0, 0.2),
    )  # fmt: skip
    runner = build_runner(module, settings, max_model_len, pack=pack_linears)
    return Engine(runner, max_model_len, setting.pick(8192, 512))


def step_until(engine: Engine, params: Sequence[dict[str, Any]], prompt_tokens: int, new_tokens: int) -> None:
    """Add a request for each of ``params`` and step until all of them decode."""
    prompts = torch.randint(3, engine.runner.vocab_size, (len(params), prompt_tokens)).tolist()
    for prompt, each in zip(prompts, params, strict=True):
        engine.add(prompt, new_tokens, **each)
    for _ in range(2 + len(params) * prompt_tokens // 512):
        engine.step()
