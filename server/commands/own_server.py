"""A server of the command's own, on a free port of this machine alone, for as long as the command runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from server.commands.http_client import Client, Refused
from server.errors import EXIT_MODEL, ConfigurationError
from server.status_line import StatusLine

PR_SET_PDEATHSIG = 1
POLL_S = 0.1
STOP_S = 10.0
KEPT_LINES = 20
KEYS = "SLUICE_API_KEYS"
"""How variables begin that make a server ask for keys."""


@contextlib.contextmanager
def own_server(folder: str, flags: Sequence[str]) -> Iterator[str]:
    """Its address, once it is ready. Raises `ConfigurationError` with its last words if it cannot be."""
    if not Path(folder.partition("=")[2] or folder).is_dir() and not Path(folder).is_dir():
        raise ConfigurationError(
            f"{folder} is not a folder. Give the path of a model folder, or --url of a server.", exit_code=EXIT_MODEL
        )
    command = [sys.executable, "-m", "server", "serve", folder, *flags]
    process = subprocess.Popen(
        # The command's word wins over SLUICE_PORT and the like.
        [*command, "--host", "127.0.0.1", "--port", "0", "--log-format", "json", "--log-level", "info"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Of its own, so that Ctrl-C is for the command alone.
        start_new_session=True,
        # Nobody else reaches it.
        env={name: value for name, value in os.environ.items() if not name.startswith(KEYS)},
        # There is no other thread yet.
        preexec_fn=_end_with_parent(),  # noqa: PLW1509
    )
    try:
        log = _Log(process)
        yield _wait_until_ready(process, log, Path(folder).name)
    finally:
        _end(process)


class _Log:
    """Reads what the server writes, for as long as it writes: its address, and its last lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.urls: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.lines: list[str] = []
        self._process = process
        self._thread = threading.Thread(target=self._read, name="server log", daemon=True)
        self._thread.start()

    def last_words(self) -> str:
        """The line that says why it ended."""
        self._thread.join(1.0)
        said = [line.removeprefix("sluice: ") for line in self.lines if line.startswith("sluice: ")]
        return said[-1] if said else "\n".join(self.lines) or "The server stopped without a message."

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines = [*self.lines[1 - KEPT_LINES :], line.rstrip()]
            with contextlib.suppress(ValueError, AttributeError):
                url = json.loads(line).get("url")
                if url:
                    self.urls.put(url)


def _wait_until_ready(process: subprocess.Popen[str], log: _Log, name: str) -> str:
    status = StatusLine(sys.stderr) if sys.stderr.isatty() else None
    if status is None:
        sys.stderr.write(f"Loading {name}.\n")
    started_s = time.monotonic()
    client: Client | None = None
    try:
        while process.poll() is None:
            if status is not None:
                status.show(f"Loading {name}: {time.monotonic() - started_s:.0f} s")
            if client is None:
                with contextlib.suppress(queue.Empty):
                    client = Client(log.urls.get(timeout=POLL_S))
            elif _is_ready(client):
                return client.url
            else:
                time.sleep(POLL_S)
    finally:
        if status is not None:
            status.show("")
        if client is not None:
            client.close()
    raise ConfigurationError(log.last_words(), exit_code=process.returncode if process.returncode > 0 else EXIT_MODEL)


def _is_ready(client: Client) -> bool:
    try:
        client.get("/readyz")
    except Refused:
        return False
    return True


def _end_with_parent() -> Callable[[], object] | None:
    """What a child does first, where the system can: to be ended when this process is, however that comes."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(process: subprocess.Popen[str]) -> None:
    """Quickly: nobody else uses it, so there is nothing to wait for."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S if number is signal.SIGKILL else STOP_S / 2)
    if process.stderr is not None:
        process.stderr.close()
