"""No command ends in a traceback: one sentence and an exit code, whatever is wrong around it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

from server.__main__ import COMMANDS
from server.errors import EXIT_INTERNAL, EXIT_IO
from tests.commands.fake_server import fake_server
from tests.commands.processes import COMMAND, TIMEOUT_S, called, environment

UNREADABLE = "/proc/self/mem"
"""It can be opened, and reading it fails, for root too."""


def assert_is_one_sentence(done: subprocess.CompletedProcess[str], exit_code: int) -> None:
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("sluice")
    assert done.stderr.rstrip().count("\n") == 0, done.stderr


def write_to(path: str, words: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """The command, with this file as its standard output."""
    with Path(path).open("w") as stdout:
        return subprocess.run(
            [*COMMAND, *map(str, words)], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True,
            timeout=TIMEOUT_S, check=False, env=environment(),
        )  # fmt: skip


def write_to_nobody(words: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """The command, with a pipe as its standard output whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [*COMMAND, *map(str, words)], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, text=True,
            timeout=TIMEOUT_S, check=False, env=environment(),
        )  # fmt: skip
    finally:
        os.close(writer)


def commands_that_print(folder: Path, url: str) -> list[list[object]]:
    return [
        ["--help"],
        ["--version"],
        ["serve", "--help"],
        ["config", "show"],
        ["models", "--url", url],
        ["plan", folder],
        ["predict", "--url", url, "text"],
        ["bench", "--url", url, "--requests", "1"],
    ]


def test_a_full_disk_is_named(tiny_classifier: Path):
    with fake_server() as server:
        for words in commands_that_print(tiny_classifier, server.url):
            done = write_to("/dev/full", words)
            assert "Traceback" not in done.stderr
            assert done.returncode == EXIT_IO, words
            assert "cannot be used: no space left on device." in done.stderr


def test_a_reader_that_has_gone_ends_a_command_in_silence(tiny_classifier: Path):
    with fake_server() as server:
        for words in commands_that_print(tiny_classifier, server.url):
            done = write_to_nobody(words)
            assert done.returncode == 141, words
            assert "Traceback" not in done.stderr
            assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("place", ["a folder", "an unreadable file", "a file in a file"])
def test_a_path_that_cannot_be_used_is_named(place: str, tmp_path: Path, tiny_classifier: Path):
    (tmp_path / "file").write_text("x")
    path = {"a folder": tmp_path, "an unreadable file": UNREADABLE, "a file in a file": tmp_path / "file" / "x"}[place]
    data = tmp_path / "data.csv"
    data.write_text("text,label\nw,x\n" + "".join(f"text {number},y\n" for number in range(30)))
    model = f"x={tiny_classifier}"
    with fake_server() as server:
        cases: list[list[object]] = [
            ["serve", model, "--config", path],
            ["serve", model, "--api-keys-file", path],
            ["plan", model, "--config", path],
            ["check", "--config", path],
            ["config", "show", "--config", path],
            ["predict", "--url", server.url, "--input", path],
            ["finetune", "classify", "--model", tiny_classifier, "--data", path, "--out", tmp_path / "out"],
            ["finetune", "ner", "--model", tiny_classifier, "--data", path, "--out", tmp_path / "out"],
            ["finetune", "classify", "--model", path, "--data", data, "--out", tmp_path / "out"],
            ["finetune", "classify", "--model", tiny_classifier, "--data", data, "--out", path],
        ]
        if place != "a folder":
            cases += [["serve", f"x={path}"], ["plan", f"x={path}"], ["models", path], ["chat", path], ["bench", path]]
        if place != "an unreadable file":
            cases += [["predict", "--url", server.url, "text", "--output", path]]
        for words in cases:
            done = called(*map(str, words))
            said = done.stderr + done.stdout
            assert "Traceback" not in said, words
            assert done.returncode in (2, 4, EXIT_IO), (words, said)
            assert str(path) in said, (words, said)


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_every_command_in_silence(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(_options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module(f"server.commands.{command}"), "run", run)
    done = called(command, *REQUIRED.get(command, ()))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bug_in_any_command_has_its_traceback_in_a_file(command: str, monkeypatch: pytest.MonkeyPatch):
    def run(_options: object) -> int:
        raise ValueError("two\nlines")

    monkeypatch.setattr(import_module(f"server.commands.{command}"), "run", run)
    done = called(command, *REQUIRED.get(command, ()))
    assert_is_one_sentence(done, EXIT_INTERNAL)
    assert done.stderr.startswith("sluice: Internal error: ValueError: two lines. The details are in ")
    log = Path(done.stderr.rstrip().rstrip(".").rpartition(" ")[2])
    assert "Traceback" in log.read_text()
    log.unlink()


REQUIRED = {
    "convert": ("FOLDER", "OUT"),
    "config": ("show",),
    "finetune": ("classify", "--model", "x", "--data", "x", "--out", "x"),
}
"""Words without which a command does not begin."""


def test_ctrl_c_while_a_real_command_loads_leaves_no_traceback(tiny_classifier: Path):
    process = subprocess.Popen(
        [*COMMAND, "plan", str(tiny_classifier)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    # In the middle of its imports, which take seconds.
    deadline_s = time.monotonic() + TIMEOUT_S
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in stderr
    assert process.returncode == 130
