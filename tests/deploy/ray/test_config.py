"""deploy/ray/config.yaml agrees with the server's settings; no Ray is needed to see it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import yaml

from server import settings
from server.config import ModelConfig, ServeConfig

ROOT = Path(__file__).parents[3]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/config.yaml").read_text())
[APPLICATION] = CONFIG["applications"]
[DEPLOYMENT] = APPLICATION["deployments"]


def test_the_application_that_is_named_is_the_one_in_the_file():
    module, _, name = APPLICATION["import_path"].partition(":")
    tree = ast.parse((ROOT / f"deploy/ray/{module}.py").read_text())
    assigned = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert name in assigned
    assert DEPLOYMENT["name"] in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_every_variable_is_a_setting_and_a_replica_has_as_many_threads_as_processors():
    variables = APPLICATION["runtime_env"]["env_vars"]
    known = {"SLUICE_CONFIG", *(setting.variable for setting in settings.settings().values())}
    assert set(variables) <= known
    assert int(variables["SLUICE_THREADS"]) == DEPLOYMENT["ray_actor_options"]["num_cpus"]


def test_serve_holds_back_what_the_server_would_refuse():
    config = ServeConfig(models=(ModelConfig(name="any", path="nowhere"),))
    assert DEPLOYMENT["autoscaling_config"]["target_ongoing_requests"] < DEPLOYMENT["max_ongoing_requests"]
    assert DEPLOYMENT["max_ongoing_requests"] < config.max_queued_requests


def test_a_replica_that_is_taken_away_has_the_servers_time_to_drain_and_two_stay():
    config = ServeConfig(models=(ModelConfig(name="any", path="nowhere"),))
    assert DEPLOYMENT["graceful_shutdown_timeout_s"] >= config.drain_timeout_s
    assert DEPLOYMENT["autoscaling_config"]["min_replicas"] == 2
    assert "request_timeout_s" not in CONFIG["http_options"]


def test_ray_is_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [name for name in project["dependencies"] if name.startswith("ray")] == []
    [requirement] = project["optional-dependencies"]["ray"]
    assert requirement.startswith("ray[serve]")
