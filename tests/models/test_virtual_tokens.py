"""What is wrong with a folder of virtual tokens is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.config import ModelConfig
from server.errors import ConfigurationError
from server.models import loader
from server.models.adapter import WEIGHTS, read_adapter
from server.models.virtual_tokens import read_virtual_tokens
from server.modules.adapted import NotShared
from tests.models.folders import edit
from tests.tiny_adapters import write_tiny_adapter
from tests.tiny_models import write_tiny_decoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_decoder(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def written(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {kind: write_tiny_adapter(root / kind, base, kind, "llama") for kind in ("prompt", "multitask", "prefix")}


def problem(folder: Path) -> str:
    with pytest.raises(NotShared) as error:
        read_virtual_tokens(read_adapter(folder, None))
    return str(error.value)


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


CHANGES: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any], str]] = {
    "a tensor is missing": ("prefix", lambda t: t.update(x=t.pop("prompt_embeddings")), "it lacks prompt_embeddings"),
    "a tensor is of no use": ("prompt", lambda t: t.update(x=torch.zeros(1)), "it holds x"),
    "a number is not finite": ("prompt", lambda t: t["prompt_embeddings"].fill_(torch.inf), "is not finite"),
    "a type is wrong": ("prompt", lambda t: t.update(prompt_embeddings=t["prompt_embeddings"].int()), "of type int32"),
    "a row is missing": (
        "prompt", lambda t: t.update(prompt_embeddings=t["prompt_embeddings"][1:].clone()), "num_virtual_tokens is 5"
    ),
    "a layer is missing": (
        "prefix", lambda t: t.update(prompt_embeddings=t["prompt_embeddings"][:, 1:].clone()), "2 layers with"
    ),
    "there are two tasks": (
        "multitask", lambda t: t.update(prefix_task_cols=t["prefix_task_cols"].repeat(2, 1, 1)), "2 tasks"
    ),
    "half of a task is missing": ("multitask", lambda t: t.pop("prefix_task_rows"), "it lacks prefix_task_rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_with_the_tensors_is_named(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    kind, change, expected = CHANGES[name]
    folder = Path(shutil.copytree(written[kind], tmp_path / "adapter"))
    change_tensors(folder, change)
    assert expected in problem(folder)


def test_an_unknown_field_of_the_config_is_named(written: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written["prompt"], tmp_path / "adapter"))
    edit(folder, "adapter_config.json", lambda config: config.update(virtual_token_dropout=0.1))
    assert problem(folder) == "its config sets virtual_token_dropout"


def test_virtual_tokens_without_their_base_are_refused_with_advice(written: dict[str, Path], base: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"Serve its base {base} too"):
        loader.load(ModelConfig(name="prompted", path=str(written["prompt"])))
