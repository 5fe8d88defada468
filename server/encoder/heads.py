"""What each task reads from an encoder's output.

Dimension key
    B  requests in the step
    T  tokens of the longest
    L  labels
    M  mask positions of all requests, laid end to end
    V  vocabulary size
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.encoder.forward import Forward
from server.protocol import Encode, Failed, MaskQuery, Scores
from server.tasks import TASKS


class Head(ABC):
    """One task's way from a batch to replies, one for each request and in order."""

    @abstractmethod
    def replies(self, forward: Forward, batch: Sequence[Encode]) -> list[Scores | Failed]:
        """Run the model once and read the answers."""


class LogitsHead(Head):
    """Logits as they are."""

    def replies(self, forward: Forward, batch: Sequence[Encode]) -> list[Scores | Failed]:
        return self.read(forward.logits(batch), batch)

    @abstractmethod
    def read(self, logits: Tensor, batch: Sequence[Encode]) -> list[Scores | Failed]:
        """``logits`` are those of `Forward.logits`."""


class ClassifierHead(LogitsHead):
    """Logits of each text, ``[L]``, or its vector."""

    def read(self, logits: Tensor, batch: Sequence[Encode]) -> list[Scores | Failed]:
        logits_BL = _to_host(logits)
        return [_scores(command, row_L) for command, row_L in zip(batch, logits_BL, strict=True)]


class TaggerHead(LogitsHead):
    """Logits of each token: ``[tokens, L]``."""

    def read(self, logits: Tensor, batch: Sequence[Encode]) -> list[Scores | Failed]:
        logits_BTL = _to_host(logits)
        return [
            _scores(command, row_TL[: len(command.token_ids)])
            for command, row_TL in zip(batch, logits_BTL, strict=True)
        ]


class MaskFillerHead(Head):
    """Probabilities at the mask positions: ``[masks, candidates]``, best first.

    The vocabulary is wide, so only mask positions go through the model's last layers where those are a part of
    their own: they treat every position alike.
    """

    def replies(self, forward: Forward, batch: Sequence[Encode]) -> list[Scores | Failed]:
        queries = [_query(command) for command in batch]
        rows = [row for row, query in enumerate(queries) for _ in query.positions]
        columns = [position for query in queries for position in query.positions]
        rows_M, columns_M = (torch.tensor(values, device=forward.device) for values in (rows, columns))
        probabilities_MV = forward.logits_at(batch, rows_M, columns_M).float().softmax(dim=-1)
        parts = torch.split(probabilities_MV, [len(query.positions) for query in queries])
        tops = [_top(part_MV, query) for part_MV, query in zip(parts, queries, strict=True)]
        # The step's copies to the host: every request's best probabilities, then their token ids.
        values = np.split(_to_host(torch.cat([top.flatten() for top, _ in tops])), _ends(tops))
        token_ids = np.split(torch.cat([ids.flatten() for _, ids in tops]).cpu().numpy(), _ends(tops))
        return [
            _scores(command, part.reshape(top.shape), ids.reshape(top.shape).tolist())
            for command, part, ids, (top, _) in zip(batch, values, token_ids, tops, strict=True)
        ]


HEADS: dict[str | None, type[Head]] = {"text": ClassifierHead, "tokens": TaggerHead, "masks": MaskFillerHead}


def head_of(task: str) -> Head:
    """What reads a model of this task, a key of `tasks.TASKS`."""
    return HEADS[TASKS[task].reads]()


def _query(command: Encode) -> MaskQuery:
    assert command.mask is not None, "the engine takes no other command for this task"
    return command.mask


def _top(probabilities_MV: Tensor, query: MaskQuery) -> tuple[Tensor, Tensor]:
    if query.target_ids is None:
        values, token_ids = probabilities_MV.topk(query.top_k)
        return values, token_ids
    target_ids = torch.tensor(query.target_ids, device=probabilities_MV.device)
    values, ranks = probabilities_MV[:, target_ids].topk(min(query.top_k, len(query.target_ids)))
    return values, target_ids[ranks]


def _ends(tops: Sequence[tuple[Tensor, Tensor]]) -> list[int]:
    """Where each request's values but the last one's end."""
    return np.cumsum([top.numel() for top, _ in tops])[:-1].tolist()  # type: ignore[no-any-return]


def _to_host(values: Tensor) -> NDArray[np.float32]:
    """The step's copy from device to host."""
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array


def _scores(
    command: Encode, values: NDArray[np.float32], candidate_ids: list[list[int]] | None = None
) -> Scores | Failed:
    if not np.isfinite(values).all():
        message = "The model's output for this input is not finite. Check the weights and the dtype."
        return Failed(command.request_id, "numerical_error", message)
    return Scores(command.request_id, values.shape, values.astype("<f4").tobytes(), candidate_ids)
