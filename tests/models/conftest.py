"""The two modules that most tests of loading start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
)

from tests.models.folders import BERT
from tests.tiny_models import (
    write_tiny_decoder,
)


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    return write_tiny_decoder(tmp_path / "decoder", "llama")


@pytest.fixture(scope="module")
def bert() -> BertModel:
    """A base without any head."""
    torch.manual_seed(1)
    return BertModel(BertConfig(**BERT))
