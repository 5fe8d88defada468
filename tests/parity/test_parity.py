"""Every decoding option on real models, in one mixed batch, against transformers.

A difference is accepted only where transformers itself answers ours under a rounding error in its logits.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.models.packed_linear import pack_linears
from server.protocol import Failed, Generate, Tokens
from tests.fuzz.scale import SCALE
from tests.parity import cases
from tests.parity.oracle import Sample, expected, is_tie
from tests.tiny_models import tiny_decoder

FAMILIES = ["gpt2", "llama", "qwen2"]
SCORE_TOLERANCE = 1e-4
MAX_TIES = 0.02
"""Of the requests; more would mean that something is wrong."""
DEFAULT_MODEL = Path("models/smollm2-135m-instruct")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    torch.set_num_threads(1)
    return request.param


def engine_of(module: PreTrainedModel) -> DecoderEngine:
    config = ModelConfig(name="m", path="unused", block_size=4, kv_cache_gib=0.02, max_running=64)
    runner = build_runner(module, config, 128, pack=pack_linears)
    return DecoderEngine(runner, max_model_len=128, max_batch_tokens=96, max_running=64, prefix_cache=True)


def run(engine: DecoderEngine, commands: list[Generate]) -> dict[str, list[Sample]]:
    """All at once; the samples of each request by index."""
    token_ids: dict[tuple[str, int], list[int]] = defaultdict(list)
    scores: dict[tuple[str, int], float | None] = {}
    for command in commands:
        engine.add(command)
    while engine.has_work:
        for reply in engine.step():
            assert not isinstance(reply, Failed), reply
            if isinstance(reply, Tokens):
                token_ids[reply.request_id, reply.index] += reply.token_ids
                if reply.finish_reason is not None:
                    scores[reply.request_id, reply.index] = reply.score
        engine.check()
    assert engine.blocks.num_used == 0
    return {
        command.request_id: [
            Sample(token_ids[command.request_id, i], scores[command.request_id, i])
            for i in range(command.params.num_return_sequences)
        ]
        for command in commands
    }


def same(got: list[Sample], wanted: list[Sample]) -> bool:
    if [sample.token_ids for sample in got] != [sample.token_ids for sample in wanted]:
        return False
    pairs = [(g.score, w.score) for g, w in zip(got, wanted, strict=True) if w.score is not None]
    return all(g is not None and abs(g - w) <= SCORE_TOLERANCE * max(1.0, abs(w)) for g, w in pairs)


def check(engine: DecoderEngine, module: PreTrainedModel, commands: list[Generate]) -> None:
    got = run(engine, commands)
    ties, wrong = [], []
    for command in commands:
        wanted = expected(module, command)
        if not same(got[command.request_id], wanted):
            tie = is_tie(module, command, got[command.request_id], same)
            (ties if tie else wrong).append((command.params, got[command.request_id], wanted))
    assert not wrong, f"{len(wrong)} of {len(commands)}: {wrong[:5]}"
    assert len(ties) <= MAX_TIES * len(commands), ties


PROMPTS = [[5, 9, 200, 31, 9, 200], [301], [8, 8, 8, 60, 61, 62, 8, 8, 60], [44, 45, 46, 47, 48, 49, 50, 51, 52, 53]]


def test_each_option_alone_gives_what_transformers_gives(family: str) -> None:
    commands = cases.each_option(PROMPTS[0])
    check(engine_of(tiny_decoder(family)), tiny_decoder(family), commands)


@pytest.mark.timeout(900)
def test_random_combinations_give_what_transformers_gives(family: str) -> None:
    commands = cases.at_random(PROMPTS, 60 * SCALE, seed=FAMILIES.index(family))
    check(engine_of(tiny_decoder(family)), tiny_decoder(family), commands)


@pytest.mark.defaults
@pytest.mark.timeout(900)
def test_the_default_model_gives_what_transformers_gives_with_every_kind_of_request() -> None:
    torch.set_num_threads(1)
    module = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32).eval()
    served = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32).eval()
    prompts = [[1, 504, 3575, 282, 4649, 314], [3725, 314, 260, 2240, 253, 8034, 30], [57, 3725]]
    commands = cases.at_random(prompts, 5 * SCALE, seed=99)
    check(engine_of(served), module, commands)
