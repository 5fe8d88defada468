"""The vectors of texts are those of transformers' own layers and sentence-transformers' pooling, in any company."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from server.encoder import quality
from server.encoder.build import Wishes, build_forward
from server.encoder.engine import EncoderEngine
from server.encoder.forward import PaddedForward
from server.models.embedder import POOLINGS, Embedder
from server.protocol import Encode, Pooling, Scores
from tests.encoder_app import engine_of
from tests.tiny_encoders import FAMILIES, tiny_encoder

# Of one text, without padding: [T, H] to [H].
ORACLES: dict[Pooling, Callable[[Tensor], Tensor]] = {
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.max(0).values,
    "mean": lambda hidden: hidden.mean(0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / len(hidden) ** 0.5,
    "weightedmean": lambda hidden: sum(hidden[i] * (i + 1) for i in range(len(hidden))) / sum(range(len(hidden) + 1)),
    "lasttoken": lambda hidden: hidden[-1],
}
LENGTHS = [3, 40, 5, 31, 17, 2, 64]


@cache
def base_of(family: str) -> PreTrainedModel:
    return tiny_encoder(family, "fill-mask").base_model


def commands() -> list[Encode]:
    generator = np.random.default_rng(0)
    return [Encode(str(n), [2, *generator.integers(5, 180, n - 2).tolist(), 3], [0] * n) for n in LENGTHS]


def oracle(base: PreTrainedModel, pooling: Pooling, command: Encode) -> np.ndarray:
    with torch.inference_mode():
        return ORACLES[pooling](base(torch.tensor([command.token_ids])).last_hidden_state[0]).numpy()


def vectors(engine: EncoderEngine, batch: list[Encode]) -> dict[str, np.ndarray]:
    for command in batch:
        engine.add(command)
    answers = {}
    while engine.has_work:
        for reply in engine.step()[:-1]:
            assert isinstance(reply, Scores), reply
            answers[reply.request_id] = np.frombuffer(reply.data, "<f4").reshape(reply.shape)
    return answers


@pytest.mark.parametrize("pooling", ORACLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_each_text_alone(family: str, pooling: Pooling) -> None:
    answers = vectors(engine_of(Embedder(base_of(family), pooling), "embed"), commands())
    for command in commands():
        expected = oracle(base_of(family), pooling, command)
        np.testing.assert_allclose(answers[command.request_id], expected, atol=1e-4, rtol=1e-4)


def test_every_way_of_pooling_has_its_oracle() -> None:
    assert set(ORACLES) == set(POOLINGS)


@pytest.mark.parametrize("executor", ["compat", "generic", "fused"])
def test_every_executor_gives_the_same_vectors(executor: str) -> None:
    engine = engine_of(Embedder(base_of("bert"), "mean"), "embed", wishes=Wishes(executor=executor))
    assert engine._forward.name == executor
    answers = vectors(engine, commands())
    for command in commands():
        expected = oracle(base_of("bert"), "mean", command)
        np.testing.assert_allclose(answers[command.request_id], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("pad_token_id", [0, None])
def test_a_decoders_vectors_do_not_feel_the_padding_of_a_step(pooling: Pooling, pad_token_id: int | None) -> None:
    config = AutoConfig.for_model(
        "qwen3", vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, pad_token_id=pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    base = AutoModel.from_config(config).eval()
    answers = vectors(engine_of(Embedder(base, pooling), "embed"), commands())
    for command in commands():
        expected = oracle(base, pooling, command)
        np.testing.assert_allclose(answers[command.request_id], expected, atol=1e-4, rtol=1e-4)


def test_only_a_model_that_reads_first_tokens_alone_computes_no_others_in_its_last_layer() -> None:
    first, mean = (engine_of(Embedder(base_of("bert"), pooling), "embed")._forward for pooling in ("cls", "mean"))
    assert first.name == mean.name == "fused"
    assert first.core.reads_first_only and not mean.core.reads_first_only  # type: ignore[attr-defined]


def test_what_fewer_bits_cost_is_told_as_a_cosine(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    module = Embedder(AutoModelForMaskedLM.from_config(base_of("bert").config).eval().base_model, "mean")
    batch = commands()
    with torch.inference_mode():
        exact = PaddedForward(module, 0).logits(batch)
    forward = build_forward(
        module, pad_token_id=0, max_model_len=64, wishes=Wishes(dtype=torch.bfloat16), pack=lambda module: None,
        sample=batch, measure=quality.OF_VECTORS,
    )  # fmt: skip
    with torch.inference_mode():
        near = quality.compare_vectors(forward.logits(batch), exact)
    assert 0.9 < near.least_cosine < 1.0
    assert f"products in bfloat16: {near}" in caplog.text


def test_a_vector_that_is_not_finite_is_as_far_away_as_can_be() -> None:
    exact = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ours = torch.tensor([[1.0, 2.0], [torch.nan, 4.0]])
    assert quality.compare_vectors(exact, exact).least_cosine == pytest.approx(1.0)
    assert quality.compare_vectors(ours, exact).least_cosine == -1.0
