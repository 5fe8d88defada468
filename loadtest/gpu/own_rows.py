"""Our norms and activations on the device: against torch, and how near they come to its bandwidth."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpu.own_kernels import replayed
from gpu.setting import Setting
from server.cuda import kernels

WIDTHS = {"135M": (576, 1536), "8B": (4096, 14336)}
"""Of hidden states, and of an MLP."""
NUM_TOKENS = (1, 256, 8192)


def check(setting: Setting, device: torch.device) -> None:
    if problem := kernels.problem(device):
        setting.results.add("rows", why=problem)
        return
    from server.cuda import rows, rows_trial

    problem = rows_trial.problem(device)
    setting.results.add("rows", ok=problem is None, problem=problem)
    for name, (width, inner) in WIDTHS.items():
        weight = torch.rand(width, device=device)
        for num_tokens in NUM_TOKENS:
            x = torch.randn(num_tokens, width, device=device).bfloat16()
            wide = torch.randn(num_tokens, 2 * inner, device=device).bfloat16()

            def norm(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                rows.norm(x, weight, None, 1e-5, is_centred=False)

            def gate(wide: torch.Tensor = wide) -> None:
                rows.finish(wide, None, "silu", is_gated=True, residual=None, dtype=wide.dtype)

            def add(x: torch.Tensor = x) -> None:
                rows.finish(x, None, None, is_gated=False, residual=x, dtype=x.dtype)

            works: dict[str, tuple[Callable[[], None], int]] = {
                "norm": (norm, 2 * x.numel()), "gate": (gate, 3 * wide.numel() // 2), "add": (add, 3 * x.numel())
            }  # fmt: skip
            for kind, (work, num_values) in works.items():
                seconds = replayed([work] * 20)
                setting.results.add(
                    f"rows, {name}: {kind}, {num_tokens} tokens", us=seconds * 1e6,
                    gb_per_s=2 * num_values / seconds / 1e9,
                )  # fmt: skip
