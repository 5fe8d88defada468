"""A real server as a process of its own, for tests: started, awaited, and always gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.process_tree import descendants, end_tree

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


@dataclass
class ServerProcess:
    """Handle of a running `python -m server serve`."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str = ""

    def logs(self) -> str:
        """All that the process has written to stderr so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    def output(self) -> str:
        """All that the process has written to stdout so far: the banner."""
        return (self.folder / "stdout").read_text(errors="replace")

    def log_lines(self) -> list[dict[str, object]]:
        """The JSON lines of the log, parsed."""
        lines = [line for line in self.logs().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, in the order in which they were started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = sorted(descendants(self.process.pid), key=psutil.Process.create_time)
            return [child.pid for child in children if _name(child) == "sluice-worker"]
        return []

    def worker_pid(self, model: str) -> int:
        """Process id of the worker that holds ``model`` now, from the log."""
        for line in reversed(self.log_lines()):
            if line.get("model") == model and "pid" in line and psutil.pid_exists(int(str(line["pid"]))):
                return int(str(line["pid"]))
        raise LookupError(f"no worker of {model} in the log:\n{self.logs()}")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry all of ``labels``; 0.0 where there is none."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.fullmatch(rf"{re.escape(name)}(?:{{(.*)}})? (\S+)", line)
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")) if match else {}
            if match and labels.items() <= found.items():
                total += float(match[2])
        return total

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Exit code, once the process has ended."""
        return self.process.wait(timeout)

    def wait_until_listening(self, timeout: float = START_TIMEOUT_S) -> None:
        """Wait for the port, which is open before the models are loaded."""
        deadline = time.monotonic() + timeout
        while not self.url:
            self._require_alive(deadline)
            for line in self.log_lines():
                self.url = str(line.get("url", self.url))
            time.sleep(0.02)

    def wait_until_ready(self, timeout: float = START_TIMEOUT_S) -> None:
        """Wait until /readyz answers 200."""
        deadline = time.monotonic() + timeout
        self.wait_until_listening(timeout)
        while True:
            self._require_alive(deadline)
            with contextlib.suppress(OSError):
                if self.get("/readyz")[0] == 200:
                    return
            time.sleep(0.1)

    def _require_alive(self, deadline: float) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.logs()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server did not come up:\n{self.logs()}")


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.name()
    return ""


@contextlib.contextmanager
def started_server(*cli_args: str, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """The process, without waiting for anything; on leaving, it and its workers are ended."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", *cli_args]
    with tempfile.TemporaryDirectory(prefix="server-process-") as folder:
        paths = Path(folder)
        with (paths / "stdout").open("wb") as stdout, (paths / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "SLUICE_LOG_FORMAT": "json", **(env or {})},
            )
            try:
                yield ServerProcess(process, paths)
            finally:
                end_tree(process, signal.SIGTERM, within_s=5)


@contextlib.contextmanager
def running_server(*cli_args: str, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that is ready, on a free port: ``running_server("--model", f"name={folder}")``."""
    with started_server(*cli_args, env=env) as server:
        server.wait_until_ready()
        yield server
