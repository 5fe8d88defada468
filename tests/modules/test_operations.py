"""One order of operations for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from server.modules.attention import LayerSpec
from server.modules.layout import Attention, Layer, Packed, Product, Sublayer
from server.modules.operations import HIDDEN, READ, Attending, Normalise, operations, run
from server.modules.parts import Norm
from server.modules.products import PlainProduct
from server.modules.recognise_encoder import recognise_layers
from server.modules.unsupported import Unsupported

WIDTH, NUM_TOKENS = 16, 5
SPEC = LayerSpec(num_heads=2, num_kv_heads=2, key_dim=8, value_dim=8, scaling=8**-0.5)


def linear(width: int, outputs: int) -> PlainProduct:
    return PlainProduct(Product(linears=(nn.Linear(width, outputs),)))


def norm() -> Norm:
    return Norm(weight_D=torch.rand(WIDTH) + 0.5, bias_D=torch.randn(WIDTH), eps=1e-5, is_centred=True)


def layer_of(kind: str) -> Layer[Packed]:
    """Of each order of norms that there is."""
    first, second = norm(), norm()
    before = {"before": (first, second), "parallel": (first, second), "parallel, one norm": (first, first)}
    norms = before.get(kind, (None, None))
    posts = (None, None) if kind in before else (norm(), norm())
    attention = Sublayer[Packed](
        norm=norms[0],
        first=linear(WIDTH, 3 * WIDTH),
        attention=Attention(spec=SPEC),
        second=linear(WIDTH, WIDTH),
        post_norm=posts[0],
        norms_sum=kind == "of sums",
    )
    mlp = Sublayer[Packed](
        norm=norms[1],
        first=linear(WIDTH, 24),
        second=linear(24, WIDTH),
        post_norm=posts[1],
        norms_sum=kind == "of sums",
    )
    return Layer(sublayers=(attention, mlp), is_parallel=kind.startswith("parallel"))


KINDS = ("before", "after", "of sums", "parallel", "parallel, one norm")


def by_hand(layer: Layer[Packed], h_TD: Tensor) -> Tensor:
    """What the fields of a layout say, written out."""
    start_TD = h_TD
    for sublayer in layer.sublayers:
        x_TD = start_TD if layer.is_parallel else h_TD
        x_TX = sublayer.first(x_TD if sublayer.norm is None else sublayer.norm(x_TD))
        if sublayer.attention is not None:
            x_TX = mixed(0, sublayer.attention, x_TX)
        added_TD = sublayer.second(x_TX)
        if sublayer.post_norm is None:
            h_TD = h_TD + added_TD
        elif sublayer.norms_sum:
            h_TD = sublayer.post_norm(h_TD + added_TD)
        else:
            h_TD = h_TD + sublayer.post_norm(added_TD)
    return h_TD


def mixed(_layer: int, attention: Attention, qkv_TX: Tensor) -> Tensor:
    query_THD, key_THD, value_THD = attention.spec.split(qkv_TX)
    return (query_THD * key_THD.mean(0) + value_THD.mean(0)).flatten(1)


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_order_of_norms_computes_what_the_layout_says(kind: str, is_wide: bool) -> None:
    torch.manual_seed(0)
    layer, h_TD = layer_of(kind), torch.randn(NUM_TOKENS, WIDTH)
    expected = by_hand(layer, h_TD)
    ours, _ = run(operations(layer, 0, is_wide=is_wide), h_TD.clone(), mixed, read_TX=h_TD.clone())
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_tokens_that_alone_go_on_get_what_they_get_among_all(kind: str) -> None:
    torch.manual_seed(0)
    layer, h_TD = layer_of(kind), torch.randn(NUM_TOKENS, WIDTH)
    whole, _ = run(operations(layer, 0), h_TD.clone(), mixed, read_TX=h_TD.clone())
    for rows in ([0, 3], []):
        wanted_R = torch.tensor(rows, dtype=torch.int64)
        ours, _ = run(
            operations(layer, 0), h_TD.clone(), lambda *call: mixed(*call)[wanted_R],  # noqa: B023
            read_TX=h_TD.clone(), wanted_R=wanted_R,
        )  # fmt: skip
        torch.testing.assert_close(ours, whole[wanted_R])


def test_parallel_parts_with_one_norm_compute_it_once() -> None:
    found = operations(layer_of("parallel, one norm"), 0)
    assert sum(isinstance(operation, Normalise) for operation in found) == 1


def test_only_places_that_are_still_read_are_kept_for_tokens_that_go_on() -> None:
    kept = {
        kind: operation.kept
        for kind in KINDS
        for operation in operations(layer_of(kind), 0)
        if isinstance(operation, Attending)
    }
    assert kept == {
        "before": {HIDDEN}, "after": {HIDDEN}, "of sums": {HIDDEN},
        "parallel": {HIDDEN}, "parallel, one norm": {HIDDEN, READ},
    }  # fmt: skip


def bert() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    core: nn.Module = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=50, **sizes)).encoder
    return core


def test_a_part_of_an_encoders_layer_without_a_known_name_is_refused() -> None:
    core = bert()
    assert len(recognise_layers(core)) == 1
    core.layer[0].attention.self.gate = nn.Linear(32, 32)  # type: ignore[index, union-attr]
    with pytest.raises(Unsupported, match="its BertSelfAttention has a part gate that is not known here"):
        recognise_layers(core)
