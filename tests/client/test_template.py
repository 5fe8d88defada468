"""Workers that are forked from a template: like those that are started, and there whatever happens to the template."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest

from server.client import template as template_module
from server.client.supervisor import Supervisor
from server.client.template import Template, serves
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_CRASH_LOOP, ConfigurationError
from tests.supervised import FAKE_WORKER, FAST, collect, generate, is_alive, kill_worker, run, until, worker_pids

FAKE_TEMPLATE = (sys.executable, "-m", "tests.client.fake_template")


def fake_model(folder: Path) -> ModelConfig:
    return ModelConfig(name="fake", path=str(folder), threads=1, device="cpu")


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[Template]:
    template = Template.start([fake_model(folder)], [*FAKE_TEMPLATE, *flags])
    assert template is not None
    try:
        yield template
    finally:
        template.close()


@asynccontextmanager
async def supervised(folder: Path, template: Template) -> AsyncIterator[Supervisor]:
    config = ServeConfig(models=(fake_model(folder),), **FAST)
    supervisor = Supervisor(config, command=FAKE_WORKER, template=template)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()
        assert not any(map(is_alive, worker_pids(folder))), "a worker outlived its supervisor"


def is_fork(pid: int) -> bool:
    return "tests.client.fake_template" in psutil.Process(pid).cmdline()


def test_a_forked_worker_is_a_child_of_the_front_and_serves_like_any(tmp_path: Path) -> None:
    async def main() -> None:
        with started(tmp_path) as template:
            async with supervised(tmp_path, template) as supervisor:
                (pid,) = worker_pids(tmp_path)
                assert is_fork(pid)
                worker = psutil.Process(pid)
                assert (worker.ppid(), worker.name()) == (os.getpid(), "sluice-worker")
                assert len(await collect(supervisor.clients["fake"], generate(3))) == 40

    run(main())


def test_a_killed_fork_is_replaced_by_another_and_its_requests_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        with started(tmp_path) as template:
            async with supervised(tmp_path, template) as supervisor:
                client = supervisor.clients["fake"]
                expected = await collect(client, generate(5, num_tokens=200))
                killed = False

                def kill_once(_: object) -> None:
                    nonlocal killed
                    if not killed:
                        killed = True
                        os.kill(worker_pids(tmp_path)[-1], signal.SIGKILL)

                assert await collect(client, generate(5, num_tokens=200), kill_once) == expected
                assert len(worker_pids(tmp_path)) == 2
                assert is_fork(worker_pids(tmp_path)[-1])

    run(main())


def test_workers_outlive_their_template_and_those_after_it_are_started_without_one(tmp_path: Path) -> None:
    async def main() -> None:
        with started(tmp_path) as template:
            async with supervised(tmp_path, template) as supervisor:
                client = supervisor.clients["fake"]
                template.close()
                assert len(await collect(client, generate(1))) == 40
                assert len(worker_pids(tmp_path)) == 1
                await kill_worker(tmp_path)
                await until(lambda: len(worker_pids(tmp_path)) == 2)
                assert len(await collect(client, generate(2))) == 40
                assert not is_fork(worker_pids(tmp_path)[-1])

    run(main())


@pytest.mark.parametrize("flag", ["--threads", "--deaf"])
def test_a_template_that_cannot_fork_costs_no_more_than_a_slow_start(tmp_path: Path, flag: str) -> None:
    async def main() -> None:
        with started(tmp_path, flag) as template:
            async with supervised(tmp_path, template) as supervisor:
                assert not is_fork(worker_pids(tmp_path)[-1])
                assert len(await collect(supervisor.clients["fake"], generate(1))) == 40

    run(main())


def test_a_forks_refusal_and_its_exit_code_reach_the_operator(tmp_path: Path) -> None:
    async def main() -> None:
        with started(tmp_path) as template:
            config = ServeConfig(models=(fake_model(tmp_path / "nowhere"),), **FAST)
            with pytest.raises(ConfigurationError, match="is no folder"):
                await Supervisor(config, command=FAKE_WORKER, template=template).start()

    run(main())


def test_a_forks_way_to_die_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        (tmp_path / "fault.json").write_text(json.dumps({"when": "decode", "kind": "segv", "times": 1}))
        with started(tmp_path) as template:
            config = ServeConfig(models=(fake_model(tmp_path),), **{**FAST, "max_restarts": 1})
            supervisor = Supervisor(config, command=FAKE_WORKER, template=template)
            await supervisor.start()
            try:
                with pytest.raises(Exception, match="process keeps failing"):
                    await collect(supervisor.clients["fake"], generate(1))
                with pytest.raises(ConfigurationError) as caught:
                    await supervisor.run()
                assert caught.value.exit_code == EXIT_CRASH_LOOP
            finally:
                await supervisor.stop()

    run(main())
    (death,) = [record for record in caplog.records if record.getMessage() == "worker died"]
    assert death.fields["cause"] == "ended with signal SIGSEGV"  # type: ignore[attr-defined]


def test_a_killed_front_takes_template_and_forks_with_it(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.client.test_template import started, supervised\n"
        "async def main():\n"
        "    with started(Path(sys.argv[1])) as template:\n"
        "        async with supervised(Path(sys.argv[1]), template):\n"
        "            print('ready', flush=True)\n"
        "            await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as front:
        assert front.stdout is not None
        assert front.stdout.readline() == b"ready\n"
        family = psutil.Process(front.pid).children(recursive=True)
        assert len(family) == 2
        front.kill()
        front.wait()
        assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_template_whose_front_has_gone_imports_nothing() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        # Its imports would end it with 1.
        command = [*FAKE_TEMPLATE, "--deaf", "--fd", str(theirs.fileno())]
        subprocess.run(command, pass_fds=[theirs.fileno()], timeout=60, check=True)


@pytest.mark.parametrize(
    ("device", "has_gpu", "expected"),
    [
        ("cpu", True, True),
        ("auto", False, True),
        ("auto", True, False),
        ("cuda", True, False),
        ("cuda:1", False, False),
    ],
)
def test_only_workers_that_leave_gpus_alone_are_forked(
    device: str, has_gpu: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (str(tmp_path),) if has_gpu else (str(tmp_path / "nothing"),)
    monkeypatch.setattr(template_module, "DEVICE_FILES", files)
    model = ModelConfig(name="fake", path=str(tmp_path), device=device)
    assert serves(model) is expected
    if not expected:
        assert Template.start([model], FAKE_TEMPLATE) is None
