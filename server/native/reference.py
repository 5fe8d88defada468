"""What each kernel computes, in torch: the oracle of its tests and the way of machines without it.

Dimension key: T tokens, D width of a token's vector, N outputs of a product, K its inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from server.number_types import KvDtype

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
"""By the names that the kernels know."""


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, residual_TD: Tensor | None = None) -> Tensor:
    """In float32, rounded once. ``weight_D`` is float32; the residual is added after the product with it."""
    wide = x_TD.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D
    return (wide if residual_TD is None else wide + residual_TD).to(x_TD.dtype)


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """In float32, rounded once. Weight and bias are float32."""
    return functional.layer_norm(x_TD.float(), x_TD.shape[-1:], weight_D, bias_D, eps).to(x_TD.dtype)


def rotate(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotary positions on the first ``2 * R`` places of each head, as Llama pairs them: place i with place i + R."""
    R = cos_TR.shape[-1]
    wide = x_THD.float()
    first, second, rest = wide[..., :R], wide[..., R : 2 * R], wide[..., 2 * R :]
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x_THD.dtype)


def quantized_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """What an int8 product makes of its input: whole numbers to 127 in float32, and a scale for each row."""
    largest_M1 = x_MK.float().abs().amax(1, keepdim=True)
    # `127 / tensor` would be rounded twice.
    inverse_M1 = torch.full_like(largest_M1, 127) / largest_M1
    return (x_MK.float() * inverse_M1).round(), largest_M1 / 127


def finish(
    product: Tensor, bias_N: Tensor | None, activation: str | None, *, is_gated: bool, residual: Tensor | None
) -> Tensor:
    """What a `Linear` does after its product: bias, activation, gate, residual, in this order and in float32."""
    wide = product.float()
    if bias_N is not None:
        wide = wide + bias_N
    if is_gated:
        gate, up = wide.chunk(2, dim=-1)
        wide = ACTIVATIONS[activation or ""](gate) * up
    elif activation is not None:
        wide = ACTIVATIONS[activation](wide)
    return wide if residual is None else wide + residual


def int8_bytes(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """A vector's numbers from -127 to 127, and its scale, which is rounded up to a bfloat16: a KV cache in int8."""
    most_T = x_TD.float().abs().amax(-1)
    scale_T = (((most_T / 127).view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
    # The smallest are zero: the inverse of their scale may be infinite.
    is_some_T = most_T >= 2.0**-100
    scale_T = torch.where(is_some_T, scale_T, 0.0)
    inverse_T = torch.where(is_some_T, 1 / scale_T, 0.0)
    return (x_TD.float() * inverse_T[..., None]).round(), scale_T


def _int8_cached(x_TD: Tensor) -> Tensor:
    whole_TD, scale_T = int8_bytes(x_TD)
    return whole_TD * scale_T[..., None]


CACHED: dict[KvDtype, Callable[[Tensor], Tensor]] = {"auto": lambda x_TD: x_TD, "int8": _int8_cached}
"""Keys or values as a KV cache of each type gives them back."""
