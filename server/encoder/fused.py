"""The layers of BERT and its kin in seven calls each: merged products, our attention, norms that add.

A layer is recognised by the names and kinds of its parts; that it computes what we think is proven by the caller.
The stream of every token's vector stays in float32; products and attention run in the dtype of their weights.

Dimension key
    B  texts in the step
    T  tokens of all texts
    H  hidden size
    N  heads
    D  width of a head
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from server.encoder.attention import KERNEL_DTYPES, attend, current_texts
from server.encoder.texts import Texts
from server.native import kernels

Product = Callable[[Tensor], Tensor]


class MakeProduct(Protocol):
    """A product from its weight ``[out, in]`` and bias; ``is_summed``: the stream takes its result, best in float32."""

    def __call__(
        self, weight_NK: Tensor, bias_N: Tensor, *, activation: str | None = None, is_summed: bool = False
    ) -> Product: ...


LAYOUTS = (
    {
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "o": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense", "down": "output.dense", "norm": "output.LayerNorm",
        "activation": "intermediate.intermediate_act_fn", "heads": "attention.self.num_attention_heads",
    },
    {
        "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin",
        "o": "attention.out_lin", "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1", "down": "ffn.lin2", "norm": "output_layer_norm",
        "activation": "ffn.activation", "heads": "attention.n_heads",
    },
)  # fmt: skip
"""Where the parts of a layer are: of BERT and most of its kin, of DistilBERT."""

LINEARS = ("q", "k", "v", "o", "up", "down")
NORMS = ("attention_norm", "norm")
ACTIVATIONS = {type(ACT2FN[name]): name for name in ("gelu", "relu", "silu")}


@dataclass(frozen=True)
class LayerParts:
    """One layer of the module, its parts by our names."""

    linears: dict[str, nn.Linear]
    norms: dict[str, nn.LayerNorm]
    activation: str
    num_heads: int


def recognise(core: nn.Module) -> list[LayerParts] | None:
    """The layers of ``core``; None where it is more or other than a list of layers that are laid out like BERT's."""
    children = dict(core.named_children())
    layers = next(iter(children.values()), None)
    if len(children) != 1 or not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    recognised = [_recognise_layer(layer) for layer in layers]
    return None if None in recognised else [parts for parts in recognised if parts is not None]


def _recognise_layer(layer: nn.Module) -> LayerParts | None:
    for layout in LAYOUTS:
        found = {part: _at(layer, path) for part, path in layout.items()}
        linears = {part: found[part] for part in LINEARS if type(found[part]) is nn.Linear}
        norms = {part: found[part] for part in NORMS if type(found[part]) is nn.LayerNorm}
        activation = ACTIVATIONS.get(type(found["activation"]))
        if len(linears) < len(LINEARS) or len(norms) < len(NORMS) or activation is None:
            continue
        if all(linear.bias is not None for linear in linears.values()) and all(
            norm.bias is not None for norm in norms.values()
        ):
            return LayerParts(linears, norms, activation, int(found["heads"]))
    return None


def _at(layer: nn.Module, path: str) -> Any:
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


class FusedLayers(nn.Module):
    """Takes the place of the module that holds the layers; texts lie end to end.

    ``reads_first_only``: whatever comes after reads each text's first token alone, and the last layer makes no more.
    """

    def __init__(self, layers: Sequence[FusedLayer], *, reads_first_only: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dtype = layers[0].dtype
        self.reads_first_only = reads_first_only

    def forward(self, hidden_states: Tensor, *_args: Any, **_options: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        texts = current_texts()
        stream_TH = hidden_states[0].float().clone(memory_format=torch.contiguous_format)
        x_TH = stream_TH.to(self.dtype)
        for layer in self.layers[:-1]:
            x_TH, stream_TH = layer(x_TH, stream_TH, texts, is_first_only=False)
        _, stream_TH = self.layers[-1](x_TH, stream_TH, texts, is_first_only=self.reads_first_only)
        # One token a text is a padded batch of the length 1.
        hidden = stream_TH[:, None] if self.reads_first_only else stream_TH[None]
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden.to(hidden_states.dtype))


class FusedLayer(nn.Module):
    """One layer; a change of its input is a new tensor, the stream is changed in place."""

    def __init__(self, parts: LayerParts, make: MakeProduct, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._num_heads = parts.num_heads
        linears = parts.linears
        merged = [torch.cat([getattr(linears[part], name) for part in "qkv"]) for name in ("weight", "bias")]
        self._qkv = make(merged[0], merged[1])
        self._o, self._down = (make(linears[part].weight, linears[part].bias, is_summed=True) for part in ("o", "down"))
        self._up = make(linears["up"].weight, linears["up"].bias, activation=parts.activation)
        self._norms = nn.ModuleList(parts.norms.values())
        """Whose weights `AddNorm` reads: a part of this module like its products."""
        self._attention_norm, self._norm = (AddNorm(parts.norms[part], dtype) for part in NORMS)

    def forward(self, x_TH: Tensor, stream_TH: Tensor, texts: Texts, *, is_first_only: bool) -> tuple[Tensor, Tensor]:
        qkv = self._qkv(x_TH)
        q_TND, k_TND, v_TND = qkv.view(len(x_TH), 3, self._num_heads, -1).unbind(1)
        if is_first_only:
            q_TND, stream_TH = q_TND[texts.first_places], stream_TH[texts.first_places]
        scaling = q_TND.shape[-1] ** -0.5
        attended = attend(q_TND, k_TND, v_TND, texts, scaling=scaling, is_first_only=is_first_only)
        x_TH = self._attention_norm(self._o(attended.flatten(1)), stream_TH)
        return self._norm(self._down(self._up(x_TH)), stream_TH), stream_TH


class AddNorm:
    """``stream = norm(stream + x)`` in place, in float32; the result is the stream in the dtype of the products."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self._weight_H, self._bias_H = norm.weight.detach().float(), norm.bias.detach().float()
        self._eps = norm.eps
        self._dtype = dtype
        is_known = dtype in KERNEL_DTYPES and len(self._weight_H) % 16 == 0
        self._has_kernel = is_known and norm.weight.is_cpu and kernels.has("encoder_add_norm")

    def __call__(self, x_TH: Tensor, stream_TH: Tensor) -> Tensor:
        if not self._has_kernel or x_TH.dtype not in KERNEL_DTYPES:
            stream_TH.add_(x_TH)
            normed = functional.layer_norm(stream_TH, stream_TH.shape[-1:], self._weight_H, self._bias_H, self._eps)
            return stream_TH.copy_(normed).to(self._dtype)
        is_copied = self._dtype is not torch.float32
        out_TH = torch.empty(stream_TH.shape, dtype=self._dtype) if is_copied else stream_TH
        kernels.get("encoder_add_norm")(
            x_TH.data_ptr(), stream_TH.data_ptr(), out_TH.data_ptr() if is_copied else 0,
            self._weight_H.data_ptr(), self._bias_H.data_ptr(),
            *stream_TH.shape, self._eps, x_TH.dtype is torch.bfloat16,
        )  # fmt: skip
        return out_TH
