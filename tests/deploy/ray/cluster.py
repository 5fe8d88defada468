"""A Ray cluster of this machine alone with replicas of Sluice in it: started, awaited, and gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from tests.process_tree import descendants, end_tree

FOLDER = Path(__file__).parents[3] / "deploy/ray"
CLIENT = httpx2.Client(timeout=60)
START_TIMEOUT_S = 600.0
NUM_STARTS = 4
"""Ray gives its own processes half a minute to come up, which a busy machine may need longer for."""


@dataclass
class Replica:
    """One replica's front process and the worker below it."""

    process: psutil.Process

    def workers(self) -> list[psutil.Process]:
        return [child for child in descendants(self.process.pid) if _title(child) == "sluice-worker"]


@dataclass
class Cluster:
    """Handle of a running `serve run`."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path

    def replicas(self) -> list[Replica]:
        """Those that have a worker."""
        found = [Replica(one) for one in descendants(self.process.pid) if _title(one).startswith("ray::ServeReplica")]
        return [replica for replica in found if replica.workers()]

    def finished(self) -> list[tuple[int, dict[str, Any]]]:
        """Requests to /generate that have ended: the replica's process id and what its log says, in order."""
        lines = re.findall(r"pid=(\d+)\)\S* (\{.*\})$", self.output.read_text(), re.MULTILINE)
        logged = [(int(pid), json.loads(line)) for pid, line in lines]
        return [(pid, fields) for pid, fields in logged if fields.get("route") == "/generate" and "status" in fields]

    def workers(self) -> list[psutil.Process]:
        return [worker for replica in self.replicas() for worker in replica.workers()]


@contextlib.contextmanager
def standing_still(workers: list[psutil.Process]) -> Iterator[None]:
    """Inside the block these compute nothing; the replicas' fronts go on.

    The workers are looked for before, since a short stream may be over by the time they are found.
    """
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGCONT)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return (process.cmdline() or [""])[0] if process.name().startswith("ray::") else process.name()
    return ""


def local_config(port: int, variables: Mapping[str, str], **deployment: Any) -> dict[str, Any]:
    """deploy/ray/config.yaml for this small machine: its address, models and sizes changed."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "config.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    application["runtime_env"]["env_vars"].pop("SLUICE_CONFIG")
    application["runtime_env"]["env_vars"] |= variables
    [only] = application["deployments"]
    only["ray_actor_options"] = {"num_cpus": 0.1}
    for name, value in deployment.items():
        only[name] = {**only[name], **value} if isinstance(value, dict) else value
    return config


@contextlib.contextmanager
def running_cluster(programs: Path, variables: Mapping[str, str], **deployment: Any) -> Iterator[Cluster]:
    """Ready with its least number of replicas; everything is ended on leaving."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    # Ray's sockets lie in its folder, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(local_config(port, variables, **deployment)))
        for starts_left in reversed(range(NUM_STARTS)):
            cluster = Cluster(_start(programs, folder), f"http://127.0.0.1:{port}", Path(folder) / "output")
            try:
                if _is_ready_in_time(cluster) or starts_left == 0:
                    assert cluster.process.poll() is None, cluster.output.read_text()
                    yield cluster
                    return
            finally:
                end_tree(cluster.process, signal.SIGINT, within_s=60)


def _start(programs: Path, folder: str) -> subprocess.Popen[bytes]:
    with (Path(folder) / "output").open("wb") as sink:
        return subprocess.Popen(
            [programs / "serve", "run", f"{folder}/config.yaml"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **_environment(folder)},
        )


def _environment(folder: str) -> dict[str, str]:
    """What Ray's processes find besides ours: where the application is; nothing is kept or sent outside the folder."""
    paths = [str(FOLDER), str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_TMPDIR": folder,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Every line of a replica's log comes out, and a busy machine has time to tell how busy its replicas are.
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    }


def _is_ready_in_time(cluster: Cluster) -> bool:
    """False for a cluster whose process has ended."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while cluster.process.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if CLIENT.get(f"{cluster.url}/readyz").status_code == 200:
                return True
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"serve did not come up:\n{cluster.output.read_text()}")
        time.sleep(0.5)
    return False
