"""Steps whose texts have different adapters, or none: one pass through the layers, then a head for each adapter.

Dimension key: R tokens that go on after the last layer, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from server.encoder.adapter_heads import AdapterHead
from server.encoder.flat import FlatForward
from server.encoder.heads import Head, LogitsHead, head_of
from server.modules.adapted import NotShared
from server.modules.texts import Texts
from server.modules.unsupported import FORWARD_FAILURES
from server.native.adapted import Deltas
from server.out_of_memory import is_memory_error
from server.protocol import Encode, Failed, Scores


@dataclass(frozen=True, kw_only=True)
class EncoderAdapter:
    """What one adapter changes in the layers, and what it reads of their result."""

    task: str
    """A key of `tasks.TASKS`."""
    head: AdapterHead
    deltas: Deltas | None

    @property
    def num_bytes(self) -> int:
        """Of its weights as they are held."""
        return self.head.num_bytes + (0 if self.deltas is None else self.deltas.num_bytes)


class MixedSteps:
    """Answers steps in which some texts have adapters. A text's scores do not depend on the others."""

    def __init__(self, forward: FlatForward, head: Head) -> None:
        """``head`` is that of the model itself."""
        self._forward, self._head = forward, head

    def replies(self, batch: Sequence[Encode], adapters: Mapping[str, EncoderAdapter]) -> list[Scores | Failed]:
        """Of all requests, those of one adapter together. ``adapters`` are by request."""
        ordered = sorted(batch, key=lambda command: command.adapter)
        found = [adapters.get(command.request_id) for command in ordered]
        own = self._forward.reads_first_only
        texts = self._forward.texts(
            ordered, [own if adapter is None else adapter.head.reads_first_only for adapter in found]
        )
        hidden_RH = self._forward.vectors(
            ordered, texts, [None if adapter is None else adapter.deltas for adapter in found]
        )
        groups = [list(group) for _, group in groupby(ordered, key=lambda command: command.adapter)]
        ends = np.cumsum([len(group) for group in groups]).tolist()
        rows = [0, *np.cumsum(texts.wanted_lengths).tolist()]
        return [
            reply
            for group, (start, stop) in zip(groups, pairwise([0, *ends]), strict=True)
            for reply in self._read(group, adapters.get(group[0].request_id), hidden_RH[rows[start] : rows[stop]])
        ]

    def _read(
        self, group: Sequence[Encode], adapter: EncoderAdapter | None, hidden_RH: Tensor
    ) -> list[Scores | Failed]:
        """Of texts with the same adapter."""
        if adapter is None:
            with self._forward.given(hidden_RH):
                return self._head.replies(self._forward, group)
        texts = Texts([len(command.token_ids) for command in group], hidden_RH.device)
        head = head_of(adapter.task)
        assert isinstance(head, LogitsHead), "no other task has adapters"
        return head.read(adapter.head.logits(hidden_RH, texts), group)


@torch.inference_mode()
def ends_with_core(forward: FlatForward, batch: Sequence[Encode]) -> bool:
    """Whether what the core makes is what heads read: nothing of the base model but a pooler comes after it."""
    found: list[Tensor] = []
    hook = forward.module.base_model.register_forward_hook(lambda _module, _args, output: found.append(output[0]))
    try:
        forward.logits(batch)
    finally:
        hook.remove()
    texts = forward.texts(batch, [forward.reads_first_only] * len(batch))
    hidden_RH = forward.vectors(batch, texts, [None] * len(batch))
    expected = hidden_RH[:, None] if forward.reads_first_only else texts.pad(hidden_RH)
    return torch.equal(found[0], expected)


@torch.inference_mode()
def attempt(forward: FlatForward, adapter: EncoderAdapter, sample: Sequence[Encode]) -> None:
    """Steps with the adapter alone and mixed. Raises `NotShared` where the model cannot run it."""
    try:
        # Of several sizes: a product of whatever else than tokens is found out.
        for number in range(1, len(sample) + 1):
            _try(forward, adapter, sample[:number])
    except FORWARD_FAILURES as error:
        reason = "memory ran out" if is_memory_error(error) else f"{type(error).__name__}: {error}"
        raise NotShared(f"a step with it fails ({reason})") from error


def _try(forward: FlatForward, adapter: EncoderAdapter, batch: Sequence[Encode]) -> None:
    for first_only in {False, adapter.head.reads_first_only}:
        texts = forward.texts(batch, [first_only] * len(batch))
        deltas = [adapter.deltas if row % 2 == 0 else None for row in range(len(batch))]
        if not forward.vectors(batch, texts, deltas).isfinite().all():
            raise NotShared("a step with it gives numbers that are not finite")
