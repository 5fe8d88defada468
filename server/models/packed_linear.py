"""Puts `server.native.linear.Linear` in the place of a module's linears."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from server.native.linear import Linear
from server.number_types import Quantize


def pack_linears(module: nn.Module, quantize: Quantize = "none") -> int:
    """Replace every linear on the CPU by a packed one and free its weight; returns how many were replaced.

    A weight shared with another module (a tied embedding) stays for the other's sake. With ``quantize``, ValueError is
    raised for a weight that cannot be quantised.
    """
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            linear = _weight_and_bias(child)
            # oneDNN has no product without outputs, which a MobileBERT with an embedding of its full width has.
            if linear is None or not linear[0].numel() or linear[0].device.type != "cpu":
                continue
            setattr(parent, name, Linear(*linear, quantize=quantize))
            count += 1
    return count


def _weight_and_bias(child: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Exactly the two known classes: a subclass may do more than a product."""
    if type(child) is nn.Linear:
        return child.weight, child.bias
    if type(child) is Conv1D:
        parameters = dict(child.named_parameters())
        return parameters["weight"].t(), parameters.get("bias")
    return None
