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
from server.api.http.errors import HostNotAllowed
from server.api.http.hosts import AllowedHosts
from server.config import ModelConfig, ServeConfig

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
MODELS = (ModelConfig(name="tiny", path="nowhere"),)
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


def test_on_gpus_every_replica_builds_the_cuda_image_and_has_a_gpu_of_its_own():
    gpus = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())["services"]
    assert set(gpus) == {name for name in COMPOSE["services"] if name.startswith("replica")}
    asked = []
    for replica in gpus.values():
        assert replica["build"]["args"] == {"VARIANT": "cuda"}
        assert replica["image"] != REPLICAS[0]["image"], "one tag for two images"
        [device] = replica["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        asked += device["device_ids"]
    assert len(set(asked)) == len(gpus)
    assert all(replica["build"]["args"]["VARIANT"] == "cpu" for replica in REPLICAS), "no GPU is asked for there"


def test_caches_of_compiled_kernels_lie_where_a_replica_may_write_and_execute():
    environment = instructions("ENV")[-1]
    defaults = dict(entry.split("=", 1) for entry in environment.split() if "=" in entry)
    caches = {name for name in defaults if name.endswith("CACHE_DIR")}
    assert caches == {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    assert all(defaults[name].startswith("/tmp/") for name in caches) and defaults["HOME"] == "/tmp"
    assert "--gpus all --read-only --tmpfs /tmp:exec,size=1g" in (ROOT / "Dockerfile").read_text()
    for replica in yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())["services"].values():
        [(place, options)] = [entry.split(":") for entry in replica["tmpfs"]]
        assert "exec" in options.split(",")
        assert all(replica["environment"][name].startswith(f"{place}/") for name in caches)


def test_the_cuda_image_has_a_compiler_for_triton_and_the_cpu_image_has_none():
    [final] = [step for step in instructions("RUN") if "gcc" in step]
    assert final.startswith('if [ "${VARIANT}" = cuda ]; then')
    assert {"gcc", "libc6-dev"} <= set(final.replace(";", " ").split())


def test_every_variable_of_the_balancer_is_given_and_names_a_replica():
    text = (ROOT / "deploy/haproxy.cfg").read_text()
    known, optional = (set(re.findall(name, text)) for name in (r"\$\{(\w+)\}", r"\.if defined\((\w+)\)"))
    given = COMPOSE["services"]["balancer"]["environment"]
    assert known - optional <= set(given) <= known
    hosts = {value.split(":")[0] for name, value in given.items() if name.startswith("SLUICE_SERVER")}
    assert hosts == {name for name in COMPOSE["services"] if name.startswith("replica")}


def test_nginx_and_prometheus_ask_the_replicas_that_compose_starts():
    replicas = {f"{name}:8000" for name in COMPOSE["services"] if name.startswith("replica")}
    nginx = (ROOT / "deploy/nginx.conf").read_text()
    assert set(re.findall(r"^ *server (\S+:\d+) ", nginx, re.MULTILINE)) == replicas
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert set(targets["sluice"]) == replicas
    port = COMPOSE["services"]["balancer"]["environment"]["SLUICE_METRICS_BIND"]
    assert targets["balancer"] == [f"balancer{port}"]


def test_nginx_takes_bodies_as_long_as_the_server_does():
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", (ROOT / "deploy/nginx.conf").read_text())
    assert int(megabytes) * 1024 * 1024 == ServeConfig.max_body_bytes


def test_every_file_that_compose_mounts_exists_and_grafana_finds_its_source_and_its_dashboard():
    for service in COMPOSE["services"].values():
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            if source.startswith("."):
                # The models are fetched, not committed.
                assert source == "../models" or (ROOT / "deploy" / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
    grafana = COMPOSE["services"]["grafana"]
    mounted = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in grafana["volumes"])
    provisioning = ROOT / "deploy" / mounted["/etc/grafana/provisioning"]
    [provider] = yaml.safe_load((provisioning / "dashboards/sluice.yaml").read_text())["providers"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (ROOT / "deploy" / mounted[str(home.parent)] / home.name).exists()
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"].removeprefix("http://").split(":")[0] in COMPOSE["services"]


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


def test_the_balancers_name_the_client_and_composes_replicas_believe_them():
    assert re.search(r"^ *option forwardfor$", (ROOT / "deploy/haproxy.cfg").read_text(), re.MULTILINE)
    header = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
    assert header in (ROOT / "deploy/nginx.conf").read_text()
    for replica in REPLICAS:
        proxies = ServeConfig(models=MODELS, trusted_proxies=replica["environment"]["SLUICE_TRUSTED_PROXIES"])
        assert proxies.proxy_networks


def test_composes_replicas_accept_the_names_that_they_are_called_by_and_no_others():
    scraped = re.findall(r"(replica-\d):8000", (ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert scraped
    for replica in REPLICAS:
        hosts = AllowedHosts(replica["environment"]["SLUICE_ALLOWED_HOSTS"].split(","))
        for name in ("127.0.0.1:8000", "localhost:8000", *scraped):
            hosts.check(name.encode())
        with pytest.raises(HostNotAllowed):
            hosts.check(b"evil.example:8000")
