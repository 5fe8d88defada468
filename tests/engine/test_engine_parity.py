"""The engine on real tiny models against transformers: greedy and sampled, batched, chunked, preempted, resumed.

The reference knows no cache and no batch: it computes each prefix anew, applies transformers' processors, and draws.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.sequence import Sequence
from server.models.packed_linear import pack_linears
from server.protocol import Generate, Output
from tests.engine.driving import Outcome, generate, run, run_preempted
from tests.engine.test_sampler import expected_token
from tests.tiny_models import tiny_decoder

MAX_MODEL_LEN = 96
NUM_NEW = 12
SAMPLING: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5, "min_new_tokens": 4},
    {"do_sample": True, "seed": 1},
    {"do_sample": True, "seed": 2, "temperature": 0.6, "top_k": 20},
    {"do_sample": True, "seed": 3, "top_p": 0.8, "presence_penalty": 0.9},
    {"do_sample": True, "seed": 4, "typical_p": 0.7, "frequency_penalty": 0.5},
    {"do_sample": True, "seed": 5, "temperature": 1.4, "min_p": 0.1, "top_p": 0.95, "top_k": 100},
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


def commands() -> list[Generate]:
    generator = torch.Generator().manual_seed(3)
    stem = torch.randint(3, 380, (17,), generator=generator).tolist()
    return [
        generate(str(i), [*stem[: 4 * i], 20 + i, 7], max_new_tokens=NUM_NEW, end_token_ids=(2, 11), **params)
        for i, params in enumerate(SAMPLING)
    ]


@pytest.fixture(scope="module")
def expected(module: PreTrainedModel) -> dict[str, list[int]]:
    return {command.request_id: reference(module, command) for command in commands()}


@torch.inference_mode()
def reference(module: PreTrainedModel, command: Generate, sample_index: int = 0) -> list[int]:
    sequence = Sequence(command, max_model_len=MAX_MODEL_LEN, block_size=4, sample_index=sample_index)
    while True:
        ids = torch.from_numpy(sequence.token_ids[: sequence.num_tokens])[None]
        token = expected_token(module(ids, use_cache=False).logits[0, -1].float(), sequence)
        sequence.append(token)
        if sequence.stopping.finish_reason(token, sequence.num_tokens):
            return sequence.output_ids


def engine_of(module: PreTrainedModel, num_blocks: int = 0, **limits: Any) -> DecoderEngine:
    family = module.config.model_type
    config = ModelConfig(name=family, path="unused", block_size=4, kv_cache_gib=0.01, max_running=8)
    # The runner's linears are packed in place: the reference keeps the plain ones.
    runner = build_runner(tiny_decoder(family), config, MAX_MODEL_LEN, pack=pack_linears)
    assert num_blocks <= runner.num_blocks
    runner.num_blocks = num_blocks or runner.num_blocks
    defaults = {"max_batch_tokens": 64, "max_running": 8, "prefix_cache": True}
    return DecoderEngine(runner, max_model_len=MAX_MODEL_LEN, **{**defaults, **limits})


def tokens_of(outcomes: dict[str, Outcome]) -> dict[str, list[int]]:
    return {name: outcomes[name].token_ids for name in sorted(outcomes)}


def test_requests_one_after_another_and_all_at_once_give_the_references_tokens(module, expected):
    engine = engine_of(module)
    alone = {command.request_id: run(engine, [command])[command.request_id].token_ids for command in commands()}
    assert alone == expected
    together = run(engine, commands())
    assert tokens_of(together) == expected
    if engine.blocks.prefix_cache:
        assert sum(outcome.num_cached_tokens or 0 for outcome in together.values()) > 0


def test_chunks_and_preemptions_change_no_token(module, expected):
    engine = engine_of(module, num_blocks=16, max_batch_tokens=8)
    outcomes = run_preempted(engine, commands())
    assert tokens_of(outcomes) == expected


def test_a_request_resumed_in_a_fresh_engine_goes_on_with_the_references_tokens(module, expected):
    resumed = [
        Generate(command.request_id, command.prompt_ids, command.params, [Output(expected[command.request_id][:5])])
        for command in commands()
    ]
    rest = tokens_of(run(engine_of(module), resumed))
    assert {name: expected[name][:5] + token_ids for name, token_ids in rest.items()} == expected


def test_greedy_tokens_equal_those_of_generate(module, expected):
    for command in commands()[:2]:
        params = command.params
        prompt = torch.tensor([command.prompt_ids])
        output = module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=params.max_new_tokens,
            min_new_tokens=params.min_new_tokens or None,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=list(params.end_token_ids),
            pad_token_id=0,
        )
        assert output[0, len(command.prompt_ids) :].tolist() == expected[command.request_id]


def sampled_groups() -> list[Generate]:
    many = [command for command in commands() if command.params.do_sample]
    return [
        Generate(
            command.request_id, command.prompt_ids, msgspec.structs.replace(command.params, num_return_sequences=3)
        )
        for command in many
    ]


@pytest.mark.parametrize("limits", [{}, {"num_blocks": 26, "max_batch_tokens": 8}])
def test_samples_of_one_prefill_are_the_references_one_by_one(module, limits):
    outcomes = run(engine_of(module, **limits), sampled_groups())
    for command in sampled_groups():
        name = command.request_id
        ours = [outcomes[f"{name}#{i}" if i else name].token_ids for i in range(3)]
        assert ours == [reference(module, command, i) for i in range(3)]


@pytest.mark.parametrize("num_sent", [(2, 5, 3), (0, 4, 4)])
def test_resumed_samples_go_on_with_the_references_tokens(module, num_sent):
    wholes = {command.request_id: [reference(module, command, i) for i in range(3)] for command in sampled_groups()}
    resumed = [
        Generate(
            command.request_id,
            command.prompt_ids,
            command.params,
            [Output(whole[:n]) for whole, n in zip(wholes[command.request_id], num_sent, strict=True)],
        )
        for command in sampled_groups()
    ]
    outcomes = run(engine_of(module), resumed)
    for name, whole in wholes.items():
        rest = [outcomes[f"{name}#{i}" if i else name].token_ids for i in range(3)]
        assert [tokens[:n] + more for tokens, n, more in zip(whole, num_sent, rest, strict=True)] == whole
