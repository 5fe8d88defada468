"""Adapters in one batch, with every way of decoding: each request gets what PEFT and transformers give for it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.engine.engine import DecoderEngine
from server.modules.adapted import Table
from server.native import kernels
from server.protocol import Generate, Output, Ready, SamplingParams
from tests.engine.driving import run
from tests.engine.grammar_driving import lark
from tests.parity import oracle
from tests.tiny_adapters import peft_model, write_tiny_adapter
from tests.tiny_models import write_tiny_decoder
from tests.worker.test_shared_adapters import IDS, built, logits

torch.set_num_threads(1)

FAMILY = "qwen3"
ADAPTERS = ("lora", "dora", "ia3", "saved head", "embedding")
NONE = ""

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 1.3, "seed": 7},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "guidance": {"guidance_scale": 1.6},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


def params_of(way: str) -> SamplingParams:
    return SamplingParams(max_new_tokens=10, **{"seed": 3, **WAYS[way]})


def commands_of(digests: dict[str, str], way: str) -> list[Generate]:
    """One for each adapter and one for the base. Their prompt repeats itself, so that next tokens are guessed."""
    negative = [9, 44, 5] if way == "guidance" else []
    return [
        Generate(f"{way} {kind}", IDS * 4, params_of(way), adapter=digest, negative_prompt_ids=negative)
        for kind, digest in digests.items()
    ]


class Served:
    """An engine with one adapter of each kind."""

    def __init__(self, root: Path) -> None:
        self.base = write_tiny_decoder(root / "base", FAMILY)
        self.folders = {
            kind: write_tiny_adapter(root / kind, self.base, kind, FAMILY, seed) for seed, kind in enumerate(ADAPTERS)
        }
        self.engine, self.digests = self.opened()

    def opened(self, **settings: Any) -> tuple[DecoderEngine, dict[str, str]]:
        engine, ready = built(self.base, list(self.folders.values()), **settings)
        return engine, digests_of(ready)

    def oracle(self, kind: str) -> PreTrainedModel:
        if kind == NONE:
            return peft_model(self.base, self.base)
        return peft_model(self.base, self.folders[kind]).get_base_model().eval()


def digests_of(ready: Ready) -> dict[str, str]:
    assert [fact.problem for fact in ready.adapters] == [None] * len(ADAPTERS)
    return {NONE: "", **{kind: fact.digest for kind, fact in zip(ADAPTERS, ready.adapters, strict=True)}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    kernels.use("auto", 1)
    return Served(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def together(served: Served) -> dict[str, list[list[int]]]:
    """Tokens of the outputs of each request, all of which ran at once."""
    commands = [command for way in WAYS for command in commands_of(served.digests, way)]
    outcomes = run(served.engine, commands)
    served.engine.check()
    return {command.request_id: tokens(outcomes, command) for command in commands}


def tokens(outcomes: dict[str, Any], command: Generate) -> list[list[int]]:
    count = command.params.num_return_sequences
    names = [f"{command.request_id}#{i}" if i else command.request_id for i in range(count)]
    return [outcomes[name].token_ids for name in names]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [NONE, *ADAPTERS])
def test_gives_the_tokens_of_peft(served: Served, together: dict[str, list[list[int]]], kind: str, way: str) -> None:
    (command,) = (each for each in commands_of(served.digests, way) if each.adapter == served.digests[kind])
    module, ours = served.oracle(kind), [oracle.Sample(ids) for ids in together[command.request_id]]

    def same(got: list[oracle.Sample], wanted: list[oracle.Sample]) -> bool:
        return [each.token_ids for each in got] == [each.token_ids for each in wanted]

    assert same(ours, oracle.expected(module, command)) or oracle.is_tie(module, command, ours, same)


def test_adapters_change_what_is_generated(together: dict[str, list[list[int]]]) -> None:
    for way in WAYS:
        found = [tuple(map(tuple, together[f"{way} {kind}"])) for kind in (NONE, *ADAPTERS)]
        assert len(set(found)) == len(found), way


def test_gives_the_tokens_of_a_lone_run(served: Served, together: dict[str, list[list[int]]]) -> None:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    engine, _ = served.opened(prefix_cache=False, prompt_lookup="off")
    for way in WAYS:
        for command in commands_of(served.digests, way):
            assert tokens(run(engine, [command]), command) == together[command.request_id], command.request_id


def test_goes_on_from_tokens_that_another_worker_gave(served: Served, together: dict[str, list[list[int]]]) -> None:
    engine, _ = served.opened()
    for way in ("greedy", "samples", "guidance"):
        resumed = [
            msgspec.structs.replace(
                command, outputs=[Output(ids[:4], is_finished=False) for ids in together[command.request_id]]
            )
            for command in commands_of(served.digests, way)
        ]
        outcomes = run(engine, resumed)
        for command in resumed:
            whole = together[command.request_id]
            assert tokens(outcomes, command) == [ids[4:] for ids in whole], command.request_id


def test_a_grammar_holds_for_rows_with_adapters(served: Served) -> None:
    params = SamplingParams(max_new_tokens=40, grammar=lark("start: /[ab ]{6}/"), end_token_ids=(2,))
    commands = [Generate(f"grammar {kind}", IDS, params, adapter=digest) for kind, digest in served.digests.items()]
    outcomes = run(served.engine, commands)
    for command in commands:
        assert outcomes[command.request_id].finish_reason == "stop"
        alone = run(served.engine, [command])
        assert outcomes[command.request_id].token_ids == alone[command.request_id].token_ids


def as_held(base: Path, engine: DecoderEngine) -> PreTrainedModel:
    """The base in float32, with the weights of its products as the engine holds them."""
    module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, part in engine._runner.parts.items():
        if isinstance(part, Table):
            continue
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(part.own(part.product.dense_weight()).float().clone())
    return module


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": "int8"}])
@pytest.mark.parametrize("kind", ADAPTERS)
@torch.inference_mode()
def test_logits_on_a_rounded_base_are_those_of_peft_on_the_same_base(
    served: Served, settings: dict[str, Any], kind: str
) -> None:
    """What rounding changes of the logits is a small part of what the adapter changes."""
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    from peft import PeftModel

    engine, digests = served.opened(**settings)
    base = as_held(served.base, engine)
    ids = torch.tensor([IDS])
    without: Tensor = base(input_ids=ids).logits[0]
    theirs: Tensor = PeftModel.from_pretrained(base, str(served.folders[kind])).eval()(input_ids=ids).logits[0]
    ours = logits(engine, digests[kind])
    error, effect = (ours - theirs).abs(), (theirs - without).abs()
    assert float(error.mean()) < 0.2 * float(effect.mean())
    best, second = theirs.topk(2).values.unbind(-1)
    is_clear = best - second > 2 * error.max()
    assert torch.equal(ours.argmax(-1)[is_clear], theirs.argmax(-1)[is_clear])
