"""From transformers' encoder-decoders to layouts, as `recognise` does it for decoders: BART's kin and T5's.

BART's kin have norms before their sublayers or after the sums, under the same names. Both layouts are given, and a
check has to decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.modules.attention import DistanceBias, LayerSpec
from server.modules.children import Children, first_attribute
from server.modules.layout import (
    Attention,
    Decoder,
    Embedding,
    Encoder,
    EncoderDecoder,
    Layer,
    Product,
    Sublayer,
    num_outputs,
)
from server.modules.parts import Norm, activation_of, norm_of
from server.modules.recognise import plain_linears
from server.modules.unsupported import Unsupported

Layers = tuple[Layer[Product], ...]


def candidates(module: PreTrainedModel) -> Iterator[EncoderDecoder[Product]]:
    """Layouts that ``module`` may have, the likeliest first. Raises `Unsupported`."""
    encoder, decoder = stacks(module)
    head = module.get_output_embeddings()
    if head is None:
        raise Unsupported("it has no head")
    if Children(encoder).has("block"):
        # Some divide before the head, and configs do not say which.
        for logits_divisor in (1.0, float(module.config.d_model) ** 0.5):
            yield _of_t5(module, encoder, decoder, head, logits_divisor=logits_divisor)
        return
    is_post = _final_norm(Children(encoder)) is None
    for norms_sum in (is_post, not is_post):
        yield _of_bart(module, encoder, decoder, head, norms_sum=norms_sum)


def stacks(module: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder. Raises `Unsupported` where there is more than these, a head and a shared table."""
    children = Children(module)
    trunk = children.find("model")
    children.find("lm_head")
    inner = children if trunk is None else Children(trunk)
    encoder, decoder = inner.take_all("encoder", "decoder")
    inner.find("shared")
    children.finish()
    inner.finish()
    return encoder, decoder


def layers_of(stack: nn.Module) -> nn.ModuleList:
    layers = Children(stack).take("layers", "block")
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise Unsupported("its layers are no list")
    return layers


def _of_bart(
    module: PreTrainedModel, encoder: nn.Module, decoder: nn.Module, head: nn.Module, *, norms_sum: bool
) -> EncoderDecoder[Product]:
    logits_bias = getattr(module, "final_logits_bias", None)
    bias_N = logits_bias[0].detach() if isinstance(logits_bias, Tensor) and bool(logits_bias.any()) else None
    embeddings, norms = zip(*(_bart_ends(stack) for stack in (encoder, decoder)), strict=True)
    return EncoderDecoder(
        encoder=Encoder(
            embedding=embeddings[0],
            layers=tuple(_bart_layer(layer, norms_sum=norms_sum) for layer in layers_of(encoder)),
            final_norm=norms[0],
        ),
        decoder=Decoder(
            embedding=embeddings[1],
            layers=tuple(_bart_layer(layer, norms_sum=norms_sum) for layer in layers_of(decoder)),
            final_norm=norms[1],
            head=Product(linears=plain_linears(head), bias_N=bias_N),
        ),
    )


def _bart_ends(stack: nn.Module) -> tuple[Embedding, Norm | None]:
    """What stands before the layers, and after them."""
    children = Children(stack)
    children.take("layers")
    table, positions = children.take_all("embed_tokens", "embed_positions")
    norm = children.find("layernorm_embedding")
    final_norm = _final_norm(children)
    children.finish()
    if not isinstance(table, nn.Embedding):
        raise Unsupported("its embedding is no table")
    position_table, offset = _positions(positions)
    embedding = Embedding(
        table_VD=table.weight.detach(),
        scale=first_attribute(table, ("embed_scale",), first_attribute(stack, ("embed_scale",), 1.0)),
        position_table_PD=position_table.detach().to(table.weight.dtype),
        position_offset=offset,
        norm=None if norm is None else norm_of(norm),
    )
    return embedding, final_norm


def _positions(module: nn.Module) -> tuple[Tensor, int]:
    """Their table, and the row of the first."""
    table = getattr(module, "weight", None)
    if isinstance(table, Tensor):
        return table, int(getattr(module, "offset", 0))
    # M2M100 counts from the padding's row on, and has a buffer that it makes anew for longer texts.
    table, padding = getattr(module, "weights", None), getattr(module, "padding_idx", None)
    if not isinstance(table, Tensor) or not isinstance(padding, int):
        raise Unsupported("its positions are no table")
    return table, padding + 1


def _final_norm(children: Children) -> Norm | None:
    norm = children.find("layer_norm", "final_layer_norm")
    return None if norm is None else norm_of(norm)


def _bart_layer(module: nn.Module, *, norms_sum: bool) -> Layer[Product]:
    children = Children(module)
    attention, norm = children.take_all("self_attn", "self_attn_layer_norm")
    sublayers = [_bart_attention(attention, norm, norms_sum=norms_sum, is_cross=False)]
    if children.has("encoder_attn"):
        attention, norm = children.take_all("encoder_attn", "encoder_attn_layer_norm")
        sublayers.append(_bart_attention(attention, norm, norms_sum=norms_sum, is_cross=True))
    activation, up, down, norm = children.take_all("activation_fn", "fc1", "fc2", "final_layer_norm")
    children.finish()
    first = Product(linears=plain_linears(up), activation=activation_of(activation))
    sublayers.append(_sublayer(first, Product(linears=plain_linears(down)), norm, norms_sum=norms_sum))
    return Layer(sublayers=tuple(sublayers))


def _bart_attention(module: nn.Module, norm: nn.Module, *, norms_sum: bool, is_cross: bool) -> Sublayer[Product]:
    children = Children(module)
    query, key, value, o = children.take_all("q_proj", "k_proj", "v_proj", "out_proj")
    children.finish()
    num_heads = _number(module, "num_heads")
    head_dim = num_outputs(*plain_linears(query)) // num_heads
    spec = _spec(num_heads, head_dim, first_attribute(module, ("scaling",), head_dim**-0.5), None)
    return _attending((query, key, value), o, norm, spec, norms_sum=norms_sum, is_cross=is_cross)


def _of_t5(
    module: PreTrainedModel, encoder: nn.Module, decoder: nn.Module, head: nn.Module, *, logits_divisor: float
) -> EncoderDecoder[Product]:
    if module.dtype == torch.float16:
        raise Unsupported("float16 overflows in models of its kind")
    ends = [_t5_ends(stack) for stack in (encoder, decoder)]
    return EncoderDecoder(
        encoder=Encoder(embedding=ends[0][0], layers=_t5_layers(encoder), final_norm=ends[0][1]),
        decoder=Decoder(
            embedding=ends[1][0],
            layers=_t5_layers(decoder),
            final_norm=ends[1][1],
            head=Product(linears=plain_linears(head)),
            logits_divisor=logits_divisor,
        ),
    )


def _t5_ends(stack: nn.Module) -> tuple[Embedding, Norm | None]:
    children = Children(stack)
    children.take("block")
    table = children.take("embed_tokens")
    final_norm = _final_norm(children)
    children.finish()
    if type(table) is not nn.Embedding:
        raise Unsupported("its embedding is no table")
    return Embedding(table_VD=table.weight.detach()), final_norm


def _t5_layers(stack: nn.Module) -> Layers:
    """Layers whose attention has no bias of its own have that of the first."""
    bias: DistanceBias | None = None
    layers = []
    for block in layers_of(stack):
        parts = Children(block).take("layer")
        sublayers = []
        for part in parts.children():
            sublayer = _t5_sublayer(part, bias)
            sublayers.append(sublayer)
            if sublayer.attention is not None and not sublayer.attention.is_cross:
                bias = sublayer.attention.spec.bias
        layers.append(Layer(sublayers=tuple(sublayers)))
    return tuple(layers)


def _t5_sublayer(module: nn.Module, bias: DistanceBias | None) -> Sublayer[Product]:
    children = Children(module)
    norm = children.take("layer_norm")
    inner = children.take("SelfAttention", "EncDecAttention", "DenseReluDense")
    children.finish()
    parts = Children(inner)
    if not parts.has("q"):
        return _t5_mlp(parts, norm)
    query, key, value, o = parts.take_all("q", "k", "v", "o")
    has_own = parts.find("relative_attention_bias") is not None
    parts.finish()
    is_cross = hasattr(module, "EncDecAttention")
    if is_cross and has_own:
        raise Unsupported("its attention to the source has a bias")
    bias = _distance_bias(inner) if has_own else None if is_cross else bias
    num_heads = _number(inner, "n_heads")
    head_dim = num_outputs(*plain_linears(query)) // num_heads
    spec = _spec(num_heads, head_dim, first_attribute(inner, ("scaling",), 1.0), bias)
    return _attending((query, key, value), o, norm, spec, norms_sum=False, is_cross=is_cross)


def _t5_mlp(children: Children, norm: nn.Module) -> Sublayer[Product]:
    is_gated = children.has("wi_0")
    up = children.take_all("wi_0", "wi_1") if is_gated else children.take_all("wi")
    down, activation = children.take_all("wo", "act")
    children.finish()
    first = Product(linears=plain_linears(*up), activation=activation_of(activation), is_gated=is_gated)
    return _sublayer(first, Product(linears=plain_linears(down)), norm, norms_sum=False)


def _distance_bias(module: nn.Module) -> DistanceBias:
    """By the module's own function, which is asked far beyond the distance from which it gives one value."""
    reach = _number(module, "relative_attention_max_distance")
    with torch.inference_mode():
        compute: Any = module.compute_bias
        values_HD = compute(1, 8 * reach + 1, past_seen_tokens=4 * reach)[0, :, 0]
    near_HD = values_HD[:, 3 * reach : 5 * reach + 1]
    bias = DistanceBias.of(near_HD, reach)
    distances = torch.arange(-4 * reach, 4 * reach + 1, device=values_HD.device)
    if not torch.equal(bias.at(distances), values_HD.float()):
        raise Unsupported(f"its bias still changes {reach} tokens away")
    return bias


def _spec(num_heads: int, head_dim: int, scaling: float, bias: DistanceBias | None) -> LayerSpec:
    return LayerSpec(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        scaling=scaling,
        bias=bias,
    )


def _attending(
    qkv: tuple[nn.Module, ...], o: nn.Module, norm: nn.Module, spec: LayerSpec, *, norms_sum: bool, is_cross: bool
) -> Sublayer[Product]:
    linears = plain_linears(*qkv)
    if [num_outputs(linear) for linear in linears] != spec.projected_widths:
        raise Unsupported("its projections are not those of its queries, keys and values")
    second = Product(linears=plain_linears(o))
    attention = Attention(spec=spec, is_cross=is_cross)
    if not is_cross:
        return _sublayer(Product(linears=linears), second, norm, norms_sum=norms_sum, attention=attention)
    query, source_kv = Product(linears=linears[:1]), Product(linears=linears[1:])
    sublayer = _sublayer(query, second, norm, norms_sum=norms_sum, attention=attention)
    return dataclasses.replace(sublayer, source_kv=source_kv)


def _sublayer(
    first: Product, second: Product, norm: nn.Module, *, norms_sum: bool, attention: Attention | None = None
) -> Sublayer[Product]:
    known = norm_of(norm)
    return Sublayer(
        norm=None if norms_sum else known,
        first=first,
        attention=attention,
        second=second,
        post_norm=known if norms_sum else None,
        norms_sum=norms_sum,
    )


def _number(module: nn.Module, name: str) -> int:
    count = getattr(module, name, None)
    if not isinstance(count, int) or count < 1:
        raise Unsupported(f"its {type(module).__name__} has no {name}")
    return count
