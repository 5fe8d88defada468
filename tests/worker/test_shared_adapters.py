"""Adapters in the worker of their base: what PEFT computes, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.config import ModelConfig
from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.engine import DecoderEngine
from server.native import kernels
from server.protocol import Failed, Generate, LoadAdapter, Ready, SamplingParams
from server.worker.__main__ import build
from tests.engine.driving import run
from tests.tiny_adapters import KINDS, peft_model, peft_tokens, write_tiny_adapters
from tests.tiny_models import write_tiny_decoder

torch.set_num_threads(1)

IDS = [5, 77, 130, 6, 240, 31, 9, 12, 300, 41, 8]
TOLERANCE = 1e-4
"""Largest difference of logits, as a part of their range."""


def built(base: Path, adapters: Sequence[Path], **settings: Any) -> tuple[DecoderEngine, Ready]:
    options = {"kv_cache_gib": 0.01, "dtype": "float32", "threads": 1, **settings}
    models = [
        LoadAdapter(folder.name, ModelConfig(name=folder.name, path=str(folder), **options)) for folder in adapters
    ]
    engine, ready = build(ModelConfig(name="base", path=str(base), **options), adapters=models)
    assert isinstance(engine, DecoderEngine)
    return engine, ready


@torch.inference_mode()
def logits(engine: DecoderEngine, digest: str, ids: Sequence[int] = IDS) -> Tensor:
    """Of all tokens, the prompt in two parts and the last token alone."""
    context = Context(adapter=engine._adapters.get(digest) if digest else None)
    parts, done = [], 0
    for stop in (4, len(ids) - 1, len(ids)):
        row = Row(key=0, token_ids=ids[done:stop], num_computed=done, block_table=range(2), num_logits=stop - done,
                  context=context)  # fmt: skip
        parts.append(engine._runner.forward([row]))
        done = stop
    engine._runner.release(0)
    return torch.cat(parts)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    spread = float(theirs.max() - theirs.min())
    assert float((ours - theirs).abs().max()) <= TOLERANCE * spread


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By family: the base, and its adapters by kind."""
    root, made = tmp_path_factory.mktemp("adapters"), {}

    def of(family: str) -> tuple[Path, dict[str, Path]]:
        if family not in made:
            base = write_tiny_decoder(root / family, family)
            kinds = {kind: kind for kind in KINDS}
            made[family] = (base, write_tiny_adapters(root / f"adapters of {family}", base, kinds, family))
        return made[family]

    return of


@pytest.mark.parametrize("kernels_name", ["native", "torch"])
@pytest.mark.parametrize("executor", ["fused", "generic", "compat"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_logits_equal_those_of_peft(folders: Any, family: str, executor: str, kernels_name: str) -> None:
    if kernels_name == "native" and kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    base, adapters = folders(family)
    engine, ready = built(base, list(adapters.values()), executor=executor, kernels=kernels_name)
    facts = dict(zip(adapters, ready.adapters, strict=True))
    assert ready.executor == executor
    without = logits(engine, "")
    for kind, fact in facts.items():
        if kind == "trained biases" and family in ("gpt2", "gpt_neox"):
            # Those of norms are trained too.
            assert "no change of a linear layer" in str(fact.problem)
            continue
        assert fact.problem is None, (kind, fact.problem)
        with torch.inference_mode():
            theirs = peft_model(base, adapters[kind])(input_ids=torch.tensor([IDS])).logits[0]
        ours = logits(engine, fact.digest)
        assert_close(ours, theirs)
        assert float((theirs - without).abs().max()) > 0.01 * float(theirs.max() - theirs.min()), "it changes nothing"


MIX = ("", "lora", "dora", "", "ia3", "lora", "patterns", "head")
"""Kinds of neighbouring rows; "" for none."""


def test_a_row_is_bitwise_the_same_alone_and_among_rows_of_other_adapters(folders: Any) -> None:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    for settings in ({}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": "int8"}):
        base, adapters = folders("qwen3")
        engine, ready = built(base, list(adapters.values()), **settings)
        assert ready.executor == "fused"
        digests = {"": "", **{kind: fact.digest for kind, fact in zip(adapters, ready.adapters, strict=True)}}
        rows = [
            Row(
                key=i,
                token_ids=IDS[i : i + (1 if i % 3 == 0 else 4)],
                num_computed=0,
                block_table=[i],
                num_logits=min(1 + i % 2, 2) if i % 3 else 1,
                context=Context(adapter=engine._adapters.get(digests[kind]) if kind else None),
            )
            for i, kind in enumerate(MIX)
        ]
        with torch.inference_mode():
            together = engine._runner.forward(rows)
            alone = torch.cat([engine._runner.forward([row]) for row in rows])
        assert torch.equal(together, alone), settings


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_greedy_requests_of_several_adapters_get_the_tokens_of_peft(folders: Any, family: str) -> None:
    kernels.use("auto", 1)
    base, adapters = folders(family)
    engine, ready = built(base, list(adapters.values()))
    digests = {kind: fact.digest for kind, fact in zip(adapters, ready.adapters, strict=True) if not fact.problem}
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    # Equal prompts: what the cache holds of one adapter's serves no other.
    prompt = IDS * 7
    commands = [Generate(f"{kind} {i}", prompt, params, adapter=digests[kind]) for i in range(2) for kind in digests]
    outcomes = run(engine, [*commands, Generate("none", prompt, params)])
    expected = {kind: peft_tokens(peft_model(base, adapters[kind]), prompt, 12) for kind in digests}
    assert len({tuple(tokens) for tokens in expected.values()}) > len(expected) // 2
    for command in commands:
        kind = command.request_id.rpartition(" ")[0]
        assert outcomes[command.request_id].token_ids == expected[kind], kind
    again = run(engine, commands)
    assert {name: outcome.token_ids for name, outcome in again.items()} == {
        command.request_id: outcomes[command.request_id].token_ids for command in commands
    }
    engine.check()


def test_rejects_an_adapter_that_is_not_loaded(folders: Any) -> None:
    base, _ = folders("qwen3")
    engine, _ = built(base, [])
    engine.add(Generate("r", IDS, SamplingParams(max_new_tokens=1), adapter="unknown"))
    failed = engine.step()[0]
    assert isinstance(failed, Failed)
    assert "is not loaded" in failed.message
