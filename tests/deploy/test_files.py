"""The container's files agree with each other and with the server's settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from server import settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
REPLICAS = [service for name, service in COMPOSE["services"].items() if name.startswith("replica")]


def instructions(name: str) -> list[str]:
    """Arguments of every ``name`` instruction of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", text, flags=re.MULTILINE)


def test_hadolint_finds_nothing_in_the_dockerfile():
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this machine")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_health_check_is_a_program_that_answers_by_its_exit_code():
    [check] = instructions("HEALTHCHECK")
    program, flag, source = json.loads(check[check.index("[") :])
    assert (program, flag) == ("python", "-c")
    compile(source, "healthcheck", "exec")
    refused = subprocess.run(
        [sys.executable, "-c", source],
        env={"SLUICE_PORT": "9"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "Connection refused" in refused.stderr


def test_the_image_runs_the_server_as_a_numeric_user_and_is_stopped_as_the_server_drains():
    assert instructions("ENTRYPOINT") == ['["sluice"]']
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    [user] = instructions("USER")
    assert all(int(part) > 0 for part in user.split(":"))


def test_every_variable_of_the_replicas_is_a_setting_of_the_server():
    known = {"SLUICE_CONFIG", *(f"{settings.PREFIX}{name.upper()}" for name in settings.settings())}
    for replica in REPLICAS:
        assert set(replica["environment"]) <= known


def test_every_variable_of_the_balancer_is_given_and_names_a_replica():
    needed = set(re.findall(r"\$\{(\w+)\}", (ROOT / "deploy/haproxy.cfg").read_text()))
    given = COMPOSE["services"]["balancer"]["environment"]
    assert needed == set(given)
    hosts = {value.split(":")[0] for name, value in given.items() if name.startswith("SLUICE_SERVER")}
    assert hosts == {name for name in COMPOSE["services"] if name.startswith("replica")}


def test_a_replica_has_time_to_drain_before_it_is_killed():
    for replica in REPLICAS:
        drain_s = sum(float(replica["environment"][f"SLUICE_DRAIN_{part}_S"]) for part in ("DELAY", "TIMEOUT"))
        assert float(replica["stop_grace_period"].removesuffix("s")) > drain_s


def test_every_model_of_the_default_configuration_is_mounted_where_it_is_looked_for():
    models = tomllib.loads((ROOT / "deploy/defaults.toml").read_text())["models"]
    for replica in REPLICAS:
        mounted = {}
        for volume in replica["volumes"]:
            source, target, mode = volume.split(":")
            assert mode == "ro"
            mounted[target] = (ROOT / "deploy" / source).resolve()
        config = Path(replica["environment"]["SLUICE_CONFIG"])
        assert mounted[str(config)] == ROOT / "deploy/defaults.toml"
        for path in (path for model in models for path in (model["path"], model.get("base")) if path):
            inside = Path(os.path.normpath(config.parent / path))
            target = next(Path(target) for target in mounted if inside.is_relative_to(target))
            assert mounted[str(target)] / inside.relative_to(target) == (ROOT / "deploy" / path).resolve()
