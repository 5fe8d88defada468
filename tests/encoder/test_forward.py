"""Ways through an encoder's module: whichever is taken, each text gets what it gets alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from server.encoder import build, precision, quality
from server.encoder.build import Wishes, build_forward
from server.encoder.forward import Forward, PaddedForward
from server.errors import ConfigurationError
from server.native import kernels
from server.protocol import Encode
from tests.tiny_encoders import FAMILIES, tiny_encoder

torch.set_num_threads(1)

LENGTHS = (3, 61, 17, 33, 1, 64)
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 200,
}
BFLOAT16 = Wishes(dtype=torch.bfloat16)

# What a family is expected to run in; heads are 16 wide, as the kernels want them.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("fused", {}),
    "distilbert": ("fused", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}),
    "roberta": ("fused", {"type_vocab_size": 1}),
    "camembert": ("fused", {"type_vocab_size": 1}),
    "electra": ("fused", {"embedding_size": 32}),
    "ernie": ("fused", {}),
    "albert": ("generic", {"embedding_size": 32}),
    "modernbert": ("generic", {"local_attention": 16, "global_attn_every_n_layers": 2}),
    "eurobert": ("generic", {"num_key_value_heads": 2}),
    "deberta-v2": ("compat", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "mpnet": ("compat", {}),
    "llama": ("compat", {}),
}


@pytest.fixture(params=["torch", "auto"])
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    used = kernels.use(request.param, 1)
    if request.param == "auto" and used == "torch":
        pytest.skip("there are no kernels for this processor")
    yield used
    kernels.use("torch", 1)


def commands_of(lengths: tuple[int, ...] = LENGTHS) -> list[Encode]:
    generator = np.random.default_rng(1)
    return [Encode(str(i), generator.integers(5, 180, length).tolist()) for i, length in enumerate(lengths)]


def model_of(family: str, auto: Any, num_labels: int = 5) -> Any:
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(family, **{**SMALL, **MODELS[family][1]}, **ids, num_labels=num_labels)
    torch.manual_seed(0)
    module = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return module


def built(module: Any, wishes: Wishes, **options: Any) -> Forward:
    return build_forward(
        copy.deepcopy(module), pad_token_id=0, max_model_len=64, wishes=wishes, pack=lambda module: None, **options
    )


def alone(module: Any, commands: list[Encode]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [module(torch.tensor([command.token_ids])).logits[0] for command in commands]


def assert_same(forward: Forward, commands: list[Encode], expected: list[torch.Tensor], tolerance: float) -> None:
    with torch.inference_mode():
        logits = forward.logits(commands)
    for ours, one in zip(logits, expected, strict=True):
        worst = float((ours[: len(one)] - one).abs().max())
        assert worst <= tolerance * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
@pytest.mark.parametrize("family", MODELS)
def test_every_family_gives_each_text_what_it_gets_alone_in_the_way_it_is_known_to_take(
    family: str, auto: Any, native: str
) -> None:
    module = model_of(family, auto)
    forward = built(module, Wishes())
    assert forward.name == MODELS[family][0]
    assert_same(forward, commands_of(), alone(module, commands_of()), 1e-4)


@pytest.mark.parametrize("wishes", [Wishes(), BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_scores_are_bitwise_the_same_whoever_shares_the_batch_where_kernels_run(family: str, wishes: Wishes) -> None:
    if kernels.use("auto", 1) == "torch" or not kernels.has("linear"):
        pytest.skip("there are no kernels for this processor")
    try:
        forward = build_forward(
            model_of(family, AutoModelForTokenClassification), pad_token_id=0, max_model_len=64, wishes=wishes,
            pack=lambda module: None,
        )  # fmt: skip
        commands = commands_of()
        hidden: list[torch.Tensor] = []
        forward.core.register_forward_hook(lambda _m, _a, output: hidden.append(output.last_hidden_state))  # type: ignore[attr-defined]
        with torch.inference_mode():
            forward.logits(commands)
            for command in commands:
                forward.logits([command])
    finally:
        kernels.use("torch", 1)
    together, *singles = hidden
    for row, one in zip(together, singles, strict=True):
        if family == "bert":
            assert torch.equal(row[: one.shape[1]], one[0])
        else:
            torch.testing.assert_close(row[: one.shape[1]], one[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("executor", ["generic", "fused"])
def test_a_way_that_a_model_cannot_take_is_refused_by_name(executor: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot run in the {executor} executor: .*Set executor to auto"):
        built(model_of("deberta-v2", AutoModelForSequenceClassification), Wishes(executor=executor))


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_quantisation_that_this_machine_cannot_do_is_refused(family: str) -> None:
    kernels.use("torch", 1)
    with pytest.raises(ConfigurationError, match=r"cannot be quantised to int8: .*Set quantize to none"):
        built(model_of(family, AutoModelForSequenceClassification), Wishes(quantize="int8"))


def test_the_way_that_is_asked_for_is_taken() -> None:
    module = model_of("bert", AutoModelForSequenceClassification)
    for executor in ("fused", "generic", "compat"):
        assert built(module, Wishes(executor=executor)).name == executor


def test_a_classifier_that_reads_more_than_first_tokens_gets_all_of_them() -> None:
    module = tiny_encoder("bert", "classify")
    assert built(module, Wishes()).core.reads_first_only  # type: ignore[attr-defined]

    class Mean(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states.amax(1)

    module.bert.pooler = Mean()
    forward = built(module, Wishes())
    # The pads are the text's own first token, which changes no maximum.
    assert forward.name == "fused" and not forward.core.reads_first_only  # type: ignore[attr-defined]
    assert_same(forward, commands_of(), alone(module, commands_of()), 1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_products_in_bfloat16_are_near_and_really_in_bfloat16(family: str) -> None:
    module = model_of(family, AutoModelForTokenClassification)
    commands = commands_of()
    exact = quality.scores(PaddedForward(module, 0), commands)
    ours = quality.scores(built(module, BFLOAT16), commands)
    found = quality.compare(ours, exact)
    assert 0 < found.largest_difference < 0.1 and found.share_equal > 0.9


@pytest.mark.parametrize("wishes", [BFLOAT16, Wishes(dtype=torch.bfloat16, quantize="int8")])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_a_head_for_questions_stands_behind_products_in_fewer_bits(family: str, wishes: Wishes, native: str) -> None:
    if wishes.quantize != "none" and not kernels.has("linear"):
        pytest.skip("without kernels nothing is quantised")
    module = model_of(family, AutoModelForQuestionAnswering, num_labels=2)
    commands = commands_of()
    forward = built(module, wishes, sample=commands)
    assert forward.name == "fused"
    with torch.inference_mode():
        exact = PaddedForward(module, 0).logits(commands)
        for ours, theirs, command in zip(forward.logits(commands), exact, commands, strict=True):
            size = len(command.token_ids)
            assert ours.shape[-1] == 2
            torch.testing.assert_close(ours[:size], theirs[:size], atol=0.1 * float(exact.abs().max()), rtol=0.1)


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_what_fewer_bits_cost_is_told_at_load(family: str, caplog: pytest.LogCaptureFixture, native: str) -> None:
    if not kernels.has("linear"):
        pytest.skip("without kernels nothing is quantised")
    module = model_of(family, AutoModelForTokenClassification)
    caplog.set_level("INFO")
    sample = commands_of((20, 40, 60))
    forward = built(module, Wishes(dtype=torch.bfloat16, quantize="int8"), sample=sample)
    exact = quality.scores(PaddedForward(module, 0), sample)
    found = quality.compare(quality.scores(forward, sample), exact)
    assert f"products in int8: {found}" in caplog.text
    assert 0 < found.largest_difference < 0.5 and found.share_equal > 0.7


def test_tf32_begins_after_the_trials_and_its_cost_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The trials compare results to the last bits of float32."""
    order: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", order.append)
    for name in ("run_alone", "find_grouping"):
        right = getattr(build, name)
        monkeypatch.setattr(build, name, lambda *args, name=name, right=right: (order.append(name), right(*args))[1])
    caplog.set_level("INFO")
    module = model_of("bert", AutoModelForTokenClassification)
    built(module, Wishes(executor="compat", has_tf32=True), sample=commands_of((20, 40)))
    assert order == ["run_alone", "find_grouping", "high"]
    assert "products in tf32: scores differ by" in caplog.text


def test_a_padding_token_inside_of_a_text_counts_as_the_model_counts_it() -> None:
    for family in FAMILIES:
        module = tiny_encoder(family, "ner")
        commands = [Encode("a", [2, 9, 0, 11, 12, 3]), Encode("b", [2, 7, 3])]
        padded = PaddedForward(module, 0)
        with torch.inference_mode():
            expected = [padded.logits([command])[0] for command in commands]
        assert_same(built(module, Wishes()), commands, expected, 1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize(
    ("factor", "most_difference", "dtype", "reason"),
    [
        (12.0, 1.0, torch.bfloat16, "bfloat16 is 12.0 times as fast here, and scores differ by"),
        (12.0, 0.0, torch.float32, "in bfloat16 scores differ by"),
        (2.0, 1.0, torch.float32, "bfloat16 is 2.0 times as fast here"),
    ],
)
def test_products_are_in_bfloat16_by_default_where_that_is_much_faster_and_keeps_the_labels(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    factor: float,
    most_difference: float,
    dtype: torch.dtype,
    reason: str,
) -> None:
    monkeypatch.setattr(precision, "speed_up", lambda weight_NK: factor)
    monkeypatch.setattr(precision, "MOST_DIFFERENCE", most_difference)
    module, sample = tiny_encoder(family, "classify"), commands_of((20, 40, 60))
    chosen = built(module, Wishes(may_narrow=True), sample=sample)
    if family == "modernbert":  # its layers are not fused
        assert (chosen.dtype, chosen.dtype_reason) == (torch.float32, None)
        return
    assert chosen.dtype is dtype
    assert str(chosen.dtype_reason).startswith(reason)
    same = built(module, Wishes(dtype=dtype))
    assert torch.equal(quality.scores(chosen, sample), quality.scores(same, sample))


def test_another_best_label_keeps_products_in_float32() -> None:
    exact = torch.tensor([[0.501, 0.499], [0.9, 0.1]]).log()
    assert precision.wrong(quality.compare(exact, exact)) is None
    assert precision.wrong(quality.compare(torch.tensor([[0.499, 0.501], [0.9, 0.1]]).log(), exact)) is not None
    assert precision.wrong(quality.Nearness(1.0)) is not None


def test_the_speed_up_of_a_product_is_measured() -> None:
    assert 0 < precision.speed_up(torch.randn(96, 64)) < 1000


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "silu"])
def test_an_activation_is_known_by_its_numbers(activation: str, native: str) -> None:
    config = AutoConfig.for_model("bert", **SMALL, hidden_act=activation, num_labels=5)
    torch.manual_seed(0)
    module = AutoModelForTokenClassification.from_config(config).eval()
    forward = built(module, Wishes())
    assert forward.name == "fused"
    assert_same(forward, commands_of(), alone(module, commands_of()), 1e-4)
