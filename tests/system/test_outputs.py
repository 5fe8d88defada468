"""Several outputs on a real server whose worker is killed in the middle: each client sees what it would have seen."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import httpx2
import pytest

from tests.server_process import ServerProcess

KINDS: dict[str, dict[str, Any]] = {
    "samples": {"n": 3, "do_sample": True, "seed": 5},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
}


def outputs(server: ServerProcess, parameters: dict[str, Any], kill_after: int | None = None) -> dict[int, Any]:
    """By sequence: token ids, text and end. The worker is killed after so many events."""
    body = {
        "inputs": "The river runs past the mill",
        "stream": True,
        "parameters": {"max_new_tokens": 90, "ignore_eos": True, "details": True, **parameters},
    }
    found: dict[int, Any] = {}
    with httpx2.stream("POST", server.url + "/generate", json=body, timeout=100) as response:
        assert response.status_code == 200, response.read()
        lines = (line for line in response.iter_lines() if line and line != ": keep-alive")
        for number, line in enumerate(lines):
            assert line.startswith("data: "), line
            event = json.loads(line.removeprefix("data: "))
            ids, end = found.setdefault(event["sequence"], ([], []))
            assert not end, "an event after the last"
            ids.append(event["token"]["id"])
            assert event["index"] == len(ids)
            if event["details"] is not None:
                score = event["details"].get("score")
                end += [event["generated_text"], event["details"]["finish_reason"], score and round(score, 4)]
            if number == kill_after:
                os.kill(server.worker_pid("chat"), signal.SIGKILL)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_changes_no_output_of_a_running_request(tiny_server: ServerProcess, kind: str) -> None:
    undisturbed = outputs(tiny_server, KINDS[kind])
    num_restarts = tiny_server.metric("sluice_worker_restarts_total")
    assert outputs(tiny_server, KINDS[kind], kill_after=5) == undisturbed
    assert tiny_server.metric("sluice_worker_restarts_total") == num_restarts + 1
    assert len(undisturbed) == KINDS[kind].get("n", 2)
    assert all(end for _, end in undisturbed.values())
