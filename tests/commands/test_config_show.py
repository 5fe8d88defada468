"""Every setting, its value, and who said so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.__main__ import main
from server.settings import settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a setting of each kind and two models."""
    for name in [setting.variable for setting in settings().values()]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tiny").mkdir()
    path = tmp_path / "sluice.toml"
    path.write_text(
        "port = 81\nmax_running = 9\n"
        '[[models]]\nname = "one"\npath = "tiny"\nmax_running = 3\n'
        '[[models]]\nname = "two"\npath = "tiny"\n'
    )
    return path


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["config", "show", *words]) == 0
    return capsys.readouterr().out


def test_each_value_is_told_with_its_origin(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLUICE_LOG_LEVEL", "debug")
    text = shown(capsys, "--origin", "--config", str(file), "--threads", "2", "--no-prefix-cache")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["port"] == ["81", str(file)]
    assert rows["log_level"] == ["debug", "SLUICE_LOG_LEVEL"]
    assert rows["threads"] == ["2", "--threads"]
    assert rows["prefix_cache"] == ["false", "--prefix-cache"]
    assert rows["host"] == ["127.0.0.1", "default"]
    assert rows["models[0].max_running"] == ["3", str(file)]
    assert "models[1].max_running" not in rows
    assert settings().keys() <= rows.keys()


def test_as_json_every_model_has_every_value(file: Path, capsys: pytest.CaptureFixture[str]):
    content = json.loads(shown(capsys, "--json", "--config", str(file)))
    one, two = content["models"]
    assert (content["server"]["port"], one["max_running"], two["max_running"]) == (81, 3, 9)
    assert one.keys() == two.keys() >= {setting.name for setting in settings().values() if setting.per_model}
    with_origin = json.loads(shown(capsys, "--json", "--origin", "--config", str(file)))
    assert with_origin["server"]["port"] == {"value": 81, "origin": str(file)}


def test_without_a_model_the_settings_are_shown_all_the_same(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SLUICE_MODEL", raising=False)
    assert "8000" in shown(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prot", "1"], "--prot is not a known flag. Did you mean --port?"),
        (["--port", "x"], "--port is 'x': it must be an integer."),
        (["nowhere"], "nowhere is not a folder."),
    ],
)
def test_what_serve_would_refuse_is_refused(
    words: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
):
    try:
        code = main(["config", "show", *words])
    except SystemExit as exit_:
        code = exit_.code
    assert code in (2, 4)
    assert message in capsys.readouterr().err


def test_config_alone_asks_for_the_one_word_that_it_lacks(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["config"])
    assert "are required: show (" in capsys.readouterr().err
