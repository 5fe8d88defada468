"""What a trial at load, or another sequence's forward pass, leaves in a module changes no sequence."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from tests.engine.driving import generate, run
from tests.tiny_models import lengthwise_decoder, tiny_decoder

torch.set_num_threads(1)

CONFIG = ModelConfig(name="tiny", path="unused", kv_cache_gib=0.02)


def forgetful(family: str, effect: float) -> Any:
    """A decoder that changes an attribute, its config and a buffer in each call; its logits follow the changes."""
    module = tiny_decoder(family)
    module.base_model.num_calls = 0
    module.base_model.register_buffer("gain", torch.ones(1), persistent=False)
    right = type(module).forward

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        output = right(self, *args, **options)
        output.logits = (
            output.logits * self.base_model.gain + effect * self.base_model.num_calls + effect * self.config.seen
        )
        self.base_model.num_calls += 1
        self.config.seen = 1
        self.base_model.gain.mul_(1.0 - effect)
        return output

    forward.__signature__ = inspect.signature(right)  # type: ignore[attr-defined]
    module.config.seen = 0
    module.__class__ = type("Forgetful", (type(module),), {"forward": forward})
    return module


def greedy(runner: ModelRunner) -> list[int]:
    engine = DecoderEngine(runner, max_model_len=64, max_batch_tokens=64, max_running=4, prefix_cache=False)
    commands = [generate(str(i), [5 + i, 9, 17], max_new_tokens=6) for i in range(3)]
    outcomes = run(engine, commands)
    return [token for command in commands for token in outcomes[command.request_id].token_ids]


@pytest.mark.parametrize("effect", [0.0, 0.5])
@pytest.mark.parametrize(("family", "executor"), [("bloom", "compat"), ("llama", "fused")])
def test_a_module_that_changes_itself_is_served_as_it_was_loaded(family: str, executor: str, effect: float) -> None:
    module = forgetful(family, effect)
    runner = build_runner(module, CONFIG, 64)
    assert runner.name == executor
    body = module.base_model
    assert (body.num_calls, module.config.seen, float(body.gain)) == (0, 0, 1.0)
    assert greedy(runner) == greedy(build_runner(tiny_decoder(family), CONFIG, 64))


def test_rotary_parts_keep_the_factors_that_they_were_loaded_with() -> None:
    module = lengthwise_decoder("dynamic")
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    build_runner(module, CONFIG, 192)
    assert module.model.rotary_emb.max_seq_len_cached == 64
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_a_module_that_changes_itself_cannot_be_forced_into_the_generic_executor() -> None:
    config = ModelConfig(name="tiny", path="unused", kv_cache_gib=0.02, executor="generic")
    with pytest.raises(ConfigurationError, match="its forward pass changes"):
        build_runner(forgetful("llama", 0.0), config, 64)
