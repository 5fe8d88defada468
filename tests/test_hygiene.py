"""What the server never does: read objects from bytes, guard with assert, take time from the wall, call out."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from tests.process_tree import descendants
from tests.server_process import ServerProcess

PACKAGE = Path(__file__).parents[1] / "server"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OBJECT_READERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "multiprocessing"}
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
TIMESTAMPS = {"api/text/shapes.py", "api/text/work.py", "serving/registry.py", "serving/templates.py",
              "vllm_metrics.py"}  # fmt: skip
"""Files that write a time of day into an answer; no duration may be made of one."""
MARK = "q7-mark-of-a-client"


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def test_nothing_reads_objects_from_bytes_or_runs_text_as_code() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").partition(".")[0]}
            else:
                modules = set()
            assert not modules & OBJECT_READERS, f"{path} imports {modules}"
            if isinstance(node, ast.Call):
                assert name_of(node.func) not in ("eval", "exec", "compile"), f"{path}: {node.lineno}"
                if name_of(node.func) == "torch.load":
                    # Then torch makes tensors and nothing else.
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("weights_only") == "True", f"{path}: {node.lineno}"


def test_only_timestamps_come_from_the_wall_clock() -> None:
    found = {
        path
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name_of(node.func) in WALL_CLOCK
    }
    assert found == TIMESTAMPS


STATUSES = """
import json, sys
from tests.api.scripted import front, says
from tests.api.shell import client_of, shell
bodies = json.loads(sys.argv[1])
client = client_of(front(says("The mill.")))
found = [client.post("/generate", content=body.encode("utf-8", "surrogatepass"),
                     headers={"content-type": "application/json"}).status_code for body in bodies]
keyed = client_of(shell(api_keys_file=sys.argv[2]))
found += [keyed.get(path).status_code for path in ("/info", "/livez", "/metrics", "/v1/models")]
print(json.dumps(found))
"""
BODIES = ["", "{", "[]", "{}", '{"inputs": 5}', '{"inputs": "a", "x": 1}', '{"inputs": "a", "inputs": "b"}',
          '{"inputs": "a", "parameters": {"top_k": -1}}', '{"inputs": "a", "parameters": {"top_p": NaN}}',
          '{"inputs": "a", "parameters": {"stop_token_ids": [99999999]}}', '{"inputs": "a", "model": "../x"}',
          '{"inputs": "a"}', "[" * 100, '{"inputs": "a", "parameters": {"logit_bias": {"-1": 1}}}']  # fmt: skip


def test_no_guard_is_an_assert(tmp_path: Path) -> None:
    """Asserts vanish with ``python -O``; every refusal stays."""
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sixteen-letters\n")

    def statuses(*flags: str) -> Any:
        command = [sys.executable, *flags, "-c", STATUSES, json.dumps(BODIES), str(keys)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent, check=True, env=os.environ
        )
        return json.loads(done.stdout.splitlines()[-1])

    plain = statuses()
    assert plain.count(200) == 2 and plain[-4:] == [401, 200, 401, 401]
    assert statuses("-O") == plain


class Audit:
    """What this process asks of the system while it is on; a hook can never be taken away."""

    def __init__(self) -> None:
        self.is_on = False
        self.opened: list[str] = []
        self.connected: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event == "open" and MARK in str(arguments[0]):
            self.opened.append(str(arguments[0]))
        if self.is_on and event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
            self.connected.append(str(arguments[1]))


@pytest.fixture(scope="module")
def audit() -> Audit:
    return Audit()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    from tests.api.documented import all_tasks

    with all_tasks() as client:
        yield client


@pytest.mark.parametrize("name", [f"../{MARK}", f"/{MARK}", f"%2e%2e/{MARK}", f"a\x00{MARK}", MARK * 500])
def test_a_clients_name_is_looked_up_and_never_opened(client: TestClient, audit: Audit, name: str) -> None:
    audit.is_on = True
    try:
        asked = [
            client.post("/generate", json={"inputs": "a", "model": name}),
            client.post("/generate", json={"template": name}),
            client.post("/classify", json={"inputs": "a", "model": name}),
            client.post("/v1/completions", json={"prompt": "a", "model": name}),
            client.get(f"/tokenizer_info?model={name.replace(chr(0), '%00')}"),
        ]
        sound = client.post("/generate", json={"inputs": "a"})
    finally:
        audit.is_on = False
    assert {answer.status_code for answer in asked} <= {404, 422, 400} and sound.status_code == 200
    assert not audit.opened and not audit.connected


def test_one_port_is_open_and_no_socket_is_for_everybody(tiny_server: ServerProcess) -> None:
    front = tiny_server.process.pid
    processes = [psutil.Process(front), *descendants(front)]
    listening = [
        connection
        for process in processes
        for connection in process.net_connections(kind="all")
        if connection.status == psutil.CONN_LISTEN or connection.family == socket.AF_UNIX
    ]
    ports = {connection.laddr for connection in listening if connection.family != socket.AF_UNIX}
    assert len(ports) == 1
    # A pair of sockets has no name; one with a name could be reached by others.
    assert not [each.laddr for each in listening if each.family == socket.AF_UNIX and each.laddr]
