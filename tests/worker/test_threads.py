"""A worker's threads while it loads and afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.config import ModelConfig
from server.models import loader
from server.native import kernels
from server.worker.__main__ import build


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)
    kernels.set_num_threads(before)


@pytest.mark.parametrize(("num_loading", "expected"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_workers_that_load_together_share_the_processors_and_serve_with_all_of_them(
    four_threads: None, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch, num_loading: int, expected: int
) -> None:
    seen = []
    right = loader.load

    def load(model: ModelConfig) -> loader.LoadedModel:
        seen.append(torch.get_num_threads())
        return right(model)

    monkeypatch.setattr(loader, "load", load)
    build(ModelConfig(name="m", path=str(tiny_classifier)), num_loading)
    assert seen == [expected] and torch.get_num_threads() == 4
