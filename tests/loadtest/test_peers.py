"""The peers' tables say what was measured, and their processes' answers are read one by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peer_environment
import peers
import pytest

PROCESS = """
import json, sys
print(json.dumps({"version": "1"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["texts"] == ["end"]:
        break
    print(json.dumps({"seconds": 2.0, "new_tokens": [request["new_tokens"]] * len(request["texts"])}), flush=True)
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    monkeypatch.setattr(peers, "SCRIPT", script)
    monkeypatch.setattr(peer_environment, "installed", lambda: Path(sys.executable))
    with peers.Peer("openvino", "folder") as running:
        yield running


def test_a_peer_generates_in_its_own_process_and_its_own_time_counts(peer: peers.Peer) -> None:
    assert peer.facts == {"version": "1"}
    assert peers._generate(peer)(["a", "b"], 8) == {"seconds": 2.0, "tokens_per_s": 8.0}


def test_a_peer_that_ends_is_an_error(peer: peers.Peer) -> None:
    with pytest.raises(RuntimeError, match="ended"):
        peer.ask(texts=["end"], new_tokens=1)


def test_the_environment_is_made_once_for_each_list_of_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        if "venv" in command:
            minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
            (Path(command[-1]) / "lib" / minor / "site-packages").mkdir(parents=True)

    monkeypatch.setattr(peer_environment, "_run", run)
    monkeypatch.setattr(peer_environment, "ENVIRONMENT", tmp_path / "environment")
    for _ in range(2):
        peer_environment.installed()
    assert sum("venv" in command for command in commands) == 1
    [install] = [command for command in commands if "install" in command]
    assert set(peer_environment.REQUIREMENTS) < set(install)
    monkeypatch.setattr(peer_environment, "REQUIREMENTS", ("another",))
    peer_environment.installed()
    assert sum("venv" in command for command in commands) == 2


def case(new_tokens: int, prompt_tokens: int, speeds: dict[str, float]) -> dict[str, Any]:
    return {
        "case": {"new_tokens": new_tokens, "prompt_tokens": prompt_tokens},
        "sides": {name: {"tokens_per_s": speed} for name, speed in speeds.items()},
        "ratios": {f"plain / {peers.FP16}": 2.0},
    }


def test_the_table_has_every_side_and_prompt_tokens_where_one_token_is_generated() -> None:
    speeds = {"plain": 100.0, "int8": 200.0, peers.FP16: 50.0, peers.INT8: 60.0, peers.STATIC: 20.0}
    cases = {"8 streams": case(64, 128, speeds), "long prompts": case(1, 1024, dict.fromkeys(speeds, 2.0))}
    header, *rows = peers.shown({"peers": {"cases": cases}}).splitlines()
    assert [name for name in speeds if name in header] == list(speeds)
    assert rows[0].split() == ["8", "streams", "100", "200", "50.00", "60.00", "20.00", "2.00"]
    assert rows[1].split()[2:] == ["2,048"] * 5 + ["2.00"]


def test_the_table_of_encoders_says_how_many_labels_are_equal() -> None:
    found = {
        "sides": {"float32": {"requests_per_s": 76.0}, peers.ONNXRUNTIME: {"requests_per_s": 38.0}},
        "ratios": {f"float32 / {peers.ONNXRUNTIME}": 2.0},
        "agreement": {"float32": {"equal": 991, "texts": 992}, peers.ONNXRUNTIME: {"equal": 992, "texts": 992}},
    }
    rows = [" ".join(row.split()) for row in peers.shown({"peer-encoders": found}).splitlines()[1:]]
    assert rows == ["float32 76.00 2.00 991 of 992", "onnxruntime float32 38.00 992 of 992"]


def test_scores_of_a_peer_have_the_shape_of_the_route() -> None:
    scores = peers._scores([0.0, 1.0], ["bad", "good"])
    assert [each["label"] for each in scores] == ["bad", "good"]
    assert sum(each["score"] for each in scores) == pytest.approx(1.0)
    assert json.dumps(scores)
