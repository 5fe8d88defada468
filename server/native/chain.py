"""Kernels of many layers in one call, over buffers that live for a step.

Where a step has few rows, the interpreter between the kernels would take a fifth of its time.

Dimension key: T tokens of the step, D width of the hidden states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from server.native import kernels
from server.native.kernels import address
from server.native.packing import NativeWeight

RMS_NORM, LAYER_NORM, LINEAR, ATTENTION = range(4)
"""As `Kind` in chain.h numbers them."""

NOWHERE = -1


class _Link(ctypes.Structure):
    """As chain.h has it, field by field."""

    _fields_ = [
        ("kind", ctypes.c_int64),
        ("source", ctypes.c_int64),
        ("residual", ctypes.c_int64),
        ("to", ctypes.c_int64),
        ("weight_kind", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("words", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("is_gated", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("layer", ctypes.c_void_p),
        ("call", ctypes.c_void_p),
    ]


class Chain:
    """Kernels in the order in which they are added. ``widths``: values of a token in each buffer, counted from 0.

    Whoever adds a kernel keeps what it reads alive.
    """

    def __init__(self, dtype: torch.dtype, widths: Sequence[int]) -> None:
        self._dtype = dtype
        self._widths = tuple(widths)
        self._links: list[_Link] = []
        self._array: ctypes.Array[_Link] | None = None
        self._run = kernels.get("chain")
        self._seconds = (ctypes.c_double * 4)()

    @staticmethod
    def is_possible(dtype: torch.dtype, device: torch.device) -> bool:
        return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and kernels.has("chain")

    def __len__(self) -> int:
        return len(self._links)

    @property
    def seconds(self) -> dict[str, float]:
        """Spent so far, by kind of kernel."""
        rms_norm, layer_norm, linears, attention = self._seconds
        return {"linears": linears, "attention": attention, "norms": rms_norm + layer_norm}

    def rms_norm(self, source: int, to: int, weight_D: Tensor, eps: float, residual: int = NOWHERE) -> None:
        self._norm(RMS_NORM, source, to, weight_D, None, eps, residual)

    def layer_norm(self, source: int, to: int, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> None:
        self._norm(LAYER_NORM, source, to, weight_D, bias_D, eps, NOWHERE)

    def _norm(
        self, kind: int, source: int, to: int, weight_D: Tensor, bias_D: Tensor | None, eps: float, residual: int
    ) -> None:
        self._check(source, to, weight_D.shape[0], weight_D.shape[0])
        self._links.append(
            _Link(
                kind=kind,
                source=source,
                residual=residual,
                to=to,
                weight=address(weight_D),
                bias=address(bias_D),
                width=weight_D.shape[0],
                eps=eps,
            )
        )

    def linear(self, weight: NativeWeight, source: int, to: int, residual: int = NOWHERE) -> None:
        """``to`` may be ``residual``: every place is read before it is written."""
        self._check(source, to, weight.width, weight.num_outputs)
        self._links.append(_Link(LINEAR, source, residual, to, *weight.fixed))

    def attention(self, layer_address: int, call_address: int, source: int, to: int) -> None:
        """Addresses as `AttentionBackend.packed_call` gives them."""
        self._links.append(
            _Link(kind=ATTENTION, source=source, residual=NOWHERE, to=to, layer=layer_address, call=call_address)
        )

    def _check(self, source: int, to: int, width: int, num_outputs: int) -> None:
        assert width <= self._widths[source] and num_outputs <= self._widths[to], "a buffer is too small"

    def run(self, h_TD: Tensor, positions_T: Tensor, step_address: int, count: int) -> Tensor:
        """The first ``count`` kernels. Buffer 0 is ``h_TD``, dense and overwritten: it then has the result."""
        if self._array is None:
            self._array = (_Link * len(self._links))(*self._links)
        num_tokens = len(h_TD)
        buffers = [h_TD, *(torch.empty(num_tokens, width, dtype=self._dtype) for width in self._widths[1:])]
        places = (ctypes.c_void_p * len(buffers))(*(buffer.data_ptr() for buffer in buffers))
        self._run(
            ctypes.addressof(self._array),
            count,
            ctypes.addressof(places),
            num_tokens,
            positions_T.data_ptr(),
            step_address,
            self._dtype is torch.float32,
            ctypes.addressof(self._seconds),
        )
        return h_TD
