"""Prometheus itself, with the files of deploy/, before two replicas that work and their balancer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
import yaml

from tests.deploy.balancers import addresses, free_port, haproxy, required, running, short_requests
from tests.deploy.dashboard import DEPLOY, expressions
from tests.server_process import running_server
from tests.system.clients import eventually

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def ask(url: str, path: str, **parameters: str) -> Any:
    """What Prometheus answers: an error if there is one."""
    answer = httpx2.get(f"{url}/api/v1/{path}", params=parameters, timeout=60).json()
    assert answer["status"] == "success", answer
    return answer["data"]


@pytest.fixture(scope="module")
def prometheus(tiny_models: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL, when it has read every replica and the balancer, and seen requests be answered."""
    folder = tmp_path_factory.mktemp("prometheus")
    address, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with ExitStack() as stack:
        replicas = [stack.enter_context(running_server(*tiny_models)) for _ in range(2)]
        balancer = stack.enter_context(haproxy(addresses(replicas), folder, metrics))
        config = folder / "prometheus.yml"
        config.write_text(configuration({"sluice": addresses(replicas), "balancer": [metrics]}))
        command = [required("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command.append(f"--web.listen-address={address}")
        url = f"http://{address}"
        stack.enter_context(running(command, folder / "prometheus.log", f"{url}/-/ready"))
        assert eventually(lambda: all_up(url), within_s=60)
        assert eventually(lambda: is_counted(url, balancer), within_s=120)
        yield url


def configuration(targets: dict[str, list[str]]) -> str:
    """Ours with other targets."""
    text = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    text["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in text["rule_files"]]
    assert {job["job_name"] for job in text["scrape_configs"]} == set(targets)
    for job in text["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    return yaml.safe_dump(text)


def all_up(url: str) -> bool:
    targets = ask(url, "targets")["activeTargets"]
    return len(targets) == 3 and all(target["health"] == "up" for target in targets)


def is_counted(url: str, balancer: str) -> bool:
    """Whether the numbers that Prometheus has have grown; more requests are asked, for them to."""
    assert [outcome for outcome in short_requests(balancer, 4) if not outcome.is_whole] == []
    return bool(ask(url, "query", query="sum(increase(sluice_requests_total{status='2xx'}[1m])) > 0")["result"])


@pytest.mark.parametrize("expression", expressions())
def test_prometheus_answers_every_expression_of_the_dashboard(prometheus: str, expression: str):
    assert ask(prometheus, "query", query=expression)["resultType"] == "vector"


def test_replicas_that_work_set_off_no_alert(prometheus: str):
    def rules() -> list[dict[str, Any]]:
        return [rule for group in ask(prometheus, "rules")["groups"] for rule in group["rules"]]

    assert eventually(lambda: all(rule["health"] == "ok" for rule in rules()), within_s=60)
    assert {rule["name"]: rule["state"] for rule in rules() if rule["state"] != "inactive"} == {}
