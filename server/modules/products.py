"""Weights of a module into packed products, and back.

The module's parameter is released as soon as its packed product has been checked, so that a model is in memory once and
one layer twice. The way back exists for a model that fails a check when some of its layers are released: a packed
product can give its weight, so nothing has to be kept for it. After `quantised` there is no way back.

Dimension key: N outputs of a product, K its inputs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from server.modules.attention import Rotary
from server.modules.layout import Layer, Product, Sublayer, num_outputs
from server.native.linear import Linear
from server.native.packing import NativeWeight
from server.native.reference import ACTIVATIONS
from server.number_types import Quantize

PackedT = TypeVar("PackedT")


def pack(product: Product, dtype: torch.dtype | None = None, quantize: Quantize = "none") -> Linear:
    """In ``dtype``, or in the module's own. The module keeps its weights.

    Raises ValueError for a weight that cannot be quantised.
    """
    weight_NK, bias_N = joined(product)
    if dtype is not None:
        weight_NK = weight_NK.to(dtype)
    options: dict[str, Any] = {"activation": product.activation, "is_gated": product.is_gated}
    return Linear(weight_NK.contiguous(), bias_N, quantize=quantize, **options)


def joined(product: Product) -> tuple[Tensor, Tensor | None]:
    """Weight ``[N, K]`` and bias of all linears, in the product's order."""
    weight_NK = _joined([_weight(linear) for linear in product.linears])
    bias_N = _bias(product)
    if product.order_N is None:
        return weight_NK, bias_N
    order_N = product.order_N.to(weight_NK.device)
    return weight_NK[order_N], None if bias_N is None else bias_N[order_N]


def pack_layer(layer: Layer[Product]) -> Layer[Linear]:
    return with_products(layer, pack)


def with_products(layer: Layer[Product], make: Callable[[Product], PackedT]) -> Layer[PackedT]:
    """The layer with what ``make`` makes of its products."""
    sublayers = [
        Sublayer(
            **{field.name: getattr(sublayer, field.name) for field in dataclasses.fields(sublayer)}
            | {
                "first": make(sublayer.first),
                "source_kv": None if sublayer.source_kv is None else make(sublayer.source_kv),
                "second": make(sublayer.second),
            }
        )
        for sublayer in layer.sublayers
    ]
    return Layer(sublayers=tuple(sublayers), is_parallel=layer.is_parallel)


def is_tied(head: Product, table_VD: Tensor | Linear) -> bool:
    """Whether the head's weight is the embedding's table."""
    weight = head.linears[0].get_parameter("weight")
    return isinstance(table_VD, Tensor) and weight.data_ptr() == table_VD.data_ptr() and weight.shape == table_VD.shape


def quantised_layer(layer: Layer[Linear], products: Layer[Product], quantize: Quantize) -> Layer[Linear]:
    """Of ``products`` only what follows them is read."""
    linears = iter([linear for sublayer in layer.sublayers for _, linear in sublayer.products])
    return with_products(products, lambda product: quantised(next(linears), product, quantize))


def quantised(linear: Linear, product: Product, quantize: Quantize) -> Linear:
    return Linear(
        linear.dense_weight(), linear.bias, activation=product.activation, is_gated=product.is_gated, quantize=quantize
    )


class PlainProduct:
    """In float32 and by torch alone: for proofs."""

    dtype: torch.dtype = torch.float32
    native: NativeWeight | None = None
    number: int | None = None
    is_row_invariant = False

    def __init__(self, product: Product) -> None:
        assert not product.is_gated, "encoders have no gates"
        weight_NK, bias_N = joined(product)
        self._weight_NK, self._bias_N = weight_NK.float(), None if bias_N is None else bias_N.float()
        self._activation = product.activation
        self.out_features, self.in_features = weight_NK.shape

    def __call__(self, x: Tensor, residual: Tensor | None = None, *, out_float: bool = False) -> Tensor:  # noqa: ARG002
        out = functional.linear(x, self._weight_NK, self._bias_N)
        out = out if self._activation is None else ACTIVATIONS[self._activation](out)
        return out if residual is None else out + residual


def reduce_linears(module: nn.Module, dtype: torch.dtype, quantize: Quantize) -> None:
    """Replace the linear layers of ``module``: inputs are rounded, results have the input's dtype."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Exactly this class: a subclass may do more than a product.
            if type(child) is nn.Linear and child.weight.numel():
                setattr(parent, name, Linear(child.weight.detach().to(dtype), child.bias, quantize=quantize))


class Weights:
    """Releases parameters of ``module`` and brings them back.

    A parameter that two parts share is left alone, unless it is said that both read the packed product.
    """

    def __init__(self, module: nn.Module) -> None:
        uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
        self._shared = {key for key, count in uses.items() if count > 1}
        self._released: list[tuple[Product, Linear]] = []

    def release(self, product: Product, linear: Linear) -> None:
        for parameter in self._own_weights(product):
            parameter.data = parameter.data.new_empty(0)
        self._released.append((product, linear))

    def release_shared(self, product: Product, linear: Linear) -> None:
        for part in product.linears:
            parameter = part.get_parameter("weight")
            parameter.data = parameter.data.new_empty(0)
        self._released.append((product, linear))

    def release_layer(self, layer: Layer[Product], packed: Layer[Linear]) -> None:
        for sublayer, packed_sublayer in zip(layer.sublayers, packed.sublayers, strict=True):
            for (_, product), (_, linear) in zip(sublayer.products, packed_sublayer.products, strict=True):
                self.release(product, linear)

    def restore(self) -> None:
        """Bring back whatever was released."""
        while self._released:
            _restore(*self._released.pop())

    def forget(self) -> None:
        """There is no way back from here."""
        self._released.clear()

    def _own_weights(self, product: Product) -> list[nn.Parameter]:
        weights = [linear.get_parameter("weight") for linear in product.linears]
        return [weight for weight in weights if id(weight) not in self._shared]


def _restore(product: Product, linear: Linear) -> None:
    weight_NK = linear.dense_weight()
    if product.order_N is not None:
        weight_NK = weight_NK[product.order_N.argsort().to(weight_NK.device)]
    start = 0
    for module in product.linears:
        parameter = module.get_parameter("weight")
        stop = start + num_outputs(module)
        if not parameter.numel():
            part_NK = weight_NK[start:stop]
            parameter.data = (part_NK.t() if isinstance(module, Conv1D) else part_NK).contiguous()
        start = stop


def _weight(linear: nn.Module) -> Tensor:
    weight = linear.get_parameter("weight").detach()
    return weight.t() if isinstance(linear, Conv1D) else weight


def _bias(product: Product) -> Tensor | None:
    """Zeros for those of several linears that have none."""
    biases = [getattr(linear, "bias", None) for linear in product.linears]
    given = [bias for bias in biases if isinstance(bias, Tensor)]
    if not given:
        return product.bias_N
    sizes = [num_outputs(linear) for linear in product.linears]
    return _joined(
        [
            bias.detach() if isinstance(bias, Tensor) else given[0].new_zeros(size)
            for bias, size in zip(biases, sizes, strict=True)
        ]
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def held_bytes(part: Any) -> int:
    """Of the weights in a layout or in a part of it. What several parts share is counted once."""
    found = {id(weight): weight for weight in _weights(part)}
    return sum(w.weight_bytes if isinstance(w, Linear) else w.numel() * w.itemsize for w in found.values())


def _weights(part: Any) -> Iterator[Tensor | Linear]:
    if isinstance(part, Linear):
        yield part if part.plain_weight is None else part.plain_weight
    elif isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _weights(each)
    # Rotary positions are computed, not learned.
    elif dataclasses.is_dataclass(part) and not isinstance(part, Rotary):
        yield from _weights(tuple(getattr(part, field.name) for field in dataclasses.fields(part)))
