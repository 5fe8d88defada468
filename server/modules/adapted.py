"""From the linear layers of a module, by which adapters are saved, to the packed products that compute them.

Dimension key: K inputs of a layer, N its outputs, R rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.modules.layout import Decoder, Embedding, Layer, Product, num_outputs
from server.native.adapted import Deltas, embedded
from server.native.deltas import Change, Delta, TableDelta
from server.native.linear import Linear

ProductT = TypeVar("ProductT")


class NotShared(Exception):
    """Why an adapter cannot share the worker of its base, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """What an adapter changes of one linear layer, in float32: ``out * (W (in * x) + B A x) + bias``.

    The input embedding is such a layer, K its tokens. It has a weight, A and B alone.
    IA3's ``out_N`` multiplies the bias too. With ``magnitude_N``, DoRA's, ``out`` is what gives each row of ``W + B A``
    that length, and multiplies ``B A x`` too.
    """

    a_RK: Tensor | None = None
    b_NR: Tensor | None = None
    in_K: Tensor | None = None
    out_N: Tensor | None = None
    magnitude_N: Tensor | None = None
    weight_NK: Tensor | None = None
    """In place of the layer's own, and to this is applied what else changes."""
    bias_N: Tensor | None = None
    """In place of the layer's own."""
    added_N: Tensor | None = None
    """To the layer's own bias."""

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in vars(self).values() if tensor is not None)

    def resolved(self, weight_NK: Tensor, bias_N: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scale of the layer's outputs, what is added to them, and B with that scale. In float32."""
        scale_N, added_N, b_NR = torch.ones_like(bias_N), torch.zeros_like(bias_N), self.b_NR
        if self.magnitude_N is not None and b_NR is not None and self.a_RK is not None:
            scale_N = self.magnitude_N / torch.linalg.vector_norm(weight_NK + b_NR @ self.a_RK, dim=1)
            b_NR = b_NR * scale_N[:, None]
        if self.out_N is not None:
            scale_N, added_N = self.out_N, (self.out_N - 1) * bias_N
        if self.bias_N is not None:
            added_N = added_N + self.bias_N - bias_N
        if self.added_N is not None:
            added_N = added_N + self.added_N
        return scale_N, added_N, b_NR

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the layer with this change."""
        scale_N, added_N, b_NR = self.resolved(
            weight_NK, weight_NK.new_zeros(len(weight_NK)) if bias_N is None else bias_N
        )
        merged_NK = weight_NK * scale_N[:, None]
        if self.in_K is not None:
            merged_NK = merged_NK * self.in_K
        if b_NR is not None and self.a_RK is not None:
            merged_NK = merged_NK + b_NR @ self.a_RK
        return merged_NK, added_N if bias_N is None else bias_N + added_N


@dataclass(frozen=True, kw_only=True)
class Part:
    """One linear layer in a packed product: rows ``start`` to ``stop - 1``, counted before ``order_N``."""

    product: Linear
    start: int
    stop: int
    order_N: Tensor | None = None

    def own(self, rows: Tensor) -> Tensor:
        """Of the product's rows, those of the layer."""
        if self.order_N is not None:
            rows = rows[self.order_N.argsort().to(rows.device)]
        return rows[self.start : self.stop]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The input embedding, which adds up what adapters change of it after `prepare`."""

    rows: Callable[[], Tensor]
    """``[V, D]``, in the runner's type of numbers."""
    prepare: Callable[[], None]


Parts = dict[str, Part | Table]
"""What adapters can change of a runner, by name in the module."""


def whole_parts(module: PreTrainedModel) -> Parts:
    """Of a module whose linears were replaced by packed ones: each is a product of its own."""
    products = {
        name: Part(product=part, start=0, stop=part.out_features)
        for name, part in module.named_modules()
        if isinstance(part, Linear)
    }
    return products | _module_table(module)


def _module_table(module: PreTrainedModel) -> Parts:
    """Empty where the embedding does more than to look rows up."""
    embedding = module.get_input_embeddings()
    if type(embedding) is not nn.Embedding:
        return {}

    def change(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return embedded(args[0].flatten(), out.flatten(0, -2)).view_as(out)

    is_hooked = False

    def prepare() -> None:
        nonlocal is_hooked
        if not is_hooked:
            embedding.register_forward_hook(change)
        is_hooked = True

    return {_name_of(module, embedding): Table(rows=embedding.weight.detach, prepare=prepare)}


def _name_of(module: nn.Module, part: nn.Module) -> str:
    names: dict[int, str] = {id(each): name for name, each in module.named_modules()}
    return names[id(part)]


def _embedding_table(embedding: Embedding) -> Table:
    table = embedding.table_VD
    rows = table.dense_weight if isinstance(table, Linear) else lambda: table
    return Table(rows=rows, prepare=lambda: None)


def decoder_parts(module: PreTrainedModel, layout: Decoder[Product], decoder: Decoder[Linear]) -> Parts:
    """``layout`` is that of ``module``, ``decoder`` what was made of it."""
    products = _named(module, zip(layout.products(), decoder.products(), strict=True))
    return {_name_of(module, module.get_input_embeddings()): _embedding_table(decoder.embedding), **products}


def layer_parts(module: nn.Module, layers: Sequence[Layer[Product]], packed: Sequence[Layer[Linear]]) -> Parts:
    """``layers`` are those of ``module``, ``packed`` what was made of them."""
    return _named(module, zip(_products(layers), _products(packed), strict=True))


def _products(layers: Sequence[Layer[ProductT]]) -> Iterator[ProductT]:
    return (product for layer in layers for sublayer in layer.sublayers for _, product in sublayer.products)


def _named(module: nn.Module, products: Iterable[tuple[Product, Linear]]) -> Parts:
    names = {id(part): name for name, part in module.named_modules()}
    return {names[id(linear)]: part for product, packed in products for linear, part in _parts(product, packed)}


def _parts(product: Product, packed: Linear) -> Iterator[tuple[nn.Module, Part]]:
    start = 0
    for linear in product.linears:
        stop = start + num_outputs(linear)
        yield linear, Part(product=packed, start=start, stop=stop, order_N=product.order_N)
        start = stop


def number(products: Iterable[Linear]) -> None:
    """Give products the numbers by which adapters know them."""
    for i, linear in enumerate(products):
        linear.number = i


def numbered(parts: Parts) -> Parts:
    """The same parts; each of their products has a number."""
    number(part.product for part in parts.values() if isinstance(part, Part))
    return parts


def packed_changes(parts: Mapping[str, Part | Table], changes: Mapping[str, LayerChange]) -> Deltas:
    """An adapter's changes by name of the layer, packed for the products. Raises `NotShared` where one does not fit."""
    by_product: dict[int, list[tuple[Part, LayerChange]]] = {}
    table: TableDelta | None = None
    for name, change in changes.items():
        part = parts.get(name)
        if part is not None:
            _check_finite(name, change, torch.float32 if isinstance(part, Table) else part.product.dtype)
        if isinstance(part, Table):
            table = _packed_table(name, part, change)
            continue
        if part is None or part.product.number is None:
            raise NotShared(f"{name} is no product of this executor")
        by_product.setdefault(part.product.number, []).append((part, _fitting(name, part, change)))
    deltas = {
        number: Delta(changed[0][0].product, _joined(changed[0][0].product, changed))
        for number, changed in by_product.items()
    }
    products = (part.product for part in parts.values() if isinstance(part, Part))
    num_products = 1 + max((product.number or 0 for product in products), default=0)
    return Deltas(deltas, num_products, table)


def _check_finite(name: str, change: LayerChange, dtype: torch.dtype) -> None:
    """Finite numbers of a file may be none once they are multiplied, or in the base's type."""
    for tensor in vars(change).values():
        if tensor is not None and not tensor.to(dtype).isfinite().all():
            raise NotShared(f"what it changes of {name} is not finite in {str(dtype).removeprefix('torch.')}")


def _packed_table(name: str, table: Table, change: LayerChange) -> TableDelta | None:
    """None where nothing is changed: PEFT saves the model's own table beside an adapter of it."""
    rows_VD = table.rows()
    _check_size(name, (rows_VD.shape[1], rows_VD.shape[0]), change)
    own_VD = None if change.weight_NK is None else change.weight_NK.t().to(rows_VD.dtype).to(rows_VD.device)
    if own_VD is not None and torch.equal(own_VD, rows_VD):
        own_VD = None
    factors = None
    if change.a_RK is not None and change.b_NR is not None:
        factors = change.a_RK.t().to(rows_VD.device), change.b_NR.to(rows_VD.device)
    if own_VD is None and factors is None:
        return None
    table.prepare()
    return TableDelta(rows_VD.dtype, factors=factors, table_VD=own_VD)


def _fitting(name: str, part: Part, change: LayerChange) -> LayerChange:
    """Without a weight that is the layer's own."""
    _check_size(name, (part.stop - part.start, part.product.in_features), change)
    weight_NK = change.weight_NK
    if weight_NK is not None:
        own_NK = part.own(part.product.dense_weight())
        if torch.equal(own_NK, weight_NK.to(own_NK.device, own_NK.dtype)):
            return replace(change, weight_NK=None)
    return change


def _check_size(name: str, size_NK: tuple[int, int], change: LayerChange) -> None:
    for sizes, tensors in (
        (size_NK[:1], (change.b_NR, change.weight_NK, change.out_N, change.magnitude_N, change.bias_N, change.added_N)),
        (size_NK[1:], (change.in_K, *(None if part is None else part.t() for part in (change.a_RK, change.weight_NK)))),
    ):
        for tensor in tensors:
            if tensor is not None and tensor.shape[:1] != torch.Size(sizes):
                raise NotShared(f"its {name} has {len(tensor)} places where the base has {sizes[0]}")


def _joined(product: Linear, changed: Sequence[tuple[Part, LayerChange]]) -> Change:
    """Of all layers of a product: their A below one another, of B each layer's rows."""
    scale_N, added_N = torch.ones(product.num_rows), torch.zeros(product.num_rows)
    order_N = changed[0][0].order_N
    if any(change.weight_NK is not None for _, change in changed):
        return _whole(product, changed)
    factors: list[tuple[Part, Tensor, Tensor]] = []
    for part, change in changed:
        rows = slice(part.start, part.stop)
        scale_N[rows], added_N[rows], b_NR = _resolved(part, change)
        if b_NR is not None and change.a_RK is not None:
            factors.append((part, change.a_RK, b_NR))
    return Change(
        a_RK=torch.cat([a_RK for _, a_RK, _ in factors]) if factors else None,
        b_NR=_ordered(_stacked(product.num_rows, factors), order_N) if factors else None,
        in_scale_K=_input_scale(product, changed),
        scale_N=None if bool((scale_N == 1).all()) else _ordered(scale_N, order_N),
        added_N=None if not bool(added_N.any()) else _ordered(added_N, order_N),
    )


def _whole(product: Linear, changed: Sequence[tuple[Part, LayerChange]]) -> Change:
    """The weight of all layers of a product, with all that changes them."""
    order_N = changed[0][0].order_N
    everything = Part(product=product, start=0, stop=product.num_rows, order_N=order_N)
    weight_NK = everything.own(product.dense_weight()).float().cpu().clone()
    added_N = torch.zeros(product.num_rows)
    for part, change in changed:
        rows = slice(part.start, part.stop)
        own_NK = weight_NK[rows] if change.weight_NK is None else change.weight_NK
        scale_N, added_N[rows], b_NR = _resolved(part, change)
        own_NK = scale_N[:, None] * own_NK * (1 if change.in_K is None else change.in_K)
        if b_NR is not None and change.a_RK is not None:
            own_NK = own_NK + b_NR @ change.a_RK
        weight_NK[rows] = own_NK
    return Change(
        whole_NK=_ordered(weight_NK, order_N),
        added_N=None if not bool(added_N.any()) else _ordered(added_N, order_N),
    )


def _resolved(part: Part, change: LayerChange) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scale of the layer's outputs, what is added to them, and B with that scale."""
    bias, weight_NK = part.product.bias, torch.empty(0)
    if change.magnitude_N is not None:
        weight_NK = part.own(part.product.dense_weight()).float().cpu()
    bias_N = torch.zeros(part.stop - part.start) if bias is None else part.own(bias.float().cpu())
    return change.resolved(weight_NK, bias_N)


def _stacked(num_rows: int, factors: Sequence[tuple[Part, Tensor, Tensor]]) -> Tensor:
    """B of the product: each layer's rows read the layer's own part of A x."""
    b_NR = torch.zeros(num_rows, sum(a_RK.shape[0] for _, a_RK, _ in factors))
    column = 0
    for part, a_RK, own_NR in factors:
        b_NR[part.start : part.stop, column : column + a_RK.shape[0]] = own_NR
        column += a_RK.shape[0]
    return b_NR


def _ordered(rows: Tensor, order_N: Tensor | None) -> Tensor:
    return rows if order_N is None else rows[order_N.to(rows.device)]


def _input_scale(product: Linear, changed: Sequence[tuple[Part, LayerChange]]) -> Tensor | None:
    """Raises `NotShared` where layers that share an input scale it in different ways."""
    scales = [change.in_K for _, change in changed]
    if all(scale is None for scale in scales):
        return None
    covers_all = sum(part.stop - part.start for part, _ in changed) == product.num_rows
    first = scales[0]
    if first is None or not covers_all or any(scale is None or not torch.equal(scale, first) for scale in scales):
        raise NotShared("it scales the input of some layers that are one product here, and not of the others")
    return first
