"""What a decoder computes, as plain tensors and numbers; knows neither transformers' modules nor how to run it.

Dimension key
    T  tokens
    V  vocabulary size
    N  outputs of a product
    D  width of the hidden states
    P  positions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.nn import functional

from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.modules.parts import Norm
from server.native.linear import Linear

Weights = TypeVar("Weights")
"""`Product` before packing, `Linear` after."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product whose weight still lies in the module: that of several linears, one below another."""

    linears: tuple[nn.Module, ...]
    """`nn.Linear`, or GPT-2's transposed `Conv1D`."""
    order_N: Tensor | None = None
    """Row n of the product is row ``order_N[n]`` of the linears'."""
    activation: str | None = None
    is_gated: bool = False


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Token ids and positions to hidden states."""

    table_VD: Tensor | Linear
    """The head, where the two share a weight and its packed form can be read."""
    scale: float = 1.0
    position_table_PD: Tensor | None = None
    position_offset: int = 0

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        table_VD = self.table_VD
        if isinstance(table_VD, Linear):
            h_TD = table_VD.rows(token_ids_T)
        else:
            h_TD = functional.embedding(token_ids_T, table_VD)
        if self.scale != 1.0:
            h_TD = h_TD * self.scale
        if self.position_table_PD is not None:
            h_TD = h_TD + self.position_table_PD[positions_T + self.position_offset]
        return h_TD


@dataclass(frozen=True, kw_only=True)
class Layer(Generic[Weights]):
    """One decoder layer."""

    attention_norm: Norm | None
    qkv: Weights
    wide_norms: tuple[Norm, Norm] | None
    """Of all queries of a token, and of all its keys."""
    head_norm: HeadNorm | None
    rotary: Rotary | None
    o: Weights
    attention_post_norm: Norm | None
    """Of what attention adds to the hidden states."""
    is_parallel: bool
    """The MLP reads what attention read, not what attention has changed."""
    mlp_norm: Norm | None
    """None where the MLP is parallel and reads attention's norm."""
    up: Weights
    down: Weights
    mlp_post_norm: Norm | None
    residual_multiplier: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Decoder(Generic[Weights]):
    """A whole decoder."""

    specs: tuple[LayerSpec, ...]
    embedding: Embedding
    layers: tuple[Layer[Weights], ...]
    final_norm: Norm | None
    head: Weights
    logits_divisor: float = 1.0
    logits_softcap: float | None = None


def num_outputs(linear: nn.Module) -> int:
    """N of one of a product's linears."""
    outputs = linear.nf if hasattr(linear, "nf") else linear.out_features
    assert isinstance(outputs, int)
    return outputs
