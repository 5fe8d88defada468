"""A sandbox whose functions do what no function should, for tests: `python hostile_functions.py --fd N`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from server.sandbox import __main__ as process
from server.sandbox import functions


def echo(value: Any) -> Any:
    return value


def spin() -> None:
    while True:
        pass


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def allocate(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def die() -> None:
    os._exit(1)


def abort() -> None:
    os.abort()


def recurse() -> None:
    recurse()


def refuse() -> None:
    raise ValueError("It is refused.")


def fail() -> None:
    raise KeyError("boom")


def flood(num_bytes: int) -> str:
    return "x" * num_bytes


def write(path: str) -> None:
    Path(path).write_text("written")


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=1)


def run() -> None:
    subprocess.run(["true"], check=True)


def signal_parent() -> None:
    os.kill(os.getppid(), signal.SIGTERM)


def environment() -> list[str]:
    return sorted(os.environ)


if __name__ == "__main__":
    functions.find = globals().__getitem__  # type: ignore[assignment]
    sys.argv[0] = "hostile"
    process.main()
