"""Folders for the tests of loading: written, changed, and read or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    PreTrainedModel,
)

from server.config import ModelConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.models.loader import LoadedModel, load
from tests.tiny_models import (
    VOCAB_SIZE,
    tiny_tokenizer,
)

torch.set_num_threads(1)

BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
IDS = torch.tensor([[5, 9, 77, 130, 6]])


def read(path: Path, **settings: Any) -> LoadedModel:
    return load(ModelConfig(name="tiny", path=str(path), **settings))


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        read(path, **settings)
    assert error.value.exit_code == EXIT_MODEL
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def write(folder: Path, module: PreTrainedModel) -> Path:
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
