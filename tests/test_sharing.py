"""Which adapters may share the worker of their base, from settings and folders alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.config import ModelConfig, ServeConfig
from server.sharing import hosts


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    write(adapter, base_model_name_or_path=str(base), task_type="CAUSAL_LM")
    return base, adapter


def write(folder: Path, **config: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))


def found(base_folder: Path, folder: Path, of_base: dict[str, Any] | None = None, **of_adapter: Any) -> dict[str, str]:
    models = (
        ModelConfig(name="tuned", path=str(folder), **of_adapter),
        ModelConfig(name="chat", path=str(base_folder), **(of_base or {})),
    )
    return hosts(ServeConfig(models=models))


def test_an_adapter_shares_the_worker_of_its_base(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    assert found(base, adapter) == {"tuned": "chat"}


def test_the_base_of_the_settings_counts_before_that_of_the_adapter(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    write(adapter, base_model_name_or_path="somewhere/else", task_type="CAUSAL_LM")
    assert found(base, adapter) == {}
    assert found(base, adapter, base=str(base)) == {"tuned": "chat"}


def test_another_way_of_writing_a_path_is_the_same_base(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    assert found(base.parent / "adapter" / ".." / "base", adapter) == {"tuned": "chat"}


def test_a_base_that_cannot_be_looked_at_is_not_served(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    write(adapter, base_model_name_or_path="x" * 5000, task_type="CAUSAL_LM")
    assert found(base, adapter) == {}


def test_nothing_is_shared_with_share_off(folders: tuple[Path, Path]) -> None:
    assert found(*folders, share="off") == {}


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"threads": 1}, {"quantize": "int8"}])
def test_nothing_is_shared_where_settings_differ(folders: tuple[Path, Path], settings: dict[str, Any]) -> None:
    assert found(*folders, **settings) == {}
    assert found(*folders, of_base=settings, **settings) == {"tuned": "chat"}


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION", None])
def test_an_adapter_of_each_of_these_tasks_may_share(folders: tuple[Path, Path], task_type: str | None) -> None:
    base, adapter = folders
    write(adapter, base_model_name_or_path=str(base), task_type=task_type)
    assert found(base, adapter) == {"tuned": "chat"}


def test_adapters_of_encoder_decoders_are_not_shared(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    write(adapter, base_model_name_or_path=str(base), task_type="SEQ_2_SEQ_LM")
    assert found(base, adapter) == {}
