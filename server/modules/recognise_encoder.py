"""From transformers' layers of an encoder to layouts, as `recognise` does it for decoders.

Whether the layers compute what their parts say is for the caller to prove.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from server.modules.attention import LayerSpec
from server.modules.children import Children
from server.modules.layout import Attention, Layer, Product, Sublayer, num_outputs
from server.modules.parts import Norm, activation_of, norm_of
from server.modules.recognise import plain_linears
from server.modules.unsupported import Unsupported


class _Parts(NamedTuple):
    """Of one layer."""

    num_heads: int
    qkv: tuple[nn.Module, ...]
    o: nn.Module
    attention_norm: nn.Module
    up: nn.Module
    activation: nn.Module
    down: nn.Module
    norm: nn.Module


def recognise_layers(core: nn.Module) -> list[Layer[Product]]:
    """The layers of ``core``. Raises `Unsupported` where it is more or other than a list of layers that are known."""
    children = list(core.children())
    if len(children) != 1 or not isinstance(children[0], nn.ModuleList) or not len(children[0]):
        raise Unsupported("its layers are no list")
    return [_layer(module) for module in children[0]]


def _layer(module: nn.Module) -> Layer[Product]:
    children = Children(module)
    parts = _of_distilbert(children) if children.has("ffn") else _of_bert(children)
    children.finish()
    qkv = plain_linears(*parts.qkv)
    width = num_outputs(qkv[0])
    head_dim = width // parts.num_heads
    if any(num_outputs(linear) != parts.num_heads * head_dim for linear in qkv):
        raise Unsupported("its projections are not those of its queries, keys and values")
    spec = LayerSpec(
        num_heads=parts.num_heads,
        num_kv_heads=parts.num_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        scaling=head_dim**-0.5,
    )
    attention = Sublayer(
        first=Product(linears=qkv),
        attention=Attention(spec=spec),
        second=Product(linears=plain_linears(parts.o)),
        post_norm=_norm(parts.attention_norm),
        norms_sum=True,
    )
    mlp = Sublayer(
        first=Product(linears=plain_linears(parts.up), activation=activation_of(parts.activation)),
        second=Product(linears=plain_linears(parts.down)),
        post_norm=_norm(parts.norm),
        norms_sum=True,
    )
    return Layer(sublayers=(attention, mlp))


def _of_bert(children: Children) -> _Parts:
    """BERT and most of its kin."""
    attention = Children(children.take("attention"))
    inner, after = attention.take("self"), Children(attention.take("output"))
    widening, output = Children(children.take("intermediate")), Children(children.take("output"))
    projections = Children(inner)
    parts = _Parts(
        num_heads=_num_heads(inner, "num_attention_heads"),
        qkv=projections.take_all("query", "key", "value"),
        o=after.take("dense"),
        attention_norm=after.take("LayerNorm"),
        up=widening.take("dense"),
        activation=widening.take("intermediate_act_fn"),
        down=output.take("dense"),
        norm=output.take("LayerNorm"),
    )
    for each in (attention, projections, after, widening, output):
        each.finish()
    return parts


def _of_distilbert(children: Children) -> _Parts:
    inner = children.take("attention")
    attention, mlp = Children(inner), Children(children.take("ffn"))
    parts = _Parts(
        num_heads=_num_heads(inner, "n_heads"),
        qkv=attention.take_all("q_lin", "k_lin", "v_lin"),
        o=attention.take("out_lin"),
        attention_norm=children.take("sa_layer_norm"),
        up=mlp.take("lin1"),
        activation=mlp.take("activation"),
        down=mlp.take("lin2"),
        norm=children.take("output_layer_norm"),
    )
    for each in (attention, mlp):
        each.finish()
    return parts


def _num_heads(module: nn.Module, name: str) -> int:
    count = getattr(module, name, None)
    if not isinstance(count, int) or count < 1:
        raise Unsupported(f"its {type(module).__name__} has no {name}")
    return count


def _norm(module: nn.Module) -> Norm:
    norm = norm_of(module)
    if not norm.is_centred:
        raise Unsupported(f"its {type(module).__name__} is no layer norm")
    return norm
