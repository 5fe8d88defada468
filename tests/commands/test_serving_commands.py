"""Commands that start a server of their own end it; serve shows on a terminal how far it is."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil

from tests.commands.processes import called, on_terminal, run
from tests.server_process import ServerProcess
from tests.system.clients import eventually


def test_serve_takes_folders_before_between_and_after_flags(tiny_llama: Path, tiny_classifier: Path, tiny_tagger: Path):
    done = called("serve", tiny_llama, "--plan", f"mood={tiny_classifier}", "--threads", "1", f"names={tiny_tagger}")
    assert done.returncode == 0, done.stderr
    planned = [line.split()[0] for line in done.stdout.splitlines() if "For" in line]
    assert planned == [tiny_llama.name, "mood", "names"]


def test_on_a_terminal_serve_shows_its_loading_in_one_line_and_takes_it_away(tiny_llama: Path):
    with on_terminal("serve", f"chat={tiny_llama}", "--port", "0") as terminal:
        terminal.wait_for("loading 0 of 1  chat ...")
        terminal.wait_for("is ready: http://127.0.0.1:")
        terminal.type("\x03")
        assert terminal.wait() == 0
    before = terminal.shown[: terminal.shown.index("=====")]
    assert before.endswith("\r\x1b[K")
    assert re.search(r"worker ready  model=chat", before)


def test_in_a_log_loading_is_lines_alone(tiny_server: ServerProcess):
    logs = tiny_server.logs()
    assert "\x1b" not in logs
    assert "\r" not in logs
    assert "worker ready" in logs


def test_a_chat_over_a_folder_has_a_server_of_its_own_which_ends_with_it(tiny_llama: Path):
    with on_terminal("chat", tiny_llama, "--set", "max_new_tokens=8", "--set", "ignore_eos=true") as terminal:
        terminal.answer("Hi\n")
        terminal.wait_for("8 tokens")
        (server,) = psutil.Process(terminal.process.pid).children()
        terminal.answer("/quit\n")
        assert terminal.wait() == 0
        assert not server.is_running()


def test_a_chat_that_is_killed_leaves_no_server_behind(tiny_llama: Path):
    with on_terminal("chat", tiny_llama) as terminal:
        chat = psutil.Process(terminal.process.pid)
        # The server, and what its workers are forked from: no model has to be there for this.
        assert eventually(lambda: len(chat.children(recursive=True)) > 1, within_s=60)
        tree = chat.children(recursive=True)
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()
        _, alive = psutil.wait_procs(tree, timeout=30)
        assert alive == []


def test_a_folder_that_cannot_be_served_ends_the_command_with_the_servers_last_words(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    done = run("chat", tmp_path)
    assert done.returncode == 4
    assert "which transformers does not know" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("sluice: ")
