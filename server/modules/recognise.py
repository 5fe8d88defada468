"""From transformers' module to a layout: by the names of its parts and by their numbers, never by the model's name.

What cannot be seen there, such as a factor in a forward method, is caught by `check`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from server.modules.attention import HeadNorm, LayerSpec
from server.modules.children import Children, first_attribute
from server.modules.layout import Attention, Decoder, Embedding, Layer, Product, Sublayer, num_outputs
from server.modules.parts import Norm, activation_of, norm_of
from server.modules.rotary import RotaryTables
from server.modules.unsupported import Unsupported

LAYERS = ("layers", "h")


def recognise(module: PreTrainedModel, specs: Sequence[LayerSpec], rotary_lengths: Sequence[int]) -> Decoder[Product]:
    """The layout of ``module``, or `Unsupported`. ``rotary_lengths`` are those of `RotaryTables`."""
    config = module.config.get_text_config(decoder=True)
    if _scales_far_queries(config):
        raise Unsupported("it scales its queries by their positions")
    head = module.get_output_embeddings()
    if head is None or {id(child) for child in module.children()} != {id(module.base_model), id(head)}:
        raise Unsupported("it is not one decoder and one head")
    children = Children(_trunk(module))
    embedding = _embedding(children, config)
    layers = children.take(*LAYERS)
    final_norm = _norm(children, "norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm")
    rotary_module = children.find("rotary_emb")
    children.finish()
    if not isinstance(layers, nn.ModuleList) or len(layers) != len(specs):
        raise Unsupported(f"its layers attend {len(specs)} times")
    rotary = RotaryTables(rotary_module, config, rotary_lengths, module.device)
    described = [_layer(layer, i, spec, rotary) for i, (layer, spec) in enumerate(zip(layers, specs, strict=True))]
    return Decoder(
        embedding=embedding,
        layers=tuple(described),
        final_norm=final_norm,
        head=Product(linears=plain_linears(head)),
        logits_divisor=first_attribute(config, ("logits_scaling",), 1.0),
        logits_softcap=getattr(config, "final_logit_softcapping", None),
    )


def _scales_far_queries(config: object) -> bool:
    """As Ministral 3 does from some thousand tokens on: no sequence that is short enough for a check shows it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("llama_4_scaling_beta") is not None


def layers_of(module: PreTrainedModel) -> nn.ModuleList:
    layers = Children(_trunk(module)).take(*LAYERS)
    if not isinstance(layers, nn.ModuleList):
        raise Unsupported("its layers are no list")
    return layers


def _trunk(module: PreTrainedModel) -> nn.Module:
    """What holds the layers: a decoder may be wrapped in a model that has nothing else."""
    children = dict(module.base_model.named_children())
    trunk: nn.Module = children["decoder"] if set(children) == {"decoder"} else module.base_model
    return trunk


def _embedding(children: Children, config: object) -> Embedding:
    table = children.take("embed_tokens", "wte", "embed_in")
    positions = children.find("wpe", "embed_positions")
    if not isinstance(table, nn.Embedding) or not (positions is None or isinstance(positions, nn.Embedding)):
        raise Unsupported("its embedding is no table")
    scale = getattr(table, "embed_scale", None)
    if isinstance(scale, torch.Tensor):
        scale = float(scale.to(table.weight.dtype))
    return Embedding(
        table_VD=table.weight.detach(),
        scale=first_attribute(config, ("embedding_multiplier",), 1.0) if scale is None else float(scale),
        scales_given=scale is None,
        position_table_PD=None if positions is None else positions.weight.detach(),
        position_offset=int(getattr(positions, "offset", 0)),
    )


def _layer(module: nn.Module, index: int, spec: LayerSpec, rotary: RotaryTables) -> Layer[Product]:
    children = Children(module)
    attention = children.take("self_attn", "attn", "attention")
    norms = _norms(children, is_parallel=bool(getattr(module, "use_parallel_residual", False)))
    qkv, o, head_norm, wide_norms = _attention(attention, spec)
    mlp = children.find("mlp")
    up, down = _mlp(children if mlp is None else Children(mlp))
    children.finish()
    multiplier = first_attribute(module, ("residual_multiplier",), 1.0)
    attending = Attention(
        # OPT scales its queries before it attends.
        spec=dataclasses.replace(spec, scaling=first_attribute(attention, ("scaling",), spec.scaling)),
        rotary=rotary.of_layer(index) if getattr(attention, "use_rope", True) else None,
        head_norm=head_norm,
        wide_norms=wide_norms,
    )
    return Layer(
        sublayers=(
            Sublayer(
                norm=norms.attention,
                first=qkv,
                attention=attending,
                second=o,
                post_norm=norms.attention_post,
                multiplier=multiplier,
            ),
            Sublayer(norm=norms.mlp, first=up, second=down, post_norm=norms.mlp_post, multiplier=multiplier),
        ),
        is_parallel=norms.is_parallel,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Norms:
    """The norms of a layer by what they do there."""

    attention: Norm | None
    mlp: Norm | None
    """Where the parts are parallel it may be attention's."""
    attention_post: Norm | None = None
    mlp_post: Norm | None = None
    is_parallel: bool = False


def _norms(children: Children, *, is_parallel: bool) -> _Norms:
    """Which norm stands where follows from which there are."""
    first = _norm(children, "input_layernorm", "ln_1", "self_attn_layer_norm")
    second = _norm(children, "post_attention_layernorm", "ln_2", "final_layer_norm")
    third = _norm(children, "pre_feedforward_layernorm")
    last = _norm(children, "post_feedforward_layernorm")
    if first and second and third and last and not is_parallel:
        return _Norms(attention=first, attention_post=second, mlp=third, mlp_post=last)
    if second and last and not (first or third or is_parallel):
        return _Norms(attention=None, attention_post=second, mlp=None, mlp_post=last)
    if first and not (third or last):
        return _Norms(attention=first, mlp=second or first, is_parallel=is_parallel or second is None)
    raise Unsupported("the norms of its layers are in no order that is known here")


def _norm(children: Children, *names: str) -> Norm | None:
    module = children.find(*names)
    return None if module is None else norm_of(module)


def _attention(
    module: nn.Module, spec: LayerSpec
) -> tuple[Product, Product, HeadNorm | None, tuple[Norm, Norm] | None]:
    children = Children(module)
    o = children.take("o_proj", "out_proj", "dense", "c_proj")
    order = None
    if children.has("q_proj"):
        qkv = children.take_all("q_proj", "k_proj", "v_proj")
    elif children.has("query_key_value"):
        qkv, order = children.take_all("query_key_value"), _from_interleaved(spec)
    else:
        qkv = (children.take("qkv_proj", "c_attn"),)
    norms = [_norm(children, name) for name in ("q_norm", "k_norm")]
    children.finish("rotary_emb")
    width = spec.num_heads * spec.key_dim + spec.num_kv_heads * (spec.key_dim + spec.value_dim)
    product = Product(linears=plain_linears(*qkv), order_N=order)
    if sum(num_outputs(linear) for linear in product.linears) != width:
        raise Unsupported("its projections are not those of its queries, keys and values")
    if spec.has_sinks:
        raise Unsupported("its attention has sinks")
    return product, Product(linears=plain_linears(o)), *_query_and_key_norms(norms[0], norms[1], spec)


def _query_and_key_norms(
    query: Norm | None, key: Norm | None, spec: LayerSpec
) -> tuple[HeadNorm | None, tuple[Norm, Norm] | None]:
    """Those of single heads, and those of all heads of a token."""
    if query is None or key is None:
        if query is not key:
            raise Unsupported("only its queries or only its keys have a norm")
        return None, None
    if query.weight_D.shape[0] != spec.key_dim:
        return None, (query, key)
    return _head_norm(query, key), None


def _head_norm(query: Norm, key: Norm) -> HeadNorm:
    if query.is_centred or key.is_centred or query.eps != key.eps:
        raise Unsupported("the norms of its heads are not alike")
    return HeadNorm(query_weight_D=query.weight_D, key_weight_D=key.weight_D, eps=query.eps)


def _from_interleaved(spec: LayerSpec) -> torch.Tensor:
    """Rows of all queries, keys and values where each head's three lie together, as in GPT-NeoX."""
    if spec.num_heads != spec.num_kv_heads:
        raise Unsupported("it packs the projections of grouped heads")
    rows = torch.arange(3 * spec.num_heads * spec.key_dim)
    return rows.view(spec.num_heads, 3, spec.key_dim).transpose(0, 1).reshape(-1)


def _mlp(children: Children) -> tuple[Product, Product]:
    activation = activation_of(children.take("act_fn", "activation_fn", "act"))
    is_gated = True
    if children.has("gate_proj"):
        up = children.take_all("gate_proj", "up_proj")
    elif children.has("gate_up_proj"):
        up = children.take_all("gate_up_proj")
    else:
        up, is_gated = (children.take("fc1", "c_fc", "dense_h_to_4h", "up_proj"),), False
    down = children.take("down_proj", "fc2", "c_proj", "dense_4h_to_h")
    children.finish()
    product = Product(linears=plain_linears(*up), activation=activation, is_gated=is_gated)
    return product, Product(linears=plain_linears(down))


def plain_linears(*modules: nn.Module) -> tuple[nn.Module, ...]:
    """Exactly the two known classes: a subclass may do more than a product."""
    for module in modules:
        if type(module) not in (nn.Linear, Conv1D):
            raise Unsupported(f"its {type(module).__name__} is no plain product")
    return modules
