"""Linear layers whose weight is packed once, with what follows the product done in the same call.

On the CPU by our own kernels, else by oneDNN through torch; on other devices by torch.

Dimension key: M rows of the input, K input width, N rows of the weight.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from server.native import adapted, onednn, ops
from server.native.packing import NativeWeight, problem
from server.number_types import Quantize


class Linear(nn.Module):
    """``residual + gate(activation(x @ weight.T + bias))``, each part where it is asked for.

    Of the weight only the packed form is kept. ``is_gated``: the weight's first half of rows is the gate, to which the
    activation goes, and the second half is multiplied by it; the output has ``N / 2`` places.

    In our kernels a row's result does not depend on the other rows (`is_row_invariant`).
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
        """Raises ValueError for a weight that cannot be quantised."""
        super().__init__()
        num_rows, self.in_features = weight_NK.shape
        self.num_rows = num_rows
        self.out_features = num_rows // 2 if is_gated else num_rows
        self.weight_bytes = 0
        self.number: int | None = None
        """By which adapters know it; None where none can."""
        self._activation, self._is_gated = activation, is_gated
        self.device, self.dtype = weight_NK.device, weight_NK.dtype
        self._bias_N = None if bias_N is None else bias_N.detach().float()
        weight_NK = weight_NK.detach()
        self.native: NativeWeight | None = None
        """Where our own kernels have it."""
        self._plain: onednn.Product | None = None
        reason = problem(weight_NK, quantize)
        if reason is None:
            self.native = NativeWeight(weight_NK, self._bias_N, activation, is_gated=is_gated, quantize=quantize)
            self.weight_bytes = self.native.num_bytes
        elif quantize != "none":
            raise ValueError(f"A weight cannot be quantised to {quantize}: {reason}.")
        else:
            self._plain = onednn.Product(weight_NK)
            self.weight_bytes = self._plain.num_bytes

    def like(self, weight_NK: Tensor, bias_N: Tensor | None) -> Linear:
        """Another product with the same activation and gate."""
        return Linear(weight_NK, bias_N, activation=self._activation, is_gated=self._is_gated)

    @property
    def is_row_invariant(self) -> bool:
        return self.native is not None

    @cached_property
    def bias(self) -> Tensor | None:
        """In the weight's dtype, as an `nn.Linear` has it."""
        return None if self._bias_N is None else self._bias_N.to(self.dtype)

    @cached_property
    def weight(self) -> Tensor:
        """The plain weight, kept from the first time that a model reads it by itself: Mamba and MobileBERT do."""
        return self.dense_weight()

    def forward(self, x: Tensor, residual: Tensor | None = None, *, out_float: bool = False) -> Tensor:
        """``x`` is ``[..., K]``, ``residual`` like the result ``[..., out_features]``.

        The result has the dtype of ``x``, or float32 for ``out_float``. An input of another dtype than the weight's is
        rounded to it.
        """
        if x.dtype is not self.dtype:
            residual = None if residual is None else residual.to(self.dtype)
            out = self.forward(x.to(self.dtype), residual, out_float=out_float)
            return out if out_float else out.to(x.dtype)
        runs = None if self.number is None else adapted.runs_of(x.numel() // self.in_features)
        if self.native is not None:
            return self.native.multiply(x, residual, out_float=out_float, runs=runs, number=self.number or 0)
        assert self._plain is not None
        if self._activation is None and residual is None and not out_float and runs is None:
            return self._plain(x, self.bias)  # type: ignore[no-any-return]
        product = self._plain(x) if runs is None else self._changed(self._plain, x, runs)
        dtype = torch.float32 if out_float else x.dtype
        return ops.finish(
            product, self._bias_N, self._activation, is_gated=self._is_gated, residual=residual, dtype=dtype
        )

    def _changed(self, plain: onednn.Product, x: Tensor, runs: adapted.Runs) -> Tensor:
        """The product with what adapters change of it, before the bias; float32."""
        assert self.number is not None
        x_MK = x.reshape(-1, self.in_features)
        product_MN = plain(runs.change_inputs(x_MK, self.number))
        return runs.change_product(x_MK, product_MN, self.number).view(*x.shape[:-1], -1)

    # Without the hooks of a module, which cost as much as all else that is not the product.
    __call__ = forward

    @property
    def has_rows(self) -> bool:
        """Whether `rows` can read the packed form."""
        return self.native is not None and self.native.has_rows

    def rows(self, indices_T: Tensor) -> Tensor:
        """``[T, K]``: those rows of the weight, for an embedding that is tied to this product."""
        assert self.native is not None
        return self.native.rows(indices_T)

    @property
    def plain_weight(self) -> Tensor | None:
        """``[N, K]`` where it is kept as it was given, on a GPU for example; else None."""
        return None if self._plain is None else self._plain.plain_weight

    def dense_weight(self) -> Tensor:
        """``[N, K]`` in the dtype it was given, made from the packed form."""
        if self.native is not None:
            return self.native.dense()
        assert self._plain is not None
        return self._plain.dense()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self._bias_N is not None}"


def held_bytes(module: nn.Module) -> int:
    """Of a module's weights as they are: its parameters, and products in their packed form."""
    packed = sum(part.weight_bytes for part in module.modules() if isinstance(part, Linear))
    return packed + sum(parameter.numel() * parameter.itemsize for parameter in module.parameters())
