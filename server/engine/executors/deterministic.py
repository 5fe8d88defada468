"""A runner whose rows do not feel one another: each row's result is bitwise what it would be alone.

A matrix product may choose another order of summation for another number of rows, so what shares one depends on the
row alone: rows with one new token go through the module in groups of at most `GROUP_ROWS`, for which the packed
products give each row the same result, and a row with several new tokens goes alone. The attention back end attends
every row by itself, and the scheduler cuts prompts at fixed places. `unsteady` asks this machine whether it is so.

Cost: one pass over the weights for each prompt chunk, and one for every `GROUP_ROWS` decode rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from server.engine.batch_inputs import Row
from server.engine.executors.wrapping import WrappingRunner

GROUP_ROWS = 32
"""Up to so many rows oneDNN's products take one order of summation on every machine that was looked at."""

PROBED_ROWS = (1, 2, 3, 7, 16, 31)
NUM_PROBES = 4

ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")
ACTIVATION_WIDTH = 80
"""Not a whole number of vector registers, so that the last values of a tensor take the path for a rest."""


class DeterministicRunner(WrappingRunner):
    """Lays the rows of ``runner`` out in passes that depend on each row alone."""

    def forward(self, rows: Sequence[Row]) -> Tensor:
        logits: list[Tensor | None] = [None] * len(rows)
        failed: list[int] = []
        for members in _passes(rows):
            computed = self._runner.forward([rows[i] for i in members])
            failed += [members[i] for i in self._runner.failed_rows]
            parts = torch.split(computed, [rows[i].num_logits for i in members])
            for i, part in zip(members, parts, strict=True):
                logits[i] = part
        self.failed_rows = failed
        return torch.cat([part for part in logits if part is not None])


def _passes(rows: Sequence[Row]) -> list[list[int]]:
    """Which rows share a forward pass."""
    single = [i for i, row in enumerate(rows) if len(row.token_ids) == 1]
    groups = [single[i : i + GROUP_ROWS] for i in range(0, len(single), GROUP_ROWS)]
    return groups + [[i] for i, row in enumerate(rows) if len(row.token_ids) > 1]


class SteadySiLU(nn.Module):
    """SiLU with the same result for a value wherever it lies in a tensor.

    torch's own takes another exponential for the last values of a thread's part than for those before.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide / (1.0 + (-wide).exp())).to(x.dtype)


def steady(module: nn.Module) -> None:
    """Single rows take a batch's kernel, and activations whose results depend on where a value lies are replaced."""
    for parent in list(module.modules()):
        if hasattr(parent, "pads_single_row"):
            parent.pads_single_row = True  # type: ignore[assignment]
        for name, child in list(parent.named_children()):
            if type(child) in (nn.SiLU, SiLUActivation):
                setattr(parent, name, SteadySiLU())


@torch.inference_mode()
def unsteady(module: PreTrainedModel) -> str | None:
    """Which part of ``module`` gives a row another result among other rows, as the end of a sentence; else None.

    Every distinct linear and activation is tried with random rows, in several numbers of rows up to `GROUP_ROWS`.
    """
    seen = set()
    for name, part in module.named_modules():
        width = getattr(part, "in_features", ACTIVATION_WIDTH if _is_activation(part) else None)
        kind = (type(part), width, getattr(part, "out_features", None))
        if width is None or kind in seen:
            continue
        seen.add(kind)
        if (num_rows := _differs(part, width, module)) is not None:
            return f"its {name} gives a row another result among {num_rows} rows than among {GROUP_ROWS}"
    return None


def _is_activation(part: nn.Module) -> bool:
    return type(part) is SteadySiLU or type(part).__module__ in ACTIVATION_MODULES


def _differs(part: nn.Module, width: int, module: PreTrainedModel) -> int | None:
    """A number of rows that changes the result of one of them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_PROBES):
        x = torch.randn(GROUP_ROWS, width, generator=generator).to(module.device, module.dtype)
        expected = part(x)
        for num_rows in PROBED_ROWS:
            if not torch.equal(part(x[:num_rows].contiguous()), expected[:num_rows]):
                return num_rows
    return None
