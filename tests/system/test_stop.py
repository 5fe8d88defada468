"""How the server ends: asked once, asked twice, unable to start, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.api.http.listener import bind
from server.errors import EXIT_CONFIG, EXIT_CRASH_LOOP, EXIT_PORT, ConfigurationError
from tests.api.raw import connected, read_all
from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server, started_server
from tests.system.clients import Outcome, body, eventually, generate_all
from tests.system.test_templates import sandboxes

pytestmark = pytest.mark.timeout(240)


class Clients:
    """Requests that run in a thread; ``started`` is set by their first token."""

    def __init__(self, server: ServerProcess, requests: list[dict[str, Any]]) -> None:
        self.started = threading.Event()
        self.outcomes: list[Outcome] = []
        self._thread = threading.Thread(target=self._run, args=(server.url, requests), daemon=True)
        self._thread.start()
        assert self.started.wait(60)

    def _run(self, url: str, requests: list[dict[str, Any]]) -> None:
        self.outcomes = asyncio.run(generate_all(url, requests, self.started.set))

    def finish(self) -> list[Outcome]:
        self._thread.join(90)
        assert not self._thread.is_alive()
        return self.outcomes


@pytest.fixture
def one_model(tiny_llama: Path) -> tuple[str, ...]:
    return ("--model", f"chat={tiny_llama}", *TINY_SETTINGS)


def stream_request(text: str, **parameters: int) -> bytes:
    content = json.dumps(body(text, stream=True, **parameters)).encode()
    lines = ("POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode() + content


def processes_below(server: ServerProcess) -> list[psutil.Process]:
    """Workers, what they are forked from, and a sandbox, which has rendered a conversation."""
    parameters = {"max_new_tokens": 1, "details": True}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "parameters": parameters}
    [outcome] = asyncio.run(generate_all(server.url, [chat]))
    assert outcome.status == 200
    assert server.worker_pids()
    assert sandboxes(server)
    return psutil.Process(server.process.pid).children(recursive=True)


def plain_lines(server: ServerProcess) -> list[str]:
    """What stands on stderr besides the log's JSON lines."""
    return [line for line in server.logs().splitlines() if line and not line.startswith("{")]


def test_sigterm_lets_running_requests_finish_and_takes_no_new_ones(one_model):
    with running_server(*one_model, "--max-running", "2") as server:
        children = processes_below(server)
        requests = [body(f"Number {i}", stream=i % 2 == 0, max_new_tokens=200) for i in range(12)]
        clients = Clients(server, requests)
        server.signal(signal.SIGTERM)
        assert eventually(lambda: server.get("/readyz")[0] == 503, within_s=20)
        assert server.get("/livez")[0] == 200
        [refused] = asyncio.run(generate_all(server.url, [body("late", stream=True, max_new_tokens=5)]))
        assert (refused.status, refused.error_code) == (503, "draining")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-should-retry"] == "true"
        assert refused.headers["connection"] == "close"
        outcomes = clients.finish()
        assert [len(outcome.token_ids) for outcome in outcomes if outcome.is_whole] == [200] * 12
        assert server.wait() == 0
        assert psutil.wait_procs(children, timeout=30)[1] == []
        assert plain_lines(server) == []
        assert "is ready" in server.output()


def test_a_second_sigterm_ends_every_request_with_an_error_and_exits_0(one_model):
    with running_server(*one_model, "--max-running", "1") as server:
        requests = [body(f"Number {i}", stream=True, max_new_tokens=450) for i in range(40)]
        requests += [body(f"Number {i}", stream=False, max_new_tokens=450) for i in range(40)]
        clients = Clients(server, requests)
        assert eventually(lambda: server.metric("sluice_admitted_requests") > 60, within_s=30)
        server.signal(signal.SIGTERM)
        assert eventually(lambda: server.get("/readyz")[0] == 503, within_s=20)
        server.signal(signal.SIGTERM)
        assert server.wait(40) == 0
        outcomes = clients.finish()
        cut = [outcome for outcome in outcomes if not outcome.is_whole]
        # One that was still being read when the first signal came is refused as any newcomer.
        ended = [outcome for outcome in cut if outcome.error_code != "draining"]
        assert len(ended) > 40
        assert {outcome.error_code for outcome in ended} == {"server_shutdown"}
        assert {outcome.status for outcome in cut if outcome.token_ids} == {200}
        assert {outcome.status for outcome in cut if not outcome.token_ids} == {503}


def test_a_second_signal_ends_the_server_in_two_seconds_beside_clients_that_read_nothing(one_model):
    with running_server(*one_model) as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        readers = [stack.enter_context(connected(port)) for _ in range(2)]
        for number, connection in enumerate(readers):
            connection.sendall(stream_request(f"Number {number}", max_new_tokens=450))
        assert eventually(lambda: server.metric("sluice_admitted_requests") == 2)
        silent = stack.enter_context(connected(port))
        silent.sendall(b"GET /livez HTTP/1.1\r\n")
        server.signal(signal.SIGSTOP)
        # Both arrive together, as from an impatient hand.
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGINT)
        server.signal(signal.SIGCONT)
        start_s = time.monotonic()
        assert server.wait(40) == 0
        # Two seconds on a machine that is not busy with other tests.
        assert time.monotonic() - start_s < 8
        for connection in readers:
            assert b'"server_shutdown"' in read_all(connection)


def test_a_thread_that_cannot_be_stopped_does_not_hold_up_the_end(one_model, tmp_path):
    script = tmp_path / "blocked.py"
    script.write_text(
        "import asyncio, sys, time\n"
        "from server.api import run\n"
        "async def load(app):\n"
        "    await asyncio.to_thread(time.sleep, 100)\n"
        "run.load = load\n"
        "from server.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, str(script), "serve", "--port", "0", *one_model]
    env = {**os.environ, "SLUICE_LOG_FORMAT": "json", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, env=env, stderr=stderr, stdout=subprocess.DEVNULL)
        try:
            assert eventually(lambda: b'"listening"' in (tmp_path / "stderr").read_bytes(), within_s=60)
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_sigterm_while_a_worker_is_replaced_ends_the_server_and_its_requests(one_model):
    with running_server(*one_model, "--restart-backoff-s", "60") as server:
        clients = Clients(server, [body("Number", stream=True, max_new_tokens=450)])
        os.kill(server.worker_pid("chat"), signal.SIGKILL)
        assert eventually(lambda: server.get("/readyz")[0] == 503)
        server.signal(signal.SIGTERM)
        start_s = time.monotonic()
        assert server.wait(40) == 0
        assert time.monotonic() - start_s < 15
        assert [outcome.error_code for outcome in clients.finish()] == ["server_shutdown"]


def test_sigterm_while_the_models_load_ends_the_server_at_once(one_model):
    with started_server(*one_model) as server:
        server.wait_until_listening()
        assert eventually(lambda: server.get("/livez")[0] == 200)
        assert server.get("/startupz")[0] == 503
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children, "imports have begun, in a worker or in what workers are forked from"
        server.signal(signal.SIGTERM)
        assert server.wait(40) == 0
        assert psutil.wait_procs(children, timeout=30)[1] == []


def test_a_port_in_use_is_one_line_and_an_exit_code_before_any_model_loads(one_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started_server(*one_model, "--port", str(port)) as server:
            assert server.wait(60) == EXIT_PORT
            [line] = plain_lines(server)
            assert f"port {port}" in line
            assert "--port" in line
            assert "worker started" not in server.logs()


@pytest.mark.parametrize("host", ["a..b", "caf\u00e9" * 30, "nowhere.invalid"])
def test_a_host_that_is_none_is_refused_like_a_port_in_use(host):
    with pytest.raises(ConfigurationError, match="cannot be used") as refused:
        bind(host, 0)
    assert refused.value.exit_code == EXIT_PORT


def test_a_wrong_setting_is_one_line_and_an_exit_code(one_model):
    with started_server(*one_model, "--max-running", "0") as server:
        assert server.wait(60) == EXIT_CONFIG
        [line] = plain_lines(server)
        assert "max_running" in line or "--max-running" in line


def test_a_worker_that_cannot_be_kept_alive_ends_the_server_with_its_own_exit_code(one_model):
    with running_server(*one_model, "--max-restarts", "1", "--max-running", "1") as server:
        requests = [body(f"Number {i}", stream=i % 2 == 0, max_new_tokens=450) for i in range(20)]
        clients = Clients(server, requests)
        os.kill(server.worker_pid("chat"), signal.SIGKILL)
        assert server.wait() == EXIT_CRASH_LOOP
        [line] = plain_lines(server)
        assert "chat" in line
        assert "Traceback" not in server.logs()
        cut = [outcome for outcome in clients.finish() if not outcome.is_whole]
        assert cut
        assert {outcome.error_code for outcome in cut} == {"server_shutdown"}


def test_a_killed_front_leaves_no_process(one_model):
    with running_server(*one_model) as server:
        tree = [psutil.Process(server.process.pid), *processes_below(server)]
        server.process.kill()
        server.wait()
        assert psutil.wait_procs(tree, timeout=30)[1] == []


def test_the_front_never_loads_torch(tiny_server):
    """Seen in what the running processes have mapped; the workers show that the test can see it."""

    def libraries(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert all("libtorch" in libraries(pid) for pid in tiny_server.worker_pids())
    assert "libtorch" not in libraries(tiny_server.process.pid)
    script = "import sys, server.api.run; print(sorted({name.split('.')[0] for name in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "peft", "safetensors"} & set(json.loads(modules.replace("'", '"')))
