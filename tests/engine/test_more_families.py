"""Decoder families with attention or state of their own: in a batch each sequence gets the tokens of `generate` alone.

The prompts end before, at and behind sliding windows and chunks. `test_runner_parity` has the plain families and
`test_lengths` those whose rotary factors follow from the length.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.engine.executors import build_runner
from server.engine.executors.generic import probe
from server.modules.unsupported import Unsupported
from tests.engine.driving import generate, run
from tests.tiny_models import _IDS, _LOCAL_AND_GLOBAL, _ROTARY, SLIDING_WINDOW, scramble

torch.set_num_threads(1)

NUM_NEW = 6
LENGTHS = (1, SLIDING_WINDOW - 1, SLIDING_WINDOW, 2 * SLIDING_WINDOW + 3, 60)
WINDOWS = {**_ROTARY, **_LOCAL_AND_GLOBAL}
FALCON = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA4 = {
    **{**_ROTARY, "head_dim": 16, "intermediate_size_mlp": 80, "num_local_experts": 2, "num_experts_per_tok": 1},
    **{"num_hidden_layers": 4, "attention_chunk_size": SLIDING_WINDOW, "floor_scale": 32, "attn_scale": 0.5},
}
LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 62},
    **{"short_factor": [1.0] * 6, "long_factor": [1.0 + 2 * i for i in range(6)]},
    **{"short_mscale": 1.1, "long_mscale": 1.3},
}
PHIMOE = {"num_local_experts": 2, "original_max_position_embeddings": 62, "rope_parameters": LONGROPE}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-rotary": ("falcon", FALCON),
    "falcon-alibi": ("falcon", {**FALCON, "alibi": True}),
    "mpt": ("mpt", {"d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "mamba": ("mamba", {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8}),
    "qwen2-sliding": ("qwen2", {**WINDOWS, "use_sliding_window": True, "max_window_layers": 1}),
    "cohere2": ("cohere2", {**WINDOWS, "head_dim": 12}),
    "gpt-oss": ("gpt_oss", {**WINDOWS, "head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4": ("llama4_text", {**LLAMA4, "attn_temperature_tuning": True}),
    "llama4-untuned": ("llama4_text", {**LLAMA4, "attn_temperature_tuning": False}),
    "phimoe": ("phimoe", {**_ROTARY, **PHIMOE}),
}


def decoder(name: str) -> PreTrainedModel:
    family, fields = FAMILIES[name]
    torch.manual_seed(0)  # some families draw biases and states, to which noise is added
    module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**_IDS, **fields}), dtype=torch.float32, attn_implementation="eager"
    )
    scramble(module, 0)
    return module.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_gives_each_sequence_the_tokens_of_generate_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 380, (length,), generator=generator) for length in LENGTHS]
    expected = []
    for ids in prompts:
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids[None]), "eos_token_id": None}
        # Below 5.20 transformers loses the prompt where it computes the cache again with other factors.
        options["use_cache"] = name != "phimoe"
        with torch.inference_mode():
            output = decoder(name).generate(ids[None], max_new_tokens=NUM_NEW, do_sample=False, **options)
        expected.append(output[0, len(ids) :].tolist())
    config = ModelConfig(name=name, path="unused", block_size=4, kv_cache_gib=0.02)
    engine = DecoderEngine(
        build_runner(decoder(name), config, 96), max_model_len=96, max_batch_tokens=23, max_running=8, prefix_cache=True
    )
    commands = [generate(str(i), ids.tolist(), max_new_tokens=NUM_NEW) for i, ids in enumerate(prompts)]
    alone = [run(engine, [command])[command.request_id].token_ids for command in commands]
    together = run(engine, commands)
    assert alone == expected
    assert [together[command.request_id].token_ids for command in commands] == expected


def test_queries_scaled_by_positions_that_a_model_counts_itself_are_not_for_the_generic_executor() -> None:
    module = decoder("llama4")
    module.config.layer_types = ["full_attention"] * 4
    with pytest.raises(Unsupported, match="positions that it counts itself"):
        probe(module)
