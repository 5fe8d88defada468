"""Random shapes, chunks and mates: what the native kernel gives a token depends on that token alone, bit by bit."""

from __future__ import annotations

import random
from typing import get_args

import pytest
import torch

from server.engine.attention.native import NativeAttention
from server.modules.attention import LayerSpec
from server.native import kernels
from server.number_types import KvDtype
from tests.engine.attention_driving import CPU, Scene, Told, layer_spec
from tests.fuzz.scale import SCALE
from tests.native import variants
from tests.native.random_lengths import any_length

torch.set_num_threads(1)

NUM_BLOCKS = 60
BLOCK_SIZE = 32
NUM_TRIALS = 20 * SCALE


@pytest.fixture(params=variants.HERE, autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    variants.use(request.param, monkeypatch)
    return str(request.param)


def any_spec(chance: random.Random) -> LayerSpec:
    num_kv_heads, group = chance.choice([1, 1, 2, 3]), chance.choice([1, 2, 3, 5, 7, 17])
    return layer_spec(
        (num_kv_heads * group, num_kv_heads),
        (any_width(chance), any_width(chance)),
        window=chance.choice([None, None, 1, 20, 150]),
        softcap=chance.choice([None, None, 4.0]),
        has_sinks=chance.random() < 0.3,
    )


def any_width(chance: random.Random) -> int:
    return 16 * chance.choice([1, 2, 3, 4, 5, 8, chance.randrange(1, 17)])


def cuts(chance: random.Random, length: int) -> list[int]:
    """Chunks of any size, often of one token as in decoding and of a few as with drafts."""
    chunks = []
    while length:
        chunks.append(min(length, chance.choice([1, 1, 2, 5, 11, 32, 33, 100, chance.randrange(1, 300)])))
        length -= chunks[-1]
    return chunks


def scene(spec: LayerSpec, dtype: torch.dtype, kv_dtype: KvDtype) -> Scene:
    backend = NativeAttention([spec], NUM_BLOCKS, BLOCK_SIZE, dtype, CPU, kv_dtype=kv_dtype)
    return Scene(backend, NUM_BLOCKS, BLOCK_SIZE, dtype)


def together(place: Scene, sequences: list[Told], chance: random.Random) -> list[torch.Tensor]:
    """Every sequence in chunks of its own, and those that are not done in one step, in any order."""
    left = [cuts(chance, len(sequence)) for sequence in sequences]
    outs: list[list[torch.Tensor]] = [[] for _ in sequences]
    while running := [i for i, chunks in enumerate(left) if chunks]:
        chosen = chance.sample(running, chance.randrange(1, len(running) + 1))
        for i, out in zip(chosen, place.step([(sequences[i], left[i].pop()) for i in chosen]), strict=True):
            outs[i].append(out)
    return [torch.cat(each) for each in outs]


@pytest.mark.parametrize("kv_dtype", get_args(KvDtype))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_bits_alone_and_in_any_chunk_and_batch(dtype: torch.dtype, kv_dtype: KvDtype) -> None:
    for trial in range(NUM_TRIALS):
        chance = random.Random(trial)
        place = scene(any_spec(chance), dtype, kv_dtype)
        lengths = [any_length(chance, 400) for _ in range(chance.randrange(1, 5))]
        sequences = [place.sequence(length, trial + i) for i, length in enumerate(lengths)]
        kernels.set_num_threads(chance.randint(1, 3))
        ours = together(place, sequences, chance)
        kernels.set_num_threads(chance.randint(1, 3))
        for sequence, out in zip(sequences, ours, strict=True):
            assert torch.equal(out, place.run(place.again(sequence), [len(sequence)])), (trial, place.spec, lengths)
