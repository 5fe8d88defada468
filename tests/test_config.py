"""The settings: where each value may come from, which source wins, and what is said of a wrong one."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import main
from server.config import ModelConfig, ServeConfig
from server.errors import ConfigurationError
from server.settings import Setting, add_flags, field_docstrings, load, settings

ALL = list(settings().values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes for a model's."""
    path = tmp_path / "tiny"
    path.mkdir()
    return path


def loaded(*flags: str, **environment: str) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load(parser.parse_args(flags), environment)


def value_of(config: ServeConfig, setting: Setting) -> Any:
    return getattr(config.models[0] if setting.per_model else config, setting.name)


def other_value(setting: Setting, folder: Path) -> tuple[str, Any]:
    """A legal value that is not the default, as text and as itself."""
    if setting.kind is bool:
        return str(not setting.default).lower(), not setting.default
    if setting.choices:
        return setting.choices[-1], setting.choices[-1]
    by_name = {"host": "127.0.0.2", "device": "cuda:1", "max_batch_tokens": 512}
    by_name |= {"allowed_hosts": "sluice.example", "trusted_proxies": "10.0.0.0/8"}
    by_name |= {"cors_origins": "https://chat.example", "api_keys_file": str(folder / "keys")}
    by_name |= dict.fromkeys(("base", "templates", "topics", "adapters", "watched_adapters"), str(folder))
    value = by_name.get(setting.name, setting.default + 2 if setting.kind is not str else None)
    return str(value), value


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: setting.name)
def test_every_setting_is_a_flag_a_variable_and_a_key_and_all_three_reach_the_configuration(
    setting: Setting, folder: Path, tmp_path: Path
):
    text, value = other_value(setting, folder)
    assert value != setting.default
    flags = [setting.flag, text]
    if setting.kind is bool:
        flags = [setting.flag if value else setting.flag.replace("--", "--no-")]
    file = tmp_path / "sluice.toml"
    quoted = f'"{text}"' if setting.kind is str else text
    file.write_text(f'{setting.name} = {quoted}\n[[models]]\npath = "tiny"\n')

    assert value_of(loaded("--model", str(folder), *flags), setting) == value
    assert value_of(loaded("--model", str(folder), **{setting.variable: text}), setting) == value
    assert value_of(loaded("--config", str(file)), setting) == value


def test_a_flag_beats_a_variable_which_beats_the_file_which_beats_the_default(folder: Path, tmp_path: Path):
    file = tmp_path / "sluice.toml"
    file.write_text('port = 1\n[[models]]\npath = "tiny"\n')
    flags = ["--config", str(file)]
    assert loaded("--model", str(folder)).port == 8000
    assert loaded(*flags).port == 1
    assert loaded(*flags, SLUICE_PORT="2").port == 2
    assert loaded(*flags, "--port", "3", SLUICE_PORT="2").port == 3
    assert loaded(SLUICE_CONFIG=str(file)).port == 1


def test_a_models_own_table_beats_what_is_said_for_every_model(tmp_path: Path, folder: Path):
    file = tmp_path / "sluice.toml"
    file.write_text(
        "max_running = 9\n"
        '[[models]]\nname = "one"\npath = "tiny"\nthreads = 1\n'
        '[[models]]\nname = "two"\npath = "tiny"\n'
    )
    one, two = loaded("--config", str(file), "--threads", "4").models
    assert (one.threads, two.threads) == (1, 4)
    assert (one.max_running, two.max_running) == (9, 9)


def test_models_are_named_by_flag_or_by_their_folder_and_replace_those_of_the_file(folder: Path, tmp_path: Path):
    file = tmp_path / "sluice.toml"
    file.write_text('[[models]]\npath = "tiny"\nname = "from-file"\n')
    assert [m.name for m in loaded("--config", str(file)).models] == ["from-file"]
    config = loaded("--config", str(file), "--model", f"chat={folder}", "--model", f"{folder}/")
    assert [(m.name, Path(m.path)) for m in config.models] == [("chat", folder), ("tiny", folder)]
    config = loaded(SLUICE_MODEL=f"chat={folder},{folder}")
    assert [m.name for m in config.models] == ["chat", "tiny"]


def test_a_path_in_the_file_starts_at_the_file_and_one_on_the_command_line_where_the_command_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "deploy").mkdir()
    file = tmp_path / "deploy" / "sluice.toml"
    file.write_text('topics = "../tiny"\n[[models]]\nname = "a"\npath = "../tiny"\nbase = "../tiny"\n')
    monkeypatch.chdir(folder)
    config = loaded("--config", "../deploy/sluice.toml")
    assert config.topics is not None and Path(config.topics).samefile(folder)
    (model,) = config.models
    assert Path(model.path).samefile(folder)
    assert model.base is not None
    assert Path(model.base).samefile(folder)
    monkeypatch.chdir(tmp_path)
    assert Path(loaded("--model", "tiny").models[0].path).samefile(folder)


def test_kubernetes_own_variable_for_a_service_named_sluice_is_not_taken_for_the_port(folder: Path):
    variables = {"SLUICE_PORT": "tcp://10.0.0.7:80", "SLUICE_SERVICE_HOST": "10.0.0.7", "SLUICE_PORT_80_TCP": "x"}
    assert loaded("--model", str(folder), **variables).port == 8000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot = 1", "unknown setting prot. Did you mean port?"),
        ("xyzzy = 1", "unknown setting xyzzy."),
        (
            '[[models]]\npath = "tiny"\ndtpye = "auto"',
            "[[models]] number 1: unknown setting dtpye. Did you mean dtype",
        ),
        ('[[models]]\npath = "tiny"\nport = 1', "[[models]] number 1: unknown setting port."),
        ('[[models]]\nname = "a"', "[[models]] number 1 lacks path"),
        ('models = "tiny"', "models is a list of tables"),
        ("[models]\npath = 'tiny'", "models is a list of tables"),
        ('port = "80"', "port is '80': it must be an integer."),
        ("port = true", "port is True: it must be an integer."),
        ("prefix_cache = 1", "prefix_cache is 1: it must be true or false."),
        ("keep_alive_s = nan", "keep_alive_s is nan: it must be a number."),
        ('log_level = "loud"', "log_level is 'loud': it must be one of debug, info, warning, error."),
        ("port = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(content: str, message: str, tmp_path: Path, folder: Path):
    file = tmp_path / "sluice.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as error:
        loaded("--config", str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "many"], "--port is 'many': it must be an integer."),
        (["--port", "99999"], "port is 99999: it must be 0 to 65535."),
        (["--dtype", "int4"], "--dtype is 'int4': it must be one of auto, float32, bfloat16, float16."),
        (["--kv-cache-gib", "inf"], "--kv-cache-gib is inf: it must be a number."),
        (["--device", "tpu"], "device is tpu: it must be auto, cpu, cuda or cuda:N."),
        (["--max-queued-requests", "0"], "max_queued_requests is 0: it must be at least 1."),
        (["--prot", "1"], "--prot is not a known flag. Did you mean --port?"),
        (["--stall-timeout-s", "0"], "stall_timeout_s is 0.0: it must be above 0."),
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read: No such file or directory."),
        (["--cors-origins", "https://a.example, https://b.example/"], "cors_origins has https://b.example/: "),
        (["--cors-origins", "chat.example"], "a scheme and a host, such as https://chat.example."),
        (
            ["--allowed-hosts", "a.example,http://b.example"],
            "allowed_hosts has http://b.example: it must be a host name",
        ),
        (["--allowed-hosts", "b.example:80"], "allowed_hosts has b.example:80: it must be a host name without scheme"),
        (
            ["--trusted-proxies", "10.0.0.0/8, balancer"],
            "trusted_proxies is 10.0.0.0/8, balancer: it must be addresses",
        ),
        (["--trusted-proxies", "10.0.0.1/8"], "trusted_proxies is 10.0.0.1/8: it must be addresses or networks"),
        (["--unready-queue-percent", "101"], "unready_queue_percent is 101: it must be from 0 to 100."),
        (["--max-connections", "0"], "max_connections is 0: it must be at least 1."),
        (["--port"], "expected one argument"),
    ],
)
def test_a_bad_value_is_one_plain_line_and_exit_code_2(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    try:
        code = main(["serve", "--model", str(folder), *arguments])
    except SystemExit as exit_:
        code = exit_.code
    output = capsys.readouterr()
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize("origins", ["*", "http://localhost:3000, tauri://localhost,null", " ,"])
def test_origins_as_browsers_send_them_are_taken(origins: str, folder: Path):
    assert loaded("--model", str(folder), "--cors-origins", origins).cors_origins == origins


def test_a_bad_variable_is_named_and_a_misspelt_one_is_not_ignored(folder: Path):
    with pytest.raises(ConfigurationError, match="SLUICE_PORT is 'x': it must be an integer"):
        loaded("--model", str(folder), SLUICE_PORT="x")
    with pytest.raises(ConfigurationError, match=r"Unknown variable SLUICE_MODELS. Did you mean SLUICE_MODEL\?"):
        loaded(SLUICE_MODELS=str(folder))


def test_no_model_two_of_one_name_and_a_missing_folder_are_refused(folder: Path):
    with pytest.raises(ConfigurationError, match="There is no model to serve"):
        loaded()
    with pytest.raises(ConfigurationError, match="Two models have the same name"):
        loaded("--model", str(folder), "--model", str(folder))
    with pytest.raises(ConfigurationError, match="is not a folder") as error:
        loaded("--model", f"a={folder}/nothing")
    assert error.value.exit_code == 4
    for name in ("templates", "topics", "adapters", "watched_adapters"):
        with pytest.raises(ConfigurationError, match=f"{name} is .*nothing, which is not a folder"):
            loaded("--model", str(folder), f"--{name.replace('_', '-')}", f"{folder}/nothing")


@pytest.mark.parametrize("owner", [ServeConfig, ModelConfig])
def test_every_field_is_explained_where_it_stands(owner: type):
    explained = field_docstrings(owner)
    for field in dataclasses.fields(owner):
        assert explained[field.name].endswith("."), field.name


def test_help_and_version_import_nothing_heavy():
    program = (
        "import sys; from server.__main__ import main\n"
        "try: main([sys.argv[1]] if len(sys.argv) == 2 else sys.argv[1:])\n"
        "except SystemExit as exit_: assert exit_.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'pydantic', 'uvicorn', 'tokenizers', 'peft'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    for arguments in (["--help"], ["--version"], ["serve", "--help"], ["finetune", "classify", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_help_explains_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for setting in ALL:
        assert setting.flag in text
        assert " ".join(setting.help.replace("``", "").split()[:4]) in text


@pytest.mark.defaults
def test_the_committed_file_of_default_models_is_valid():
    config = loaded("--config", str(Path(__file__).parents[1] / "deploy" / "defaults.toml"))
    assert [model.name for model in config.models] == ["smollm2-135m-instruct", "minilm-l6", "sentiment", "rampart"]
