"""A short soak: mixed load of every route, clients that leave, killed workers; nothing is lost and nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from held import Held
from soak import LIMITS, growth
from soak_requests import OF_ANY, OF_CHATS, requests_for

from server.api.http.addresses import canonical_path
from server.tasks import TASKS
from tests.api.shell import shell

SCRIPT = Path(__file__).parents[2] / "loadtest" / "soak.py"
REST = Held(front_mib=100, workers_mib=500, descriptors=30, threads=20, tasks=5, blocks=0, requests=0)


@pytest.mark.timeout(240)
def test_nothing_is_lost_and_nothing_grows_under_mixed_load(tiny_models: tuple[str, ...]) -> None:
    flags = ("--minutes", "0.15", "--spells", "2", "--clients", "6", "--kill-every", "1.5")
    command = [sys.executable, SCRIPT, *flags, "--", *tiny_models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    saved = Path(done.stdout.strip().splitlines()[-1].removeprefix("saved to "))
    [result] = json.loads(saved.read_text())["results"]
    saved.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["outcomes"]["answered"] > 50 and result["outcomes"]["left"] > 5
    assert result["kills"] >= 2


def test_every_operation_of_the_document_is_under_load() -> None:
    models = [
        {"name": "chat", "task": "generate", "has_chat_template": True},
        {"name": "pairs", "relevance_label": "yes", "entailment_label": "yes"},
        {"name": "masks", "mask_token": "[MASK]"},
    ]
    asked = {canonical_path(request.path) for request in requests_for({"models": models, "tasks": list(TASKS)})}
    documented = {path for path in shell().openapi()["paths"] if "{" not in path}
    assert documented - asked <= {"/readyz", "/startupz"}
    assert asked - documented == {"/nothing", "/openapi.json"}
    assert len(OF_ANY) + len(OF_CHATS) < len(asked)


@pytest.mark.parametrize("name", Held.__dataclass_fields__)
def test_growth_beyond_a_limit_is_found(name: str) -> None:
    more = getattr(REST, name) + getattr(LIMITS, name)
    at_limit = Held(**{**REST.__dict__, name: more})
    beyond = Held(**{**REST.__dict__, name: more + 1})
    assert growth([REST, beyond, at_limit]) == []
    [problem] = growth([REST, REST, beyond])
    assert problem.startswith(f"{name}: ")
