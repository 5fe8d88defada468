"""The image, built from the Dockerfile and run as a hardened container runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_SETTINGS
from tests.deploy.balancers import Stream
from tests.deploy.container import Container, container, mounted
from tests.deploy.image import BASE, IMAGE, build, config, size_bytes
from tests.system.clients import eventually

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and running an image takes root"),
]


@pytest.fixture(scope="module")
def image() -> dict[str, Any]:
    """What the built image says of itself."""
    build()
    return config()


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that any user may read."""
    folder = tmp_path_factory.mktemp("mounted") / "models"
    for name, source in (("chat", tiny_llama), ("mood", tiny_classifier)):
        shutil.copytree(source, folder / name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


SERVE = ("serve", "--model", "chat", "--model", "mood", *TINY_SETTINGS)


@pytest.fixture(scope="module")
def running(image: dict[str, Any], models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container that is ready, until the test that stops it."""
    with container(models, tmp_path_factory.mktemp("container"), *SERVE) as started:
        assert eventually(lambda: started.health() == 1), "models are being loaded, and the check is not green"
        started.server.wait_until_ready()
        yield started


def test_the_size_of_the_image_is_measured(image: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    whole, base = size_bytes(IMAGE), size_bytes(BASE)
    with capsys.disabled():
        sys.stdout.write(f"\nThe image has {whole / 1e6:,.0f} MB, {base / 1e6:,.0f} MB of them the base image.\n")
    # With CUDA's libraries it would be several times that.
    assert base < whole < 2e9


def test_the_image_holds_the_kernels_and_no_compiler(image: dict[str, Any]):
    with mounted() as root:
        [native] = root.glob("opt/sluice/lib/python*/site-packages/server/native")
        assert {path.name.split(".")[0] for path in native.glob("*.so")} == {
            "_amx",
            "_avx2",
            "_avx512",
            "_avxvnni",
            "_tiles",
        }
        for compiler in ("cc", "gcc", "g++", "c++"):
            assert not (root / "usr/bin" / compiler).exists()


def test_the_image_checks_its_health_and_stops_by_sigterm(image: dict[str, Any]):
    assert image["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["StartPeriod"] >= 300e9
    assert image["Entrypoint"] == ["sluice"]
    assert image["Cmd"] == ["serve"]


def test_arguments_take_the_place_of_serve(image: dict[str, Any], models: Path, tmp_path: Path):
    with container(models, tmp_path, "--version") as asked:
        assert asked.server.wait() == 0
        assert asked.server.output().startswith("sluice ")


def test_the_server_is_process_1_without_rights_and_its_root_is_read_only(running: Container):
    for process in (running.main, *running.main.children(recursive=True)):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert running.execute("cat", "/proc/1/comm").stdout == "sluice\n"
    refused = running.execute("touch", "/opt/sluice/written")
    assert "Read-only file system" in refused.stderr


def test_the_health_check_is_green(running: Container):
    assert running.health() == 0


def ask(container: Container, path: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        container.server.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_models_answer_without_a_network(running: Container):
    interfaces = running.execute("cat", "/proc/net/dev").stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    answer = ask(running, "/generate", {"inputs": "The miller", "parameters": {"max_new_tokens": 5, "details": True}})
    assert answer["details"]["generated_tokens"] <= 5
    [[label, *_]] = ask(running, "/classify", {"inputs": "A wonderful film"})
    assert label["label"] in ("negative", "neutral", "positive")


def test_sigterm_lets_a_running_stream_finish(running: Container):
    stream = Stream(running.server.url)
    running.main.send_signal(signal.SIGTERM)
    assert eventually(lambda: running.server.get("/readyz")[0] == 503, within_s=5)
    outcome = stream.finish()
    assert outcome.is_whole
    assert len(outcome.token_ids) == 450
    assert running.server.wait(30) == 0
    assert "Traceback" not in running.server.logs()
    assert "Warning" not in running.server.logs()
