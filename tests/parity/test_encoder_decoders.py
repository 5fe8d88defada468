"""Every decoding option on encoder-decoder models, in one batch with different sources, against transformers."""

from __future__ import annotations

import functools
from typing import Literal

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.models.packed_linear import pack_linears
from server.protocol import Generate
from tests.fuzz.scale import SCALE
from tests.parity import cases
from tests.parity.test_parity import PROMPTS, check
from tests.tiny_encoder_decoders import FAMILIES, KINDS, start_id, tiny_encoder_decoder

FUSED = ("t5", "t5-1.1", "mt5", "umt5", "bart", "mbart", "marian", "marian, two vocabularies", "pegasus", "m2m_100",
         "blenderbot", "plbart")  # fmt: skip
"""Families with fused layers."""
EXECUTORS = [(family, "auto") for family in FAMILIES]
EXECUTORS += [(family, "compat") for family in FUSED if SCALE > 1]
FORCED = [{"forced_bos_token_id": 9}, {"forced_bos_token_id": 9, "num_beams": 4, "begin_suppress_tokens": (40, 41)}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


reference = functools.cache(tiny_encoder_decoder)
"""What an engine is compared with: one for all tests of a family, which remember its answers."""


def engine_of(module: PreTrainedModel, executor: Literal["auto", "compat", "fused"] = "auto") -> DecoderEngine:
    config = ModelConfig(name="m", path="unused", executor=executor, block_size=4, kv_cache_gib=0.02, max_running=64)
    runner = build_runner(module, config, 128, max_source_len=64, pack=pack_linears)
    return DecoderEngine(
        runner, max_model_len=128, max_source_len=64, max_batch_tokens=96, max_running=64, prefix_cache=True
    )


def read(commands: list[Generate], family: str, *prefix: int) -> list[Generate]:
    """The same requests to a model that reads the prompts as its sources."""
    begin = [start_id(family), *prefix]
    return [
        msgspec.structs.replace(command, prompt_ids=begin, source_ids=command.prompt_ids)
        for command in commands
        if command.params.guidance_scale == 1.0
    ]


@pytest.mark.parametrize("executor", ["compat", "fused"])
@pytest.mark.parametrize("family", KINDS)
def test_each_option_alone_gives_what_transformers_gives(family: str, executor: Literal["compat", "fused"]) -> None:
    commands = cases.each_option(PROMPTS[0])
    commands += [cases.command(f"forced {i}", PROMPTS[1], **params) for i, params in enumerate(FORCED)]
    check(engine_of(tiny_encoder_decoder(family), executor), reference(family), read(commands, family))


@pytest.mark.timeout(900 * SCALE)
@pytest.mark.parametrize(("family", "executor"), EXECUTORS)
def test_random_combinations_with_different_sources_give_what_transformers_gives(
    family: str, executor: Literal["auto", "compat"]
) -> None:
    number = max(40 if family in KINDS else 12, 10 * SCALE)
    commands = cases.at_random(PROMPTS, number, seed=list(FAMILIES).index(family))
    check(engine_of(tiny_encoder_decoder(family), executor), reference(family), read(commands, family))


def test_a_longer_decoder_prompt_counts_as_transformers_counts_it() -> None:
    commands = read(cases.at_random(PROMPTS, 24, seed=7), "t5", 40, 41, 42)
    check(engine_of(tiny_encoder_decoder("t5")), reference("t5"), commands)
