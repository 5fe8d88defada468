"""What the trial of the row kernels makes of a GPU whose memory is full. No GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from server.cuda import kernels


def test_memory_that_runs_out_in_the_trial_of_the_row_kernels_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_device: torch.device) -> str | None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(kernels, "problem", lambda _device: None)
    monkeypatch.setattr(kernels.importlib, "import_module", lambda _name: SimpleNamespace(problem=full))
    with pytest.raises(torch.OutOfMemoryError):
        kernels.serve_rows(torch.device("cuda:99"))
