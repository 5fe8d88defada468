"""Prompt, P-, multitask prompt and prefix tuning in the worker of their base: what PEFT computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.commands.planned import PlannedModel, plan_or_problem
from server.config import ModelConfig
from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.engine import DecoderEngine
from server.engine.preamble import Preamble
from server.native import kernels
from server.protocol import Generate, Output, SamplingParams, Stats
from tests.engine.driving import run, run_preempted
from tests.tiny_adapters import VIRTUAL, peft_model, peft_tokens, task_of, write_tiny_adapter, write_tiny_adapters
from tests.tiny_models import FAMILIES, write_tiny_decoder
from tests.worker.test_shared_adapters import IDS, assert_close, built

torch.set_num_threads(1)

BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 32
"""Of Qwen3: layers, keys and values, heads, their width, float32, tokens of a block."""

Folders = Callable[[str], tuple[Path, dict[str, Path]]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """By family: the base, and its adapters by kind."""
    root, made = tmp_path_factory.mktemp("virtual"), {}

    def of(family: str) -> tuple[Path, dict[str, Path]]:
        if family not in made:
            base = write_tiny_decoder(root / family, family)
            kinds = {kind: kind for kind in VIRTUAL}
            made[family] = (base, write_tiny_adapters(root / f"adapters of {family}", base, kinds, family))
        return made[family]

    return of


def engine_of(folders: Folders, family: str, **settings: Any) -> tuple[DecoderEngine, dict[str, str]]:
    """The engine, and the adapters' digests by kind."""
    base, adapters = folders(family)
    engine, ready = built(base, list(adapters.values()), **settings)
    assert [fact.problem for fact in ready.adapters] == [None] * len(adapters)
    return engine, {kind: fact.digest for kind, fact in zip(adapters, ready.adapters, strict=True)}


@torch.inference_mode()
def logits(engine: DecoderEngine, digest: str, cuts: Sequence[int]) -> Tensor:
    """Of the prompt's tokens. The virtual ones and the prompt are computed in parts that end at ``cuts``."""
    preamble = engine._adapters.get(digest)
    assert isinstance(preamble, Preamble)
    ids = [*preamble.ids.tolist(), *IDS]
    parts, done = [], 0
    for stop in sorted({min(cut, len(ids)) for cut in (*cuts, len(ids))}):
        row = Row(key=0, token_ids=ids[done:stop], num_computed=done, block_table=range(2), num_logits=stop - done,
                  context=Context(preamble=preamble))  # fmt: skip
        parts.append(engine._runner.forward([row]))
        done = stop
    engine._runner.release(0)
    return torch.cat(parts)[preamble.num_tokens :]


@pytest.mark.parametrize("kernels_name", ["native", "torch"])
@pytest.mark.parametrize("executor", ["fused", "generic", "compat"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_logits_equal_those_of_peft(folders: Folders, family: str, executor: str, kernels_name: str) -> None:
    if kernels_name == "native" and kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    base, adapters = folders(family)
    engine, digests = engine_of(folders, family, executor=executor, kernels=kernels_name)
    without = peft_logits(base, base)
    for kind, digest in digests.items():
        theirs = peft_logits(base, adapters[kind], **task_of(kind))
        for cuts in ((), (2, 3, 8, 41)):
            assert_close(logits(engine, digest, cuts), theirs)
        assert float((theirs - without).abs().max()) > 0.01 * float(theirs.max() - theirs.min()), "it changes nothing"


@torch.inference_mode()
def peft_logits(base: Path, adapter: Path, **options: Any) -> Tensor:
    """Of the prompt's own tokens."""
    logits_TV: Tensor = peft_model(base, adapter)(input_ids=torch.tensor([IDS]), **options).logits[0, -len(IDS) :]
    return logits_TV


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "granite", "opt"])
def test_embeddings_are_scaled_and_placed_as_transformers_does(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "granite", {**FAMILIES["llama"], "embedding_multiplier": 3.0})
    base = write_tiny_decoder(tmp_path / "base", family)
    adapter = write_tiny_adapter(tmp_path / "prompt", base, "prompt", family)
    engine, ready = built(base, [adapter])
    assert ready.executor == "fused"
    assert_close(logits(engine, ready.adapters[0].digest, ()), peft_logits(base, adapter))


def test_a_row_is_bitwise_the_same_alone_and_among_other_rows(folders: Folders) -> None:
    if kernels.use("auto", 1) == "torch":
        pytest.skip("no kernels for this processor")
    for settings in ({}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": "int8"}):
        engine, digests = engine_of(folders, "qwen3", **settings)
        rows = []
        for i, digest in enumerate(["", *digests.values(), ""]):
            preamble = engine._adapters.get(digest) if digest else None
            assert preamble is None or isinstance(preamble, Preamble)
            virtual_ids = [] if preamble is None else preamble.ids.tolist()
            rows.append(
                Row(
                    key=i,
                    token_ids=[*virtual_ids, *IDS[: 3 + i]],
                    num_computed=0,
                    block_table=[2 * i, 2 * i + 1],
                    num_logits=2,
                    context=Context(preamble=preamble),
                )
            )
        with torch.inference_mode():
            together = engine._runner.forward(rows)
            alone = torch.cat([engine._runner.forward([row]) for row in rows])
        assert torch.equal(together, alone), settings


def command(name: str, digest: str, output_ids: Sequence[int] = (), **params: Any) -> Generate:
    outputs = [Output(list(output_ids))] if output_ids else []
    params = {"max_new_tokens": 12, "ignore_eos": True, **params}
    return Generate(name, IDS, SamplingParams(**params), outputs, adapter=digest)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_tokens_equal_those_of_peft_in_one_batch(folders: Folders, family: str) -> None:
    base, adapters = folders(family)
    engine, digests = engine_of(folders, family, max_running=16, max_batch_tokens=16)
    commands = [command(kind, digest) for kind, digest in {"": "", **digests}.items()]
    for results in (run(engine, commands), run(engine, commands)):
        for kind, adapter in {"": base, **adapters}.items():
            model = peft_model(base, adapter)
            assert results[kind].token_ids == peft_tokens(model, IDS, 12, **task_of(kind)), kind
    engine.check()


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beams": ({"num_beams": 3}, {"num_beams": 3}),
    "repetition penalty": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "no repeated bigram": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "encoder penalty": ({"encoder_repetition_penalty": 1.5}, {"encoder_repetition_penalty": 1.5}),
    "forced end": ({"forced_eos_token_ids": [7]}, {"forced_eos_token_id": 7}),
}
"""Ours, and transformers'."""


@pytest.mark.parametrize("name", OPTIONS)
def test_options_read_the_clients_tokens_alone(folders: Folders, name: str) -> None:
    ours, theirs = OPTIONS[name]
    base, adapters = folders("llama")
    engine, digests = engine_of(folders, "llama")
    kinds = ("prompt", "prefix")
    results = run(engine, [command(kind, digests[kind], **ours) for kind in kinds])
    for kind in kinds:
        assert results[kind].token_ids == peft_tokens(peft_model(base, adapters[kind]), IDS, 12, **theirs), kind


@pytest.mark.parametrize("kind", ["long prompt", "long prefix"])
def test_prompt_logprobs_are_those_of_the_clients_tokens(folders: Folders, kind: str) -> None:
    base, adapters = folders("llama")
    engine, digests = engine_of(folders, "llama", max_running=16, max_batch_tokens=16)
    scored = run(engine, [command("r", digests[kind], prompt_logprobs=True)])["r"].prompt_logprobs
    expected = peft_logits(base, adapters[kind]).log_softmax(-1)[range(len(IDS) - 1), IDS[1:]]
    assert scored is not None
    assert scored.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


@pytest.mark.parametrize("kind", ["long prompt", "long prefix"])
def test_virtual_tokens_are_computed_once_and_not_counted_as_cached(folders: Folders, kind: str) -> None:
    engine, digests = engine_of(folders, "llama")
    first = run(engine, [command("r", digests[kind], max_new_tokens=1)])["r"]
    second = run(engine, [command("r", digests[kind], max_new_tokens=1)])["r"]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 0)
    other = Generate("r", IDS[::-1], SamplingParams(max_new_tokens=1), adapter=digests[kind])
    engine.add(other)
    (stats,) = [reply for reply in engine.step() if isinstance(reply, Stats)]
    num_virtual = VIRTUAL[kind][1]["num_virtual_tokens"]
    assert stats.batch_tokens == num_virtual % engine.blocks.block_size + len(IDS)


def test_the_plan_of_an_adapter_leaves_out_the_room_of_its_virtual_tokens(folders: Folders) -> None:
    base, adapters = folders("llama")
    lengths = []
    for model in (
        ModelConfig(name="base", path=str(base)),
        ModelConfig(name="long", path=str(adapters["long prompt"])),
    ):
        planned = plan_or_problem(model, 1, None if model.name == "base" else "base")
        assert isinstance(planned, PlannedModel)
        lengths.append(planned.max_model_len)
    assert lengths[0] - lengths[1] == VIRTUAL["long prompt"][1]["num_virtual_tokens"]


@pytest.mark.parametrize("settings", [{"kernels": "torch"}, {"executor": "generic"}])
def test_the_plan_and_the_worker_refuse_deterministic_rows_that_depend_on_the_batch(
    folders: Folders, settings: dict[str, Any]
) -> None:
    base, adapters = folders("llama")
    _, ready = built(base, [adapters["prompt"]], deterministic=True, **settings)
    (problem,) = (fact.problem for fact in ready.adapters)
    assert problem == "deterministic is set, and products here have no kernels of ours"
    lora = write_tiny_adapter(base.parent / "lora", base, "lora", "llama")
    planned = plan_or_problem(ModelConfig(name="r", path=str(lora), deterministic=True, **settings), 1, "base")
    assert isinstance(planned, PlannedModel) and planned.not_shared_because == problem
    model = ModelConfig(name="r", path=str(adapters["prompt"]), deterministic=True, **settings)
    assert "virtual tokens, which no weights can hold" in str(plan_or_problem(model, 1, "base"))


def test_preempted_and_resumed_requests_keep_their_tokens(folders: Folders) -> None:
    engine, digests = engine_of(folders, "qwen3")
    commands = [command(kind, digest, max_new_tokens=60) for kind, digest in digests.items()]
    expected = {kind: outcome.token_ids for kind, outcome in run(engine, commands).items()}
    small, _ = engine_of(folders, "qwen3", max_model_len=128, kv_cache_gib=14 * BLOCK_BYTES / 1024**3)
    assert {kind: each.token_ids for kind, each in run_preempted(small, commands).items()} == expected
    resumed = run(
        engine, [command(kind, digest, expected[kind][:20], max_new_tokens=60) for kind, digest in digests.items()]
    )
    assert {kind: each.token_ids for kind, each in resumed.items()} == {k: ids[20:] for k, ids in expected.items()}
