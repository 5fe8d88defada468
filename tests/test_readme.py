"""The pages for users are true: their commands run, their replies are real, their tables are generated or checked.

``python tests/test_readme.py`` writes the settings table again.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import httpx2
import pytest

from server.defaults.sources import TRANSLATORS
from server.settings import Setting, settings
from server.tasks import TASKS, Task

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
API = ROOT / "server" / "api" / "README.md"
SETTINGS = ROOT / "server" / "SETTINGS.md"
OPERATING = ROOT / "deploy" / "README.md"
BENCHMARKS = ROOT / "loadtest" / "README.md"
PAGES = [README, API, SETTINGS, OPERATING, BENCHMARKS, *ROOT.glob("*.md"), *(ROOT / "server").glob("*.md")]
ADDRESS = "http://127.0.0.1:8000"
TABLE_HEAD = "| Setting | Default | Meaning |\n| --- | --- | --- |\n"

NOT_RUN = {
    r"\. \.venv/bin/activate": "Makefile",
    r"docker build -t sluice --build-arg TORCH_CPU_INDEX=.* \.": "Dockerfile",
    r"docker run --rm -p 127\.0\.0\.1:8000:8000 -v \./models:/models:ro sluice serve --model [\w-]+": "Dockerfile",
}
"""Commands that no test can run everywhere, and the file that must exist for them to work."""


@dataclass(frozen=True)
class Block:
    """One fenced block, and the one that follows it."""

    language: str
    text: str
    reply: str | None

    @property
    def commands(self) -> list[str]:
        """A shell block's commands; one goes over several lines by a backslash or an open quote."""
        found, open_ = [], ""
        for line in self.text.splitlines(keepends=True):
            open_ += line
            if not line.endswith("\\\n") and open_.count("'") % 2 == 0:
                found.append(open_.strip())
                open_ = ""
        return found


def blocks(page: Path = README) -> list[Block]:
    """A block in a list is indented."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    found = [(language, textwrap.dedent(body)) for _, language, body in pattern.findall(text)]
    following = [*found[1:], ("", "")]
    return [
        Block(language, text, reply if kind in ("json", "text") else None)
        for (language, text), (kind, reply) in zip(found, following, strict=True)
    ]


def shell_commands() -> list[str]:
    """Those of the deployment have a test of their own."""
    every = [block for page in (README, API, BENCHMARKS) for block in blocks(page)]
    return [command for block in every if block.language == "sh" for command in block.commands]


def commands(*first_words: str) -> list[str]:
    """All shell commands that begin with these words."""
    return [command for command in shell_commands() if shlex.split(command)[: len(first_words)] == list(first_words)]


def curls(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "sh" and block.text.startswith("curl ")]


def only_block(language: str) -> Block:
    (block,) = [block for block in blocks() if block.language == language]
    return block


# Commands.


def test_every_shell_command_is_run_or_proven_by_a_test_here():
    proven = [("make",), ("curl",), ("sluice", "serve"), ("sluice", "finetune"), ("sluice", "--version"), ("openssl",)]
    proven += [("python", "loadtest/source_pace.py")]  # by tests/loadtest/test_scripts.py
    covered = [command for words in proven for command in commands(*words)]
    for command in shell_commands():
        if command not in covered:
            needed = [path for pattern, path in NOT_RUN.items() if re.fullmatch(pattern, command)]
            assert needed, f"nothing here runs: {command}"
            assert (ROOT / needed[0]).exists(), f"{command} needs {needed[0]}"


def test_the_readme_has_fewer_than_300_lines():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 300


def test_every_make_target_in_the_pages_exists():
    named = {target for page in PAGES for target in re.findall(r"`make ([\w-]+)", page.read_text(encoding="utf-8"))}
    assert {"serve", "test", "lint", "bench"} <= named
    for target in named:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_version_is_printed():
    (command,) = commands("sluice", "--version")
    done = subprocess.run([sys.executable, "-m", "server", *shlex.split(command)[1:]], capture_output=True, check=True)
    assert done.stdout.startswith(b"sluice ")


# Commands on one's own models, in a folder that has what they name.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with models that exist and no more, and the configuration file of the README."""
    translators = [f"models/{source.name}" for source in TRANSLATORS]
    for name in ("my-llama", "my-classifier", "my-adapter", "my-encoder", "fine-tunes/formal", *translators):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sluice.toml").write_text(only_block("toml").text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_serve_commands_and_the_configuration_file_are_understood(project: Path, monkeypatch: pytest.MonkeyPatch):
    from server.__main__ import main

    served = []
    monkeypatch.setattr("server.client.template.Template.start", lambda models: None)
    monkeypatch.setattr("server.api.run.serve", lambda config, template: served.append(config) or 0)
    for command in commands("sluice", "serve"):
        assert main(shlex.split(command)[1:]) == 0, command
    translators, by_flags, by_file, many, keyed, trained = served
    assert [Path(model.path).name for model in translators.models] == [source.name for source in TRANSLATORS]
    assert [model.name for model in by_flags.models] == ["chat", "formal", "mood"]
    assert (by_file.port, by_file.models[0].max_model_len) == (8080, 4096)
    assert Path(by_file.models[1].base).samefile("my-encoder")
    assert [model.name for model in many.models] == ["base", "formal"] and many.adapters == "./fine-tunes"
    assert trained.models[0].path == "my-classifier"
    assert keyed.api_keys_file == "keys"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_command_for_a_key_makes_a_file_that_the_server_takes(tmp_path: Path):
    from server.api.http import keys

    (command,) = commands("openssl")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    made = keys.load(str(tmp_path / "keys"), {})
    assert made.find(keys.digest_of((tmp_path / "keys").read_text().strip())) is not None


@pytest.mark.defaults
def test_the_training_command_writes_a_folder_for_the_serve_command(tmp_path: Path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(24):
            rows.writerow([f"A wonderful film, I liked it, {number}", "good"])
            rows.writerow([f"A dreadful film, I hated it, {number}", "bad"])
    (command,) = commands("sluice", "finetune")
    words = [sys.executable, "-m", "server", *shlex.split(command)[1:], "--max-steps", "2"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-classifier" / "config.json").exists() or (
        tmp_path / "my-classifier" / "adapter_config.json"
    ).exists()
    assert f"={tmp_path.name}" not in command
    assert any("mood=my-classifier" in served for served in commands("sluice", "serve"))


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


# Requests, to a server with the default models.


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from tests.server_process import running_server

    config = str(ROOT / "deploy" / "defaults.toml")
    templates = str(ROOT / "deploy" / "templates")
    with running_server(
        "--config", config, "--templates", templates, "--kv-cache-gib", "0.25", "--threads", "1"
    ) as server:
        yield server.url


@pytest.fixture(scope="module")
def translating_url() -> Iterator[str]:
    """Of a server that the README's own command starts."""
    from tests.server_process import running_server

    (command,) = [command for command in commands("sluice", "serve") if "translator" in command]
    flags = [word.replace("=models/", f"={ROOT}/models/") for word in shlex.split(command)[2:]]
    with running_server(*flags, "--kv-cache-gib", "0.25", "--threads", "1") as server:
        yield server.url


def run_curl(block: Block, url: str) -> str:
    words = shlex.split(block.text.replace("\\\n", " ").replace(ADDRESS, url))
    assert any(word.startswith(url) for word in words), block.text
    return subprocess.run([*words, "--silent", "--show-error"], capture_output=True, text=True, check=True).stdout


def assert_alike(shown: Any, real: Any, where: str = "reply") -> None:
    """The same shape and the same facts; numbers and generated text may differ from machine to machine."""
    if isinstance(shown, dict):
        assert shown.keys() == real.keys(), where
        for key in shown:
            if key in ("generated_text", "text", "content", "request_id"):
                assert isinstance(real[key], str), f"{where}.{key}"
                assert real[key], f"{where}.{key}"
            elif key not in ("id", "created", "tokens", "system_fingerprint"):
                assert_alike(shown[key], real[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert len(shown) == len(real), where
        for index, (a, b) in enumerate(zip(shown, real, strict=True)):
            assert_alike(a, b, f"{where}[{index}]")
    elif isinstance(shown, float):
        assert real == pytest.approx(shown, abs=0.05), where
    else:
        assert shown == real, where


def is_stream(block: Block) -> bool:
    return '"stream": true' in block.text


def is_translation(block: Block) -> bool:
    """Whether the embedded translators answer it, which the README has served."""
    return "/translate" in block.text and block in curls(README)


@pytest.mark.defaults
@pytest.mark.parametrize(
    "block",
    [block for page in (README, API) for block in curls(page) if not is_stream(block) and not is_translation(block)],
    ids=lambda block: block.text.split()[1][21:],
)
def test_a_request_of_the_pages_gets_the_reply_that_they_show(block: Block, url: str):
    assert block.reply is not None
    assert_alike(json.loads(block.reply), json.loads(run_curl(block, url)))


@pytest.mark.defaults
def test_the_translation_of_the_readme_is_the_one_that_the_embedded_model_gives(translating_url: str):
    (block,) = [block for block in curls(README) if is_translation(block)]
    assert block.reply is not None
    assert json.loads(run_curl(block, translating_url)) == json.loads(block.reply)


@pytest.mark.defaults
@pytest.mark.parametrize("text", ["The mill by the river belongs to Otto.", "No.", ']}] 磨坊 \\ " {'])
def test_the_relations_of_any_text_are_triples(text: str, url: str):
    (block,) = [block for block in curls(API) if '"template": "relations"' in block.text]
    words = shlex.split(block.text.replace("\\\n", " "))
    body = json.loads(words[words.index("-d") + 1])
    body["variables"]["text"] = text
    body["parameters"] |= {"temperature": 2.0, "seed": 1}
    reply = httpx2.post(f"{url}/generate", json=body, timeout=120).json()
    triples = json.loads(reply["generated_text"])
    assert 1 <= len(triples) <= 3
    for triple in triples:
        assert triple.keys() == {"subject", "relation", "object"}
        assert all(isinstance(part, str) and len(part) <= 24 for part in triple.values())


@pytest.mark.defaults
def test_the_streaming_request_of_the_readme_gets_events_like_those_shown(url: str):
    (block,) = [block for block in curls(README) if is_stream(block)]
    assert block.reply is not None
    events = [json.loads(line[5:]) for line in run_curl(block, url).splitlines() if line.startswith("data:")]
    shown = [json.loads(line[5:]) for line in block.reply.splitlines() if line.startswith("data:")]
    assert shown[0].keys() == events[0].keys()
    assert shown[-1].keys() == events[-1].keys()
    assert shown[-1]["details"].keys() == events[-1]["details"].keys()
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)
    assert len(events) == 12


@pytest.mark.defaults
def test_the_python_example_runs_and_labels_as_it_should(url: str, capsys: pytest.CaptureFixture[str]):
    exec(compile(only_block("python").text.replace(ADDRESS, url), "README.md", "exec"), {})
    output = capsys.readouterr().out
    assert "positive" in output
    assert "Portland" in output


@pytest.mark.defaults
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_javascript_example_prints_every_token_of_the_stream(url: str):
    script = only_block("js").text.replace(ADDRESS, url)
    words = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert len(done.stdout.splitlines()) >= 12


# Tables.


def row(setting: Setting) -> str:
    default = "" if setting.default is None else f"{setting.default:,}" if setting.kind is int else str(setting.default)
    if setting.kind is bool:
        default = "on" if setting.default else "off"
    help_ = re.sub(r"``([^`]*)``", r"`\1`", setting.help)
    return f"| `{setting.name}` | {default} | {help_} |\n"


def settings_table() -> str:
    every = settings().values()
    server = "".join(row(setting) for setting in every if not setting.per_model)
    models = "".join(row(setting) for setting in every if setting.per_model)
    return f"{TABLE_HEAD}| **Server** | | |\n{server}| **Models** | | |\n{models}"


def test_the_settings_table_is_the_one_that_the_configuration_gives():
    assert settings_table() in SETTINGS.read_text(encoding="utf-8"), "run: python tests/test_readme.py"


def numbers_of_the_first_column(page: Path) -> set[str]:
    cells = re.findall(r"^\| ([\d, ]+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return set(re.findall(r"\d+", " ".join(cells)))


def test_every_status_of_an_error_is_explained():
    from server import availability_errors, errors, length_errors
    from server.api.http import errors as http_errors

    modules = (errors, length_errors, availability_errors, http_errors)
    known = [value for module in modules for value in vars(module).values()]
    classes = [value for value in known if isinstance(value, type)]
    raised = {str(value.status) for value in classes if issubclass(value, errors.SluiceError)}
    assert raised <= numbers_of_the_first_column(API)


def test_every_exit_code_is_explained():
    from server import endings, errors

    known = {**vars(errors), **vars(endings)}.items()
    exits = {str(value) for name, value in known if name.startswith("EXIT_")}
    assert exits <= numbers_of_the_first_column(OPERATING)


def test_every_file_that_a_change_touches_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[\w/.]+/[\w.]*`.*?) \|", text, re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        folder = (ROOT / names[0]).parent
        missing = [name for name in names if not (ROOT / name).exists() and not (folder / name).exists()]
        assert not missing, row


def test_every_route_of_the_server_is_explained():
    from server.api.app import ROUTERS
    from server.api.status import ENDPOINTS

    text = API.read_text(encoding="utf-8")
    routes = [route for _, router in ROUTERS for route in router.routes if "{" not in route.path]
    shown = [f"{method} {route.path}" for route in routes for method in route.methods - {"HEAD"}]
    for path in shown + [f"GET {path}" for path in ENDPOINTS]:
        assert f"`{path}`" in text, path


def parameters_of(task: Task) -> Iterator[str]:
    """The fields of ``parameters`` in the bodies of the task's own routes."""
    for route in resolve_name(task.router).routes:
        info = route.body_field.field_info.annotation.model_fields.get("parameters")
        classes = get_args(info.annotation) if info is not None else ()
        yield from (name for body in classes if body is not type(None) for name in body.model_fields)


def test_every_parameter_of_a_request_is_named():
    text = API.read_text(encoding="utf-8")
    options = (ROOT / "server" / "OPTIONS.md").read_text(encoding="utf-8")
    named = [name for task in TASKS.values() for name in parameters_of(task)]
    assert {"top_k", "max_new_tokens", "doc_stride"} <= set(named)
    assert [name for name in named if f"`{name}`" not in text and f"| `{name}` |" not in options] == []


if __name__ == "__main__":
    old = SETTINGS.read_text(encoding="utf-8")
    table = re.compile(re.escape(TABLE_HEAD) + r"(\|.*\n)+")
    SETTINGS.write_text(table.sub(lambda _: settings_table(), old, count=1), encoding="utf-8")
