"""What answers at once imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "tokenizers", "fastapi", "starlette", "pydantic", "uvicorn", "numpy"}
SCRIPT = """
import contextlib, io, json, sys
from server.__main__ import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main(json.loads(sys.argv[1]))
print(json.dumps([shown.getvalue(), list(sys.modules)]))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["serve", "--help"], ["finetune", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(words)], capture_output=True, text=True, check=True)
    shown, modules = json.loads(done.stdout)
    assert "sluice" in shown
    assert not HEAVY & {name.split(".")[0] for name in modules}


def test_the_template_is_started_before_the_fronts_own_imports() -> None:
    script = "import sys, server.client.template; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & {name.split(".")[0] for name in done.stdout.split()}
