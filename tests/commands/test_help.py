"""Every command explains itself at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from server.__main__ import COMMANDS, main
from tests.commands.processes import run

HEAVY = {"torch", "transformers", "peft", "tokenizers", "fastapi", "starlette", "pydantic", "uvicorn", "numpy"}
MOST_CPU_S = 0.5
SCRIPT = """
import json, sys
from server.__main__ import main
try:
    main([sys.argv[1], "--help"])
except SystemExit as exit_:
    assert exit_.code == 0
print(json.dumps(list(sys.modules)))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_less_than_half_a_second_and_imports_nothing_heavy(command: str):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", SCRIPT, command], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_CPU_S
    shown, _, modules = done.stdout.rstrip().rpartition("\n")
    assert shown.startswith(f"usage: sluice {command}")
    assert f"    sluice {command}" in shown, "an example"
    assert "``" not in shown
    assert not HEAVY & {name.split(".")[0] for name in json.loads(modules)}


def test_the_list_of_commands_has_each_with_what_it_does(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for command, summary in COMMANDS.items():
        assert f"{command} {summary}" in text


def test_a_misspelt_command_or_flag_is_answered_with_the_nearest_one():
    for words, message in (
        (["severe"], "sluice: unknown command severe. Did you mean serve?"),
        (["chat", "--systen", "x"], "sluice chat: --systen is not a known flag. Did you mean --system?"),
        (["bench", "--stream=2"], "sluice bench: --stream=2 is not a known flag. Did you mean --streams?"),
        (["config"], "sluice config: the following arguments are required: show"),
    ):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1


def test_without_a_command_the_help_is_shown():
    done = run()
    assert done.returncode == 2
    assert "usage: sluice" in done.stdout
