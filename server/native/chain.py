"""Kernels of many layers in one call, over buffers that live for a step.

Where a step has few rows, the interpreter between the kernels would take a fifth of its time.

Dimension key: T tokens of the step, D width of the hidden states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from server.native import kernels
from server.native.abi import Fixed, Link, LinkKind
from server.native.adapted import Runs
from server.native.kernels import address
from server.native.packing import NativeWeight

NOWHERE = -1


class Chain:
    """Kernels in the order in which they are added. ``widths``: values of a token in each buffer, counted from 0.

    Whoever adds a kernel keeps what it reads alive.
    """

    def __init__(self, dtype: torch.dtype, widths: Sequence[int]) -> None:
        self._dtype = dtype
        self._widths = tuple(widths)
        self._links: list[Link] = []
        self._array: ctypes.Array[Link] | None = None
        self._run = kernels.get("chain")
        self._seconds = (ctypes.c_double * len(LinkKind))()

    @staticmethod
    def is_possible(dtype: torch.dtype, device: torch.device) -> bool:
        return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and kernels.has("chain")

    def __len__(self) -> int:
        return len(self._links)

    @property
    def seconds(self) -> dict[str, float]:
        """Spent so far, by kind of kernel."""
        rms_norm, layer_norm, linears, *attention = self._seconds
        return {"linears": linears, "attention": sum(attention), "norms": rms_norm + layer_norm}

    def rms_norm(self, source: int, to: int, weight_D: Tensor, eps: float, residual: int = NOWHERE) -> None:
        self._norm(LinkKind.rms_norm, source, to, weight_D, None, eps, residual)

    def layer_norm(self, source: int, to: int, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> None:
        self._norm(LinkKind.layer_norm, source, to, weight_D, bias_D, eps, NOWHERE)

    def _norm(
        self, kind: int, source: int, to: int, weight_D: Tensor, bias_D: Tensor | None, eps: float, residual: int
    ) -> None:
        self._check(source, to, weight_D.shape[0], weight_D.shape[0])
        self._links.append(
            Link(
                kind=kind,
                source=source,
                residual=residual,
                to=to,
                product=Fixed(weight=address(weight_D), bias=address(bias_D), width=weight_D.shape[0]),
                eps=eps,
            )
        )

    def linear(self, weight: NativeWeight, source: int, to: int, residual: int = NOWHERE, *, number: int = 0) -> None:
        """``to`` may be ``residual``: every place is read before it is written. Adapters know it by ``number``."""
        self._check(source, to, weight.width, weight.num_outputs)
        self._links.append(Link(LinkKind.linear, source, residual, to, Fixed(*weight.fixed), number))

    def attention(self, layer_address: int, call_address: int, source: int, to: int) -> None:
        """Addresses as `AttentionBackend.packed_call` gives them."""
        self._attention(LinkKind.attention, layer_address, call_address, source, to)

    def cross_attention(self, layer_address: int, call_address: int, source: int, to: int) -> None:
        """Addresses as `AttentionBackend.cross_call` gives them."""
        self._attention(LinkKind.cross_attention, layer_address, call_address, source, to)

    def encoder_attention(self, layer_address: int, source: int, to: int) -> None:
        """Of a `Layer` whose keys and values are as wide as its queries. Its texts come with the step."""
        self._attention(LinkKind.encoder_attention, layer_address, 0, source, to)

    def _attention(self, kind: LinkKind, layer_address: int, call_address: int, source: int, to: int) -> None:
        self._links.append(
            Link(kind=kind, source=source, residual=NOWHERE, to=to, layer=layer_address, call=call_address)
        )

    def _check(self, source: int, to: int, width: int, num_outputs: int) -> None:
        assert width <= self._widths[source] and num_outputs <= self._widths[to], "a buffer is too small"

    def run(
        self,
        h_TD: Tensor,
        positions_T: Tensor,
        step_address: int,
        count: int,
        *,
        cross_address: int = 0,
        runs: Runs | None = None,
    ) -> Tensor:
        """The first ``count`` kernels. Buffer 0 is ``h_TD``, dense and overwritten: it then has the result.

        ``runs`` are the tokens with adapters.
        """
        self._call(0, count, len(h_TD), {0: h_TD}, positions_T.data_ptr(), step_address, cross_address, runs=runs)
        return h_TD

    def run_texts(
        self, first: int, stop: int, num_tokens: int, given: Mapping[int, Tensor], texts_address: int
    ) -> None:
        """Kernels ``first`` to ``stop - 1``, in ``given`` buffers. The others live for the call."""
        self._call(first, stop, num_tokens, given, 0, 0, 0, texts_address)

    def _call(
        self,
        first: int,
        stop: int,
        num_tokens: int,
        given: Mapping[int, Tensor],
        positions_address: int,
        step_address: int,
        cross_address: int,
        texts_address: int = 0,
        runs: Runs | None = None,
    ) -> None:
        if self._array is None:
            self._array = (Link * len(self._links))(*self._links)
        buffers = [
            given[i] if i in given else torch.empty(num_tokens, width, dtype=self._dtype)
            for i, width in enumerate(self._widths)
        ]
        places = (ctypes.c_void_p * len(buffers))(*(buffer.data_ptr() for buffer in buffers))
        self._run(
            ctypes.addressof(self._array) + first * ctypes.sizeof(Link),
            stop - first,
            ctypes.addressof(places),
            num_tokens,
            positions_address,
            step_address,
            cross_address,
            texts_address,
            self._dtype is torch.float32,
            ctypes.addressof(self._seconds),
            *((0, 0) if runs is None else runs.place),
        )
