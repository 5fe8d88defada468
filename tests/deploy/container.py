"""A container of the image, made of namespaces alone: no runtime, no registry, no cgroups are needed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.deploy.balancers import free_port
from tests.deploy.image import IMAGE, buildah, config
from tests.server_process import ServerProcess
from tests.system.clients import eventually

SCRIPT = Path(__file__).with_name("run_image.sh")
NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts")


@dataclass
class Container:
    """A running one: ``server`` for what clients see, ``main`` is its process 1."""

    server: ServerProcess
    main: psutil.Process
    image: dict[str, Any]

    def health(self) -> int:
        """Exit code of the image's health check, run inside."""
        kind, *command = self.image["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.execute(*command).returncode

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command beside the server, as its user and with its variables."""
        user, group = self.image["User"].split(":")
        inside = ("nsenter", "--target", str(self.main.pid), *NAMESPACES, "--root", "--wd")
        inside = (*inside, "--setuid", user, "--setgid", group, "env", "--ignore-environment", *self.image["Env"])
        return subprocess.run([*inside, *command], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def mounted() -> Iterator[Path]:
    """The image's files."""
    name = buildah("from", "--pull-never", IMAGE)
    try:
        yield Path(buildah("mount", name))
    finally:
        buildah("rm", name)


@contextmanager
def container(models: Path, folder: Path, *arguments: str) -> Iterator[Container]:
    """The image with ``models`` at /models and these arguments in place of its own."""
    image = config()
    command = [*image["Env"], *image["Entrypoint"], *(arguments or image["Cmd"])]
    with ExitStack() as stack:
        root = stack.enter_context(mounted())
        place = (SCRIPT, root, models, image["User"], image["WorkingDir"])
        out, err = (stack.enter_context((folder / name).open("wb")) for name in ("stdout", "stderr"))
        process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", *place, *command], stdout=out, stderr=err
        )
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        assert eventually(lambda: bool(psutil.Process(process.pid).children())), (folder / "stderr").read_text()
        [main] = psutil.Process(process.pid).children()
        server = ServerProcess(process, folder, stack.enter_context(_published(main.pid, folder)))
        yield Container(server, main, image)


@contextmanager
def _published(pid: int, folder: Path) -> Iterator[str]:
    """Port 8000 of the process's network as a port of ours: a Unix socket is seen by both."""
    port, meeting = free_port(), folder / "published"
    relays = [
        ["nsenter", "--target", str(pid), "--net", "socat", f"UNIX-LISTEN:{meeting},fork", "TCP:127.0.0.1:8000"],
        ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", f"UNIX-CONNECT:{meeting}"],
    ]
    running = [subprocess.Popen(relay, stderr=subprocess.DEVNULL) for relay in relays]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        for relay in running:
            relay.kill()
            relay.wait(10)
