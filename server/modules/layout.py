"""What a transformer computes, as plain tensors and numbers; knows neither transformers' modules nor how to run it.

Dimension key
    T  tokens
    V  vocabulary size
    N  outputs of a product
    D  width of the hidden states
    P  positions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.modules.attention import HeadNorm, LayerSpec, Rotary
from server.modules.parts import Norm
from server.native.adapted import embedded
from server.native.linear import Linear
from server.native.packing import NativeWeight

Weights = TypeVar("Weights", covariant=True)
"""`Product` before packing, `Packed` after."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product whose weight still lies in the module: that of several linears, one below another."""

    linears: tuple[nn.Module, ...]
    """`nn.Linear`, or GPT-2's transposed `Conv1D`."""
    order_N: Tensor | None = None
    """Row n of the product is row ``order_N[n]`` of the linears'."""
    activation: str | None = None
    is_gated: bool = False
    bias_N: Tensor | None = None
    """Added to the product where none of the linears has a bias."""


class Packed(Protocol):
    """What a product is made into before it runs: a `Linear`, or torch alone for proofs."""

    in_features: int
    out_features: int
    dtype: torch.dtype
    """Of its input."""
    native: NativeWeight | None
    """Where our own kernels have it."""
    number: int | None
    """By which adapters know it."""

    @property
    def is_row_invariant(self) -> bool: ...

    def __call__(self, x: Tensor, residual: Tensor | None = None, *, out_float: bool = False) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Token ids and positions to hidden states."""

    table_VD: Tensor | Linear
    """The head, where the two share a weight and its packed form can be read."""
    scale: float = 1.0
    scales_given: bool = False
    """Whether ``scale`` is for what is given in place of the table's rows, too."""
    position_table_PD: Tensor | None = None
    position_offset: int = 0
    norm: Norm | None = None
    """Of the sum of both."""

    @property
    def num_tokens(self) -> int:
        """V"""
        return self.table_VD.out_features if isinstance(self.table_VD, Linear) else self.table_VD.shape[0]

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, given: Sequence[tuple[slice, Tensor]] = ()) -> Tensor:
        """``given`` are rows ``[N, D]`` in place of the table's, each with its places in T."""
        table_VD = self.table_VD
        if isinstance(table_VD, Linear):
            h_TD = table_VD.rows(token_ids_T)
        else:
            h_TD = functional.embedding(token_ids_T, table_VD)
        h_TD = embedded(token_ids_T, h_TD)
        if self.scale != 1.0 and not self.scales_given:
            h_TD = h_TD * self.scale
        for places, rows_ND in given:
            h_TD[places] = rows_ND
        if self.scale != 1.0 and self.scales_given:
            h_TD = h_TD * self.scale
        if self.position_table_PD is not None:
            h_TD = h_TD + self.position_table_PD[positions_T + self.position_offset]
        return h_TD if self.norm is None else self.norm(h_TD)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What stands between the two products of a sublayer that attends."""

    spec: LayerSpec
    rotary: Rotary | None = None
    head_norm: HeadNorm | None = None
    wide_norms: tuple[Norm, Norm] | None = None
    """Of all queries of a token, and of all its keys."""
    is_cross: bool = False
    """Whether keys and values are those of a source, which an encoder has computed."""


@dataclass(frozen=True, kw_only=True)
class Sublayer(Generic[Weights]):
    """Attention or an MLP: two products, and what they add to the hidden states."""

    norm: Norm | None = None
    """Of the hidden states that it reads; None where it reads them as they are."""
    first: Weights
    """To queries, keys and values, to queries alone where those are a source's; or the MLP's way up, with its
    activation and gate.
    """
    source_kv: Weights | None = None
    """From the encoder's results to a source's keys and values."""
    attention: Attention | None = None
    """None for an MLP, whose products follow one another."""
    second: Weights
    post_norm: Norm | None = None
    norms_sum: bool = False
    """Whether ``post_norm`` is of the sum, as in BERT; else of what is added to the hidden states."""
    multiplier: float = 1.0
    """Of what is added."""

    @property
    def products(self) -> tuple[tuple[str, Weights], ...]:
        """By the names that messages give them."""
        if self.source_kv is not None:
            return ("q", self.first), ("source's kv", self.source_kv), ("o", self.second)
        first, second = ("up", "down") if self.attention is None else ("qkv", "o")
        return (first, self.first), (second, self.second)


@dataclass(frozen=True, kw_only=True)
class Layer(Generic[Weights]):
    """Sublayers one after another, or all of what the first one reads."""

    sublayers: tuple[Sublayer[Weights], ...]
    is_parallel: bool = False

    @property
    def spec(self) -> LayerSpec:
        """Of its attention to its own sequence."""
        attentions = (part.attention for part in self.sublayers if part.attention is not None)
        (spec,) = (attention.spec for attention in attentions if not attention.is_cross)
        return spec

    @property
    def source_kv(self) -> Weights | None:
        """From the encoder's results to the keys and values that this layer attends to, None where it does not."""
        return next((part.source_kv for part in self.sublayers if part.source_kv is not None), None)


@dataclass(frozen=True, kw_only=True)
class Decoder(Generic[Weights]):
    """A whole decoder."""

    embedding: Embedding
    layers: tuple[Layer[Weights], ...]
    final_norm: Norm | None
    head: Weights
    logits_divisor: float = 1.0
    logits_softcap: float | None = None

    @property
    def specs(self) -> tuple[LayerSpec, ...]:
        return tuple(layer.spec for layer in self.layers)

    def products(self) -> Iterator[Weights]:
        for layer in self.layers:
            for sublayer in layer.sublayers:
                yield from (product for _, product in sublayer.products)
        yield self.head


@dataclass(frozen=True, kw_only=True)
class Encoder(Generic[Weights]):
    """Token ids to hidden states, every token seeing all others of its text."""

    embedding: Embedding
    layers: tuple[Layer[Weights], ...]
    final_norm: Norm | None

    def products(self) -> Iterator[Weights]:
        for layer in self.layers:
            for sublayer in layer.sublayers:
                yield from (product for _, product in sublayer.products)


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Generic[Weights]):
    """The decoder's layers attend to what the encoder makes of a source."""

    encoder: Encoder[Weights]
    decoder: Decoder[Weights]


def num_outputs(linear: nn.Module) -> int:
    """N of one of a product's linears."""
    outputs = linear.nf if hasattr(linear, "nf") else linear.out_features
    assert isinstance(outputs, int)
    return outputs
