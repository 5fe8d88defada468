"""A worker's life, from its first frame to its exit code. Which engine it runs is for the caller to say.

Light on purpose: the connection must be watched before the heavy imports begin.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from server.config import ModelConfig
from server.errors import EXIT_INTERNAL, ConfigurationError
from server.protocol import Command, Load, LoadAdapter, Ready, Refused
from server.worker import loop
from server.worker.connection import Connection

Build = Callable[[ModelConfig, int, int, Sequence[LoadAdapter]], tuple[loop.Engine, Ready]]
"""Loads a model and makes its engine. Raises ConfigurationError if it cannot be served.

The numbers are those of `Load`: workers that load at the same time, and models on the same GPU.
"""

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
NAME = b"sluice-worker"
"""What lists of processes show: a fork has the command line of what it was forked from."""

log = logging.getLogger("sluice.worker")


def main(build: Build, arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve one model on the inherited socket and end the process."""
    fd = inherited_socket("python -m server.worker", arguments)
    prepare()
    run(build, socket.socket(fileno=fd))


def inherited_socket(program: str, arguments: Sequence[str] | None) -> int:
    """The file descriptor that the command line names; no child of ours gets it."""
    parser = argparse.ArgumentParser(prog=program, description="Internal: only the server starts it.")
    parser.add_argument("--fd", type=int, required=True, help="number of the inherited socket")
    fd: int = parser.parse_args(arguments).fd
    os.set_inheritable(fd, False)
    return fd


def run(build: Build, sock: socket.socket) -> NoReturn:
    """Serve one model on ``sock`` and end the process, which is prepared."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, NAME)
    connection = Connection(sock)
    connection.exit_with_front()
    end(_exit_code(build, connection))


def _exit_code(build: Build, connection: Connection) -> int:
    """Serve until the front closes. The one place that answers for any exception: the process ends."""
    try:
        serve(build, connection)
    except ConfigurationError as error:
        return error.exit_code
    except Exception:
        log.exception("the worker ends")
        return EXIT_INTERNAL
    return 0


def serve(build: Build, connection: Connection) -> None:
    """Load the model that the first frame names, say so, and run its engine."""
    commands = connection.receive(wait=True)
    if commands is None:
        return
    load = _load(commands)
    model = load.model
    started_s = time.monotonic()
    try:
        engine, ready = _built(build, load)
    except ConfigurationError as error:
        connection.send([Refused(" ".join(str(error).split()), error.exit_code)])
        raise
    except Exception as error:
        line = f"Model {model.name} could not be loaded: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        connection.send([Refused(line, EXIT_INTERNAL)])
        raise
    connection.send([msgspec.structs.replace(ready, load_s=time.monotonic() - started_s)])
    loop.run(engine, connection)


def _built(build: Build, load: Load) -> tuple[loop.Engine, Ready]:
    """Without garbage collections, which find nothing and take a fifth of the time that imports and loading take."""
    gc.disable()
    try:
        return build(load.model, load.num_loading, load.num_on_gpu, load.adapters)
    finally:
        gc.enable()


def _load(commands: list[Command]) -> Load:
    if len(commands) == 1 and isinstance(load := commands[0], Load):
        return load
    raise ValueError("the first frame to a worker is one Load")


def prepare() -> None:
    """Die with the front, leave Ctrl-C and SIGTERM to it, and show where a crash or a stall is."""
    if sys.platform == "linux":
        # Besides the end of the connection: this works even where no thread of ours can run.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.WARNING, format="worker %(process)d: %(name)s: %(message)s")


def end(exit_code: int) -> NoReturn:
    """End now: nothing that a destructor could do is worth waiting for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
