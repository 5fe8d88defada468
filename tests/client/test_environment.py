"""The server's other processes get no secret of its environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.client.environment import passed_on
from tests.client.test_template import started
from tests.client.test_template import supervised as forked
from tests.sandbox.test_process import hostile_sandbox
from tests.supervised import run, supervised, worker_pids

SECRET = "a-secret-of-the-server-0123456789"
NAMES = ("SLUICE_API_KEYS", "SLUICE_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "CUDA_API_KEY")


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, SECRET)


def assert_no_secret(pid: int) -> None:
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert SECRET.encode() not in environment


def test_a_started_worker_gets_no_secret(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path):
            assert_no_secret(worker_pids(tmp_path)[-1])

    run(main())


def test_the_template_and_a_forked_worker_get_no_secret(tmp_path: Path) -> None:
    async def main() -> None:
        with started(tmp_path) as template:
            async with forked(tmp_path, template):
                assert_no_secret(template._process.pid)
                assert_no_secret(worker_pids(tmp_path)[-1])

    run(main())


def test_the_sandbox_gets_no_secret() -> None:
    async def main() -> None:
        async with hostile_sandbox() as sandbox:
            await sandbox.call("echo", 1)
            (pid,) = sandbox.pids
            assert_no_secret(pid)

    run(main())


def test_workers_get_the_variables_that_their_libraries_read() -> None:
    given = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "OMP_PROC_BIND": "close", "LD_PRELOAD": "libjemalloc.so"}
    assert passed_on({**os.environ, **given}).items() >= given.items()
