"""Norms and activations of a module, known by their numbers: what a class is called says little of what it computes.

Dimension key: T tokens, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server.modules.unsupported import Unsupported
from server.native import ops, reference

PROBED_SCALES = (1e-3, 0.1, 1.0, 30.0)
"""The smallest is of the size of a norm's epsilon."""

NORM_TOLERANCE = 1e-5
ACTIVATION_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Norm:
    """RMS norm, or layer norm where ``is_centred``. Weight and bias are float32, ``[D]``."""

    weight_D: Tensor
    bias_D: Tensor | None
    eps: float
    is_centred: bool

    def __call__(self, x_TD: Tensor, residual_TD: Tensor | None = None) -> Tensor:
        if not self.is_centred:
            return ops.rms_norm(x_TD, self.weight_D, self.eps, residual_TD)
        out = ops.layer_norm(x_TD, self.weight_D, self.bias_D, self.eps)
        return out if residual_TD is None else out + residual_TD

    def of_sum(self, x_TD: Tensor, added_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the two, and its norm."""
        return ops.add_norm(x_TD, added_TD, self.weight_D, self.bias_D, self.eps, is_centred=self.is_centred)


def norm_of(module: nn.Module) -> Norm:
    """Raises `Unsupported` for one that is neither a layer norm nor an RMS norm."""
    if type(module) is nn.LayerNorm:
        return _layer_norm(module)
    parameters = dict(module.named_parameters())
    eps = next((value for name in ("variance_epsilon", "eps") if (value := getattr(module, name, None))), None)
    if eps is None or set(parameters) != {"weight"} or parameters["weight"].dim() != 1:
        raise Unsupported(f"its {type(module).__name__} is no norm that is known here")
    weight = parameters["weight"].detach().float()
    x = _probe_rows(weight)
    with torch.inference_mode():
        # T5's rounds what it is given to the type of its weight.
        theirs = copy.deepcopy(module).float()(x)
        for candidate in (weight, 1.0 + weight):
            ours = reference.rms_norm(x, candidate, eps)
            if (ours - theirs).abs().max() <= NORM_TOLERANCE * theirs.abs().max():
                return Norm(weight_D=candidate, bias_D=None, eps=float(eps), is_centred=False)
    raise Unsupported(f"its {type(module).__name__} computes something else than an RMS norm")


def _layer_norm(module: nn.LayerNorm) -> Norm:
    weight: Tensor | None = module.weight
    bias: Tensor | None = module.bias
    if weight is None or weight.dim() != 1:
        raise Unsupported("its layer norm is not over one dimension with a weight")
    return Norm(
        weight_D=weight.detach().float(),
        bias_D=None if bias is None else bias.detach().float(),
        eps=module.eps,
        is_centred=True,
    )


def _probe_rows(weight_D: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(PROBED_SCALES), weight_D.shape[0], generator=generator)
    return (rows * torch.tensor(PROBED_SCALES)[:, None]).to(weight_D.device)


def activation_of(module: nn.Module) -> str:
    """The name by which `Linear` knows the function that ``module`` computes."""
    x = torch.linspace(-8.0, 8.0, 1601)
    with torch.inference_mode():
        theirs = module(x)
        for name, function in reference.ACTIVATIONS.items():
            if (function(x) - theirs).abs().max() <= ACTIVATION_TOLERANCE:
                return name
    raise Unsupported(f"its activation {type(module).__name__} has no kernel")
