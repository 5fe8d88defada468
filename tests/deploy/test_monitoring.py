"""The dashboard and the alerts name what the server exports, and fire when they should."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.deploy.dashboard import DASHBOARD, DEPLOY, PANELS, expressions
from tests.deploy.promql import labels, names, problems

RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana/dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where its dataclass looks for the module's names.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_names_and_labels_are_read_out_of_an_expression():
    expression = 'max(rate(a_total{x="b c", y!~"d"}[5m])) / on (z) sum by (le, w) (f_bucket) > 0.5e3 and g'
    assert names(expression) == {"a_total", "f_bucket", "g"}
    assert labels(expression) == {"x", "y", "z", "le", "w"}


def test_an_expression_that_no_server_can_answer_is_found():
    assert problems("rate(sluice_request_total[5m])") == ["no metric is called sluice_request_total"]
    assert problems('sluice_kv_usage_ratio{task="generate"}') == ["no metric of it has the label task"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_panel_shows_what_the_server_exports_from_the_chosen_source_in_a_unit(panel: dict[str, Any]):
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert problems(target["expr"]) == []


def test_the_dashboard_is_the_one_that_its_script_writes():
    written = (DEPLOY / "grafana/dashboards/sluice.json").read_text()
    assert generator().text() == written, "run: python deploy/grafana/dashboard.py"


def test_the_dashboard_can_be_chosen_by_source_model_and_replica_and_keeps_its_address():
    assert DASHBOARD["uid"] == "sluice"
    variables = DASHBOARD["templating"]["list"]
    assert [variable["name"] for variable in variables] == ["datasource", "model_name", "instance"]
    for variable in variables[1:]:
        [(metric, label)] = re.findall(r"label_values\((.*), (\w+)\)", variable["definition"])
        assert problems(f"sum by ({label}) ({metric})") == []
    used = set(re.findall(r"\$(\w+)", json.dumps(PANELS)))
    assert used == {"model_name", "instance", "__rate_interval"}


def test_panels_do_not_lie_on_one_another():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_names_what_the_server_exports_and_says_what_to_do(rule: dict[str, Any]):
    assert problems(rule["expr"]) == []
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_tried_with_values_that_set_it_off_and_values_that_do_not():
    tests = yaml.safe_load((Path(__file__).parent / "prometheus/alerts_test.yml").read_text())["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    every = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in tried if case.get("exp_alerts")} == every
    assert {case["alertname"] for case in tried if not case.get("exp_alerts")} == every


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_our_configuration_and_rules():
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before():
    promtool("test", "rules", Path(__file__).parent / "prometheus/alerts_test.yml")


@needs_promtool
def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path: Path):
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)
