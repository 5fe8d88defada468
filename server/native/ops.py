"""The small operations between products: a kernel on the CPU where there is one, torch everywhere else.

Dimension key: T tokens, D width of a token's vector.
"""

from __future__ import annotations

from torch import Tensor

from server.native import reference


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, residual_TD: Tensor | None = None) -> Tensor:
    """`reference.rms_norm`."""
    return reference.rms_norm(x_TD, weight_D, eps, residual_TD)


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """`reference.layer_norm`."""
    return reference.layer_norm(x_TD, weight_D, bias_D, eps)
