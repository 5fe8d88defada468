"""The fused executor against transformers: many kinds of layers, steps of every shape, layouts that only seem known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.config import ModelConfig
from server.engine import selfcheck
from server.engine.batch_inputs import Row
from server.engine.executors import build_runner
from server.engine.model_runner import ModelRunner
from server.errors import ConfigurationError
from server.models.packed_linear import pack_linears
from tests.tiny_models import scramble, tiny_decoder

torch.set_num_threads(1)

BLOCK_SIZE = 4
MAX_MODEL_LEN = 80
VOCAB_SIZE = 101

ROTARY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one key head, tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "odd widths": ("llama", {"hidden_size": 30, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10,
                             "intermediate_size": 37}),
    "stretched rotary positions": ("llama", {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}}),
    "gelu instead of silu": ("llama", {"hidden_act": "gelu"}),
    "windows in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "two rotary tables": ("gemma3_text", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 20,
                                          "final_logit_softcapping": 5.0,
                                          "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "multipliers": ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
                                "logits_scaling": 2.5}),
    "norms of all heads, after the parts": ("olmo2", {}),
    "layers without positions": ("smollm3", {"no_rope_layer_interval": 2}),
    "layer norms, plain MLP": ("starcoder2", {"sliding_window": 8}),
    "one residual after another": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 0.5}),
    "one norm for both parts": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "untied, wider MLP": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "n_inner": 50,
                                   "scale_attn_by_inverse_layer_idx": True}),
    "learned positions, scaled embedding": ("biogpt", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 50,
        "max_position_embeddings": 128}),
}  # fmt: skip
"""What is special -> a model type and its config."""


def decoder(family: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    fields = {**ROTARY, **settings}
    if family in ("gpt_neox", "gpt2"):
        fields.pop("num_key_value_heads")
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields), dtype=torch.float32)
    scramble(module, seed=1)
    return module.to(dtype).eval()


def config(**settings: object) -> ModelConfig:
    fields = {"name": "m", "path": "unused", "kv_cache_gib": 0.01, "block_size": BLOCK_SIZE, **settings}
    return ModelConfig(**fields)  # type: ignore[arg-type]


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (5, 26, 47)]


@torch.inference_mode()
def plain_logits(module: PreTrainedModel) -> list[Tensor]:
    return [module(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in sequences()]


STEPS = (
    # Of each sequence: new tokens and wanted logits. Prefill with all logits, a chunk without any, mixed, decode.
    ((4, 4), (9, 0), (20, 2)),
    ((1, 1), (8, 8), (0, 0)),
    ((0, 0), (8, 1), (25, 0)),
    ((0, 0), (1, 1), (1, 0)),
    ((0, 0), (0, 0), (1, 1)),
)


@torch.inference_mode()
def run(runner: ModelRunner) -> list[dict[int, Tensor]]:
    """The logits of every place that `STEPS` asks for."""
    found: list[dict[int, Tensor]] = [{} for _ in sequences()]
    done = [0] * len(found)
    tables = [range(i, 3 * 13, 3) for i in range(len(found))]
    for step in STEPS:
        rows = [
            Row(key=i, token_ids=sequences()[i][done[i] : done[i] + num_new], num_computed=done[i],
                block_table=tables[i], num_logits=num_logits)
            for i, (num_new, num_logits) in enumerate(step) if num_new
        ]  # fmt: skip
        logits = runner.forward(rows)
        assert logits.dtype == torch.float32
        assert logits.shape == (sum(row.num_logits for row in rows), VOCAB_SIZE)
        parts = iter(logits)
        for row in rows:
            done[row.key] += len(row.token_ids)
            for place in range(done[row.key] - row.num_logits, done[row.key]):
                found[row.key][place] = next(parts)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_layer_gives_transformers_logits_in_steps_of_every_shape(layout: str) -> None:
    module = decoder(*LAYOUTS[layout])
    expected = plain_logits(module)
    runner = build_runner(module, config(executor="fused"), MAX_MODEL_LEN)
    assert runner.name == "fused"
    for ours, theirs in zip(run(runner), expected, strict=True):
        assert ours
        for place, logits in ours.items():
            assert float((logits - theirs[place]).abs().max()) < 1e-4 * float(theirs.max() - theirs.min())


@pytest.mark.parametrize("layout", ["biases", "two rotary tables", "multipliers", "one residual after another"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_follow_float32(layout: str, dtype: torch.dtype) -> None:
    expected = plain_logits(decoder(*LAYOUTS[layout]))
    runner = build_runner(decoder(*LAYOUTS[layout], dtype), config(executor="fused"), MAX_MODEL_LEN)
    for ours, theirs in zip(run(runner), expected, strict=True):
        for place, logits in ours.items():
            assert torch.cosine_similarity(logits, theirs[place], dim=0) > 0.99


def test_a_step_that_wants_no_logits_still_fills_the_cache() -> None:
    module = decoder(*LAYOUTS["biases"])
    expected = plain_logits(module)[1]
    runner = build_runner(module, config(executor="fused"), MAX_MODEL_LEN)
    ids = sequences()[1]
    with torch.inference_mode():
        silent = Row(key=0, token_ids=ids[:-1], num_computed=0, block_table=range(8), num_logits=0)
        assert runner.forward([silent]).shape == (0, VOCAB_SIZE)
        last = Row(key=0, token_ids=ids[-1:], num_computed=len(ids) - 1, block_table=range(8))
        logits = runner.forward([last])[0]
    assert float((logits - expected[-1]).abs().max()) < 1e-4 * float(expected.max() - expected.min())


def test_a_row_without_logits_that_is_not_finite_is_named() -> None:
    module = decoder(*LAYOUTS["biases"])
    runner = build_runner(module, config(executor="fused"), MAX_MODEL_LEN)
    with torch.no_grad():
        module.get_input_embeddings().weight[7] = math.nan
    rows = [
        Row(key=i, token_ids=[9, token, 10], num_computed=0, block_table=[i], num_logits=0)
        for i, token in enumerate((8, 7, 6))
    ]
    with torch.inference_mode():
        runner.forward(rows)
        assert list(runner.failed_rows) == [1]
        runner.forward(rows[:1])
    assert list(runner.failed_rows) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_that_does_more_than_its_parts_is_refused_by_the_layers_numbers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny_decoder("llama").to(dtype)
    mlp = type(module.model.layers[1].mlp)
    right = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: 1.2 * right(self, x))
    with pytest.raises(ConfigurationError, match="its layer 0 computes something else than its layout says"):
        build_runner(module, config(executor="fused"), MAX_MODEL_LEN)
    assert build_runner(module, config(), MAX_MODEL_LEN).name == "generic"


def test_a_part_without_a_known_name_is_refused() -> None:
    module = tiny_decoder("llama")
    module.model.layers[1].self_attn.gate = nn.Linear(48, 48)
    with pytest.raises(ConfigurationError, match="its LlamaAttention has a part gate that is not known here"):
        build_runner(module, config(executor="fused"), MAX_MODEL_LEN)


def test_a_subclass_of_a_linear_is_no_plain_product() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    module = tiny_decoder("llama")
    module.model.layers[0].mlp.down_proj.__class__ = Scaled
    with pytest.raises(ConfigurationError, match="its Scaled is no plain product"):
        build_runner(module, config(executor="fused"), MAX_MODEL_LEN)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("cohere", {}, "CohereLayerNorm computes something else"),
        ("glm", {"head_dim": 8}, "has no gate_proj|computes something else"),
        ("phi", {"qk_layernorm": True}, "has a part k_layernorm"),
        ("mixtral", {"num_local_experts": 2}, "MixtralSparseMoeBlock has no"),
        ("nemotron", {}, "is no norm that is known"),
    ],
)
def test_what_is_not_known_runs_elsewhere_and_says_why(family: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        build_runner(decoder(family, settings), config(executor="fused"), MAX_MODEL_LEN)


@torch.inference_mode()
def test_what_shows_only_far_from_the_beginning_is_computed_there_too() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 80,
            "llama_4_scaling_beta": 3.0}  # fmt: skip
    module = decoder("ministral3", {"max_position_embeddings": 320, "head_dim": 8, "rope_parameters": rope})
    ids = torch.randint(3, VOCAB_SIZE, (120,), generator=torch.Generator().manual_seed(5))
    expected = module(ids[None], use_cache=False).logits[0].float()
    runner = build_runner(module, config(), 160)
    ours = runner.forward([Row(key=0, token_ids=ids.tolist(), num_computed=0, block_table=range(30), num_logits=120)])
    assert float((ours - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


@torch.inference_mode()
def test_a_wide_window_that_only_the_masks_know_is_kept() -> None:
    windows = {"use_sliding_window": True, "sliding_window": 520, "max_window_layers": 3}
    experts = {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    module = decoder("qwen2_moe", {**windows, **experts, "max_position_embeddings": 640})
    ids = torch.randint(3, VOCAB_SIZE, (600,), generator=torch.Generator().manual_seed(5))
    expected = module(ids[None], use_cache=False).logits[0, -1].float()
    runner = build_runner(module, config(), 640)
    ours = runner.forward([Row(key=0, token_ids=ids.tolist(), num_computed=0, block_table=range(150))])[0]
    assert float((ours - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_the_modules_weights_are_released_and_tied_ones_kept() -> None:
    for is_tied in (False, True):
        module = decoder("llama", {"tie_word_embeddings": is_tied})
        build_runner(module, config(), MAX_MODEL_LEN)
        left = {name for name, parameter in module.named_parameters() if parameter.numel() and parameter.dim() > 1}
        assert left == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_a_model_that_fails_the_check_at_the_end_gets_its_weights_back(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny_decoder(family)
    before = weights(module)
    right = selfcheck.difference

    def unlucky(runner: ModelRunner, expected: selfcheck.Reference) -> str | None:
        assert any(not parameter.numel() for parameter in module.parameters()) == (runner.name == "fused")
        return "it was not to be" if runner.name == "fused" else right(runner, expected)

    monkeypatch.setattr(selfcheck, "difference", unlucky)
    with pytest.raises(ConfigurationError, match="cannot run in the fused executor: it was not to be"):
        build_runner(module, config(executor="fused"), MAX_MODEL_LEN)
    after = weights(module)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert build_runner(module, config(), MAX_MODEL_LEN, pack=pack_linears).name == "generic"


def test_the_check_of_single_layers_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.modules import products
    from server.modules.layout import Layer, Product
    from server.native.linear import Linear

    right = products.pack_layer
    packed = []

    def spoiled(layer: Layer[Product]) -> Layer[Linear]:
        packed.append(layer)
        if len(packed) == 2:
            with torch.no_grad():
                layer.sublayers[0].second.linears[0].weight.mul_(1.5)  # type: ignore[operator, union-attr]
        return right(layer)

    monkeypatch.setattr(products, "pack_layer", spoiled)
    with pytest.raises(ConfigurationError, match="its layer 1 computes something else"):
        build_runner(tiny_decoder("llama").to(torch.bfloat16), config(executor="fused"), MAX_MODEL_LEN)
