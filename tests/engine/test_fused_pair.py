"""Encoder-decoders in fused layers give transformers' logits, whatever shares a step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from server.engine.attention.choose import choose_attention
from server.engine.batch_inputs import Row
from server.engine.context import Context
from server.engine.encoding import MULTIPLE, SourcePart
from server.engine.executors.fused.pair_runner import FusedPairRunner
from server.engine.executors.fused.prepare_pair import PreparedPair, prepare_pair
from server.engine.sources import Source, held_source
from server.modules.products import reduce_linears
from server.modules.unsupported import Unsupported
from server.native import kernels
from tests.native import variants
from tests.tiny_models import scramble

torch.set_num_threads(1)

BLOCK_SIZE, NUM_BLOCKS, VOCAB_SIZE = 32, 60, 101
SOURCE_LENGTHS, TARGET_LENGTHS = (1, 40, 150), (3, 70, 41)

_BART: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80, "decoder_ffn_dim": 96, "max_position_embeddings": 200,
}  # fmt: skip
_T5: dict[str, Any] = {"d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
_GATED = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("bart", _BART),
    "bart, scaled": ("bart", {**_BART, "scale_embedding": True}),
    "mbart": ("mbart", {**_BART, "scale_embedding": True}),
    "marian": ("marian", {**_BART, "activation_function": "swish", "scale_embedding": True}),
    "marian, two vocabularies": ("marian", {**_BART, "share_encoder_decoder_embeddings": False,
                                            "decoder_vocab_size": VOCAB_SIZE, "tie_word_embeddings": False}),
    "pegasus": ("pegasus", {**_BART, "activation_function": "relu"}),
    "m2m_100": ("m2m_100", _BART),
    "blenderbot": ("blenderbot", _BART),
    "plbart": ("plbart", _BART),
    "t5": ("t5", _T5),
    "t5 1.1": ("t5", _GATED),
    "mt5": ("mt5", _GATED),
    "umt5": ("umt5", _GATED),
}  # fmt: skip


def tiny(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    kind, settings = FAMILIES[family]
    ids = {"vocab_size": VOCAB_SIZE, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    module = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **ids, **settings))
    scramble(module, 0)
    if isinstance(bias := getattr(module, "final_logits_bias", None), Tensor):
        bias.copy_(torch.randn(bias.shape))
    for name, parameter in module.named_parameters():
        if kind.endswith("t5") and name.endswith(".q.weight"):
            parameter.data *= settings["d_kv"] ** -0.5
    return module.eval().to(dtype)


def token_ids(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE - 2), k=length)


SOURCES = [token_ids(length, seed) for seed, length in enumerate(SOURCE_LENGTHS)]
TARGETS = [token_ids(length, 10 + seed) for seed, length in enumerate(TARGET_LENGTHS)]


@torch.inference_mode()
def plain_logits(module: PreTrainedModel, source: Sequence[int], target: Sequence[int]) -> Tensor:
    output = module(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), use_cache=False)
    return output.logits[0].float()


@pytest.fixture(params=["torch", *variants.HERE])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    variants.use(request.param, monkeypatch)
    yield request.param
    kernels.set_num_threads(1)


def prepared(module: PreTrainedModel) -> PreparedPair:
    def make(specs: Any, num_blocks: int) -> Any:
        return choose_attention(specs, num_blocks, BLOCK_SIZE, module.dtype, torch.device("cpu"))

    return prepare_pair(module, SOURCES[1], TARGETS[1], make, block_size=BLOCK_SIZE)


class Scene:
    """Sources and rows in scattered blocks."""

    def __init__(self, pair: PreparedPair) -> None:
        specs = pair.packed.decoder.specs
        dtype = pair.packed.decoder.head.dtype
        backend = choose_attention(specs, NUM_BLOCKS, BLOCK_SIZE, dtype, torch.device("cpu"))
        self.runner = FusedPairRunner(
            pair.packed, backend, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE
        )
        self._free = [block for first in (2, 0, 1) for block in range(first, NUM_BLOCKS, 3)]
        self._sources: dict[int, Source] = {}
        self._tables: dict[int, list[int]] = {}
        self._done: dict[int, int] = {}

    def blocks(self, length: int) -> list[int]:
        return [self._free.pop() for _ in range(-(-length // BLOCK_SIZE))]

    def source(self, index: int) -> Source:
        if index not in self._sources:
            self._sources[index] = held_source(list(SOURCES[index]), index, self.blocks(SOURCE_LENGTHS[index]))
        return self._sources[index]

    @torch.inference_mode()
    def step(self, *shares: tuple[int, int, int]) -> list[Tensor]:
        """Of each row, source and target, and so many further tokens; all of their logits."""
        rows = []
        for key, index, count in shares:
            table = self._tables.setdefault(key, self.blocks(TARGET_LENGTHS[index]))
            done = self._done.get(key, 0)
            ids = TARGETS[index][done : done + count]
            row = Row(key=key, token_ids=ids, num_computed=done, block_table=table, num_logits=count)
            rows.append(msgspec.structs.replace(row, context=Context(source=self.source(index))))
            self._done[key] = done + count
        logits = self.runner.forward(rows)
        for _, index, _ in shares:
            self.source(index).held.is_computed = True
        return list(logits.split([count for _, _, count in shares]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_transformers_logits(family: str, variant: str) -> None:
    module = tiny(family)
    expected = [plain_logits(module, *pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    scene = Scene(prepared(module))
    steps = [((0, 0, 1), (1, 1, 30)), ((2, 2, 41), (1, 1, 1), (0, 0, 1)), ((0, 0, 1), (1, 1, 1)), ((1, 1, 38),)]
    found: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for shares in steps:
        for (key, _, _), logits in zip(shares, scene.step(*shares), strict=True):
            found[key].append(logits)
    for i, theirs in enumerate(expected):
        ours = torch.cat(found[i])
        assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.max() - theirs.min())


@pytest.mark.parametrize("family", ["marian", "mbart", "t5", "umt5"])
def test_bfloat16_follows_float32(family: str, variant: str) -> None:
    expected = plain_logits(tiny(family), SOURCES[1], TARGETS[1])
    module = tiny(family, torch.bfloat16)
    theirs = plain_logits(module, SOURCES[1], TARGETS[1])
    scene = Scene(prepared(module))
    [ours] = scene.step((0, 1, 70))
    assert (ours - expected).norm() < 1.2 * (theirs - expected).norm()


@pytest.mark.parametrize("family", ["marian", "t5 1.1"])
def test_int8_weights_follow_float32(family: str, variant: str) -> None:
    if variant == "torch":
        pytest.skip("without kernels nothing is quantised")
    expected = plain_logits(tiny(family), SOURCES[1], TARGETS[1])
    rounded = tiny(family)
    reduce_linears(rounded, torch.float32, "int8")
    theirs = plain_logits(rounded, SOURCES[1], TARGETS[1])
    pair = prepared(tiny(family))
    pair.quantise("int8")
    scene = Scene(pair)
    [ours] = scene.step((0, 1, 70))
    assert (ours - expected).norm() < 1.2 * (theirs - expected).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["marian", "mbart", "umt5"])
def test_a_row_has_the_same_bits_alone_and_among_rows_of_its_source_and_others(
    family: str, dtype: torch.dtype, variant: str
) -> None:
    if variant == "torch":
        pytest.skip("torch's own products depend on the number of rows")
    pair = prepared(tiny(family, dtype))
    alone = Scene(pair)
    expected = torch.cat([alone.step((0, 1, count))[0] for count in (60, 1, 1, 1)])
    busy = Scene(pair)
    found = [busy.step((5, 2, 3), (0, 1, 1), (6, 1, 4))[1], busy.step((7, 0, 1), (0, 1, 59), (8, 2, 30))[1]]
    found += [busy.step((5, 2, 1), (6, 1, 1), (0, 1, 1))[2] for _ in range(3)]
    assert torch.equal(torch.cat(found), expected)


def read_in_parts(scene: Scene, indices: Sequence[int], rng: random.Random) -> None:
    """Parts of random sizes, each source's in order."""
    passes, left = scene.runner.encoder_passes, list(indices)
    done = dict.fromkeys(left, 0)
    while left:
        index = rng.choice(left)
        source, total = scene.source(index), passes.num_units(SOURCE_LENGTHS[index])
        stop = min(total, done[index] + rng.choice((1, 7, 16, 100, 300)))
        scene.runner.encode([SourcePart(source, stop, is_last=stop == total)])
        done[index] = stop
        if stop == total:
            left.remove(index)
            source.held.is_computed = True


@pytest.mark.parametrize("is_chained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["marian", "mbart", "umt5"])
def test_sources_that_are_read_in_parts_give_the_same_bits(
    family: str, dtype: torch.dtype, variant: str, is_chained: bool
) -> None:
    pair = prepared(tiny(family, dtype))
    whole = Scene(pair)
    expected = whole.step((0, 0, 3), (1, 1, 30), (2, 2, 41))
    for seed in range(2):
        scene = Scene(pair)
        passes = scene.runner._encoder._passes
        assert (passes._chained is None) == (variant == "torch")
        if not is_chained:
            passes._chained = None
        read_in_parts(scene, (0, 1, 2), random.Random(seed))
        assert scene.runner.num_readings == 0
        for found, wanted in zip(scene.step((0, 0, 3), (1, 1, 30), (2, 2, 41)), expected, strict=True):
            if variant == "torch":  # whose products depend on the number of rows
                torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))
            else:
                assert torch.equal(found, wanted)


def test_the_costs_of_parts_add_up_to_those_of_the_source() -> None:
    passes = Scene(prepared(tiny("mbart"))).runner.encoder_passes
    rng = random.Random(3)
    for length in SOURCE_LENGTHS:
        total, done, costs = passes.num_units(length), 0, []
        while done < total:
            budget = rng.choice((0, 3, 20))
            stop = passes.reach(length, done, budget)
            assert done < stop <= total
            costs.append(passes.num_tokens(length, done, stop))
            assert costs[-1] <= max(budget, MULTIPLE)
            done = stop
        assert length <= passes.num_tokens(length, 0, total) <= sum(costs) < 2 * length + len(costs)


def test_weights_are_released_and_given_back() -> None:
    module = tiny("marian")
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    pair = prepared(module)
    assert not module.get_encoder().layers[0].fc1.weight.numel()
    pair.restore()
    after = module.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_layer_that_computes_something_else_is_refused_and_gives_its_weights_back() -> None:
    module = tiny("t5")
    layer = module.get_decoder().block[1].layer[1]
    forward = layer.forward

    def more(*args: Any, **options: Any) -> Any:
        first, *rest = forward(*args, **options)
        return (first * 1.1, *rest)

    layer.forward = more
    with pytest.raises(Unsupported, match="its layer 1 computes"):
        prepared(module)
    layer.forward = forward
    assert all(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def test_rows_of_a_source_that_is_not_finite_fail_and_harm_no_other() -> None:
    module = tiny("marian, two vocabularies")
    pair = prepared(module)
    [expected] = Scene(pair).step((1, 1, 5))
    table_VD = pair.packed.encoder.embedding.table_VD
    assert isinstance(table_VD, Tensor)
    table_VD[99] = float("nan")
    scene = Scene(pair)
    scene.source(2).ids[7] = 99
    bad, good = scene.step((0, 2, 4), (1, 1, 5))
    assert bad.isnan().all()
    torch.testing.assert_close(good, expected)


def test_float16_is_refused_for_t5() -> None:
    with pytest.raises(Unsupported, match="float16"):
        prepared(tiny("t5", torch.float16))
