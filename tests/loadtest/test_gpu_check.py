"""The check of a GPU runs without one, and a phase that fails costs only itself."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "loadtest/gpu_check.py"

pytestmark = pytest.mark.timeout(240)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_script_passes_on_a_cpu_with_tiny_models(tmp_path: Path) -> None:
    """Its phase with a server; `--device cpu --tiny` without `--only` runs the others too."""
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--device", "cpu", "--tiny", "--only", "server"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = records(tmp_path)
    assert not [record for record in found if record["ok"] is False]
    assert [record["state"] for record in found if record["name"] == "phase"] == ["done"]
    assert {"greedy", "beams", "killed workers", "SIGTERM"} <= {record["name"] for record in found if record["ok"]}
    assert run.stdout.splitlines()[-2].split()[:2] == ["phase", "seconds"]


@pytest.mark.parametrize("phase", ["kernels", "families"])
def test_what_a_phase_judges_is_right_on_a_cpu(phase: str, tmp_path: Path) -> None:
    import gpu_check

    options = Namespace(phase=phase, device="cpu", tiny=True, out=tmp_path, tokenizer=tmp_path, limit=200.0)
    assert gpu_check.run_phase(options) == 0
    found = records(tmp_path)
    assert found
    assert all(record["ok"] is not False for record in found), found
    assert any(record["ok"] for record in found)


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with three phases of its own."""
    import gpu_check

    made = tuple(gpu_check.Phase(name, 8, name, name) for name in ("hangs", "crashes", "works"))
    monkeypatch.setattr(gpu_check, "PHASES", made)
    return gpu_check


def test_a_phase_that_hangs_or_crashes_costs_only_itself(
    phases: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {"hangs": "stopped after 8 s", "crashes": "ended with 3", "works": "done"}
    monkeypatch.setattr(phases, "in_a_process", lambda phase, options, limit_s: states[phase.name])
    options = {"out": tmp_path, "only": None, "budget": 100.0, "device": "cuda:0", "phase": None}
    monkeypatch.setattr(phases, "arguments", lambda: Namespace(**options))
    assert phases.main() == 1
    found = {record["phase"]: record for record in records(tmp_path)}
    assert {name: record["state"] for name, record in found.items()} == states
    assert [found[name]["ok"] for name in states] == [False, False, True]
    assert "stopped after 8 s" in capsys.readouterr().out


def test_a_process_that_is_not_done_in_time_is_ended_with_its_children(
    phases: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import subprocess, sys\nsubprocess.run(['sleep', '60'])\n")
    monkeypatch.setattr(phases, "__file__", str(script))
    options = Namespace(out=tmp_path, device="cpu", tokenizer=tmp_path, tiny=False)
    assert phases.in_a_process(phases.PHASES[0], options, 1.0) == "stopped after 1 s"


def test_without_budget_a_phase_is_not_started_and_that_is_no_failure(
    phases: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(phases, "in_a_process", lambda *_args: pytest.fail("it was started"))
    options = {"out": tmp_path, "only": ["works"], "budget": 5.0, "device": "cuda:0", "phase": None}
    monkeypatch.setattr(phases, "arguments", lambda: Namespace(**options))
    assert phases.main() == 0
    assert [record["state"] for record in records(tmp_path)] == ["not started: the budget is used up"]
