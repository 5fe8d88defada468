"""`python -m server.worker.template`: imports what every worker needs, once, and forks a worker for whoever asks.

Imports take seconds of a core for each worker, and are the same for all. A fork has them at once, and its memory is
the template's until one of the two changes it. Forking is safe as long as there is one thread and no device in use:
the first is looked at before each fork, the second is for the front to know.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from server.config import ModelConfig
from server.errors import EXIT_INTERNAL
from server.protocol import LoadAdapter, Ready
from server.worker import loop, process

PID = struct.Struct("<i")
"""The answer to each descriptor that is sent: the process that has it now, or 0 if there is none."""
ADOPTION_LIMIT_S = 10.0
ADOPTION_LOOK_S = 0.0005

Preload = Callable[[], object]
"""Imports; starts no thread."""


def main(build: process.Build, preload: Preload, arguments: Sequence[str] | None = None) -> NoReturn:
    """Fork a worker for each socket that comes in, until the front is gone."""
    fd = process.inherited_socket("python -m server.worker.template", arguments)
    front = os.getppid()
    process.prepare()
    control = socket.socket(fileno=fd)
    if _has_hung_up(control):
        # The front ended before it could take us with it; the imports would keep a core busy for nobody.
        process.end(0)
    # Collections in between find nothing, and take a fifth of the time.
    gc.disable()
    preload()
    # Not looked at by the collector again, which would write into every page that the forks share.
    gc.collect()
    gc.freeze()
    while descriptor := _receive(control):
        pid = 0 if _num_threads() > 1 else _fork(front, control, descriptor, build)
        os.close(descriptor)
        control.sendall(PID.pack(pid))
    process.end(0)


def _has_hung_up(control: socket.socket) -> bool:
    poll = select.poll()
    poll.register(control, 0)
    return bool(poll.poll(0))


def _receive(control: socket.socket) -> int | None:
    """The next worker's end of its connection. None once the front has closed."""
    try:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    except ConnectionError:
        return None
    return descriptors[0] if descriptors else None


def _num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _fork(front: int, control: socket.socket, descriptor: int, build: process.Build) -> int:
    """Process id of a worker that is the front's own child: its parent ends at once, and the front adopts it."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(parent, 0)
        return PID.unpack(answer)[0] if answer else 0
    try:
        between = os.getpid()
        worker = os.fork()
        if worker:
            os.write(writer, PID.pack(worker))
            os._exit(0)
        os.close(reader)
        os.close(writer)
        control.close()
        _wait_for_adoption(between, front)
        process.prepare()
        process.run(build, socket.socket(fileno=descriptor))
    finally:
        # Whatever went wrong, a fork never goes on with the template's work.
        os._exit(EXIT_INTERNAL)


def _wait_for_adoption(between: int, front: int) -> None:
    deadline_s = time.monotonic() + ADOPTION_LIMIT_S
    while os.getppid() == between and time.monotonic() < deadline_s:
        time.sleep(ADOPTION_LOOK_S)
    if os.getppid() != front:
        # The front has gone, or adopts nobody: there is no one to work for, and no one who would end us.
        os._exit(0)


def _preload() -> None:
    for name in (
        "server.models.loader",
        "server.models.packed_linear",
        "server.engine.engine",
        "server.engine.executors.build",
        "server.engine.phrase_index",
        "server.encoder.build",
        "server.encoder.engine",
        "server.encoder.quality",
        "server.worker.kernel_trial",
    ):
        importlib.import_module(name)


def _build(
    model: ModelConfig, num_loading: int, num_on_gpu: int, adapters: Sequence[LoadAdapter]
) -> tuple[loop.Engine, Ready]:
    import torch

    from server.worker.__main__ import build

    # The template's libraries have read their environment, which was every model's.
    torch.set_num_threads(model.threads or int(os.environ["OMP_NUM_THREADS"]))
    return build(model, num_loading, num_on_gpu, adapters)


if __name__ == "__main__":
    main(_build, _preload)
