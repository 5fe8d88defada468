"""What deploy/kubernetes names exists: paths, ports, settings, metrics, and the objects that refer to one another."""

from __future__ import annotations

import argparse
import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server import settings
from server.api.app import build_app
from server.client.supervisor import Supervisor
from server.config import ModelConfig, ServeConfig
from tests.deploy import promql
from tests.deploy.kubernetes.custom_resources import SCHEMAS
from tests.deploy.kubernetes.rendering import MANIFESTS, OVERLAYS, Manifest, kustomize, of_kind, rendered

DOCKERFILE = (Path(__file__).parents[3] / "Dockerfile").read_text()
LAST_WORDS_S = 5.0
"""For the server's own end after its drain."""

pytestmark = pytest.mark.skipif(kustomize() is None, reason="neither kubectl nor kustomize is installed")
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def deployment(overlay: str) -> Manifest:
    [found] = of_kind(rendered(overlay), "Deployment")
    return found


def pod(overlay: str) -> dict[str, Any]:
    return deployment(overlay)["spec"]["template"]["spec"]


def container(overlay: str) -> dict[str, Any]:
    [found] = pod(overlay)["containers"]
    return found


def variables(overlay: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(overlay)["env"]}


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    """What the server makes of the settings in base/sluice.toml, its model folders moved to where they can be made."""
    text = (MANIFESTS / "base/sluice.toml").read_text().replace('"/models/', f'"{tmp_path}/models/')
    for path in re.findall(r'"(/.*/models/.*)"', text):
        Path(path).mkdir(parents=True)
    file = tmp_path / "sluice.toml"
    file.write_text(text)
    return settings.load(parser().parse_args(["--config", str(file)]), {})


def parser() -> argparse.ArgumentParser:
    """What reads the flags of `sluice serve`."""
    found = argparse.ArgumentParser()
    settings.add_flags(found)
    return found


@cache
def served_paths() -> set[str]:
    config = ServeConfig(models=(ModelConfig(name="any", path="nowhere"),))
    return set(build_app(config, Supervisor(config)).openapi()["paths"])


# The objects.


@every_overlay
def test_custom_resources_are_as_their_definitions_say(overlay: str):
    for manifest in rendered(overlay):
        schema = SCHEMAS.get((manifest["apiVersion"], manifest["kind"]))
        if schema is not None:
            jsonschema.validate(manifest, schema)


@pytest.mark.parametrize(
    ("overlay", "kind"),
    [
        ("monitoring", "ServiceMonitor"),
        ("monitoring", "PrometheusRule"),
        ("keda", "ScaledObject"),
        ("inferencepool", "InferencePool"),
        ("inferencepool", "HTTPRoute"),
    ],
)
def test_a_misspelt_field_of_a_custom_resource_would_be_found(overlay: str, kind: str):
    [manifest] = of_kind(rendered(overlay), kind)
    schema = SCHEMAS[manifest["apiVersion"], kind]
    for field in manifest["spec"]:
        misspelt = copy.deepcopy(manifest)
        misspelt["spec"][field + "s"] = misspelt["spec"].pop(field)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(misspelt, schema)


@every_overlay
def test_every_selector_selects_the_pods(overlay: str):
    labels = deployment(overlay)["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment(overlay)["spec"]["selector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in pod(overlay)["topologySpreadConstraints"]),
        *(service["spec"]["selector"] for service in of_kind(rendered(overlay), "Service")),
    ]
    for kind in ("PodDisruptionBudget", "InferencePool"):
        selectors += [one["spec"]["selector"]["matchLabels"] for one in of_kind(rendered(overlay), kind)]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(rendered(overlay), "NetworkPolicy")]
    assert len(selectors) >= 6
    for selector in selectors:
        assert selector and selector.items() <= labels.items()


@every_overlay
def test_every_port_is_the_one_that_the_server_listens_on(overlay: str):
    [port] = container(overlay)["ports"]
    assert variables(overlay)["SLUICE_PORT"] == str(port["containerPort"])
    [service] = of_kind(rendered(overlay), "Service")
    [service_port] = service["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    for policy in of_kind(rendered(overlay), "NetworkPolicy"):
        assert [rule["ports"] for rule in policy["spec"]["ingress"]] == [[{"port": port["name"]}]]
    for pool in of_kind(rendered(overlay), "InferencePool"):
        assert pool["spec"]["targetPorts"] == [{"number": port["containerPort"]}]
    for monitor in of_kind(rendered(overlay), "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [service_port["name"]]


@every_overlay
def test_what_an_object_refers_to_is_there(overlay: str):
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered(overlay)}
    for volume in pod(overlay)["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
        elif "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    for scaled in of_kind(rendered(overlay), "ScaledObject"):
        assert ("Deployment", scaled["spec"]["scaleTargetRef"]["name"]) in names
    for route in of_kind(rendered(overlay), "HTTPRoute"):
        for reference in (reference for rule in route["spec"]["rules"] for reference in rule["backendRefs"]):
            assert (reference.get("kind", "Service"), reference["name"]) in names


# What they say of the server.


@every_overlay
def test_every_path_is_one_that_the_server_answers(overlay: str):
    probes = [container(overlay)[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert probes == ["/startupz", "/readyz", "/livez"]
    scraped = [
        endpoint["path"]
        for monitor in of_kind(rendered(overlay), "ServiceMonitor")
        for endpoint in monitor["spec"]["endpoints"]
    ]
    routed = [
        match["path"]["value"]
        for route in of_kind(rendered(overlay), "HTTPRoute")
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
        if match["path"]["type"] == "Exact"
    ]
    assert {*probes, *scraped, *routed} <= served_paths()


@every_overlay
def test_every_variable_is_a_setting_and_has_a_value_that_it_takes(overlay: str):
    known = {setting.variable: setting for setting in settings.settings().values()}
    for name, value in variables(overlay).items():
        known[name].from_text(value, name)


@every_overlay
def test_the_command_reads_the_settings_that_are_mounted(overlay: str):
    command, *flags = container(overlay)["args"]
    options = parser().parse_args(flags)
    mounts = {mount["name"]: mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    [settings_map] = of_kind(rendered(overlay), "ConfigMap")
    [file] = settings_map["data"]
    assert command == "serve"
    assert options.config == str(Path(mounts["config"]) / file)
    folders = re.findall(r'^(?:path|base) = "(.*)"$', settings_map["data"][file], re.MULTILINE)
    assert folders and all(Path(folder).is_relative_to(mounts["models"]) for folder in folders)


@every_overlay
def test_a_pod_has_time_to_leave_the_load_balancers_and_to_drain_before_it_is_killed(overlay: str, config: ServeConfig):
    pause_s = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    ends_s = pause_s + config.drain_delay_s + config.drain_timeout_s + LAST_WORDS_S
    assert pod(overlay)["terminationGracePeriodSeconds"] >= ends_s


@every_overlay
def test_a_model_that_loads_slowly_is_given_up_by_the_server_and_not_by_a_probe(overlay: str, config: ServeConfig):
    probe = container(overlay)["startupProbe"]
    waits_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert config.start_timeout_s < waits_s < deployment(overlay)["spec"]["progressDeadlineSeconds"]


@every_overlay
def test_liveness_is_slower_to_judge_than_readiness(overlay: str):
    def judges_after_s(name: str) -> float:
        probe = container(overlay)[name]
        return probe["periodSeconds"] * probe["failureThreshold"]

    assert judges_after_s("livenessProbe") >= 60 > judges_after_s("readinessProbe")


@every_overlay
def test_every_query_asks_for_what_the_server_exports(overlay: str):
    rules = [
        rule["expr"]
        for one in of_kind(rendered(overlay), "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
    ]
    scalers = [
        trigger["metadata"]["query"]
        for one in of_kind(rendered(overlay), "ScaledObject")
        for trigger in one["spec"]["triggers"]
    ]
    assert [problem for query in (*rules, *scalers) for problem in promql.problems(query)] == []
    assert any("sluice_waiting_requests" in query for query in scalers) == (overlay == "keda")


def test_the_alerts_are_those_of_the_other_prometheus():
    [rules] = of_kind(rendered("monitoring"), "PrometheusRule")
    alerts = yaml.safe_load((MANIFESTS.parent / "prometheus/alerts.yml").read_text())
    assert rules["spec"] == alerts
    [service] = of_kind(rendered("monitoring"), "Service")
    jobs = set(re.findall(r'job="(\w+)"', str(alerts)))
    assert jobs == {service["metadata"]["name"]}


def test_an_endpoint_picker_finds_the_names_it_looks_for():
    assert variables("inferencepool")["SLUICE_VLLM_METRICS"] == "true"
    assert "SLUICE_VLLM_METRICS" not in variables("cpu")


# What keeps it safe and up.


@every_overlay
def test_the_server_has_no_rights_and_writes_nothing_but_its_temporary_files(overlay: str):
    context = pod(overlay)["securityContext"]
    [user] = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = [mount["mountPath"] for mount in container(overlay)["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]
    assert pod(overlay)["automountServiceAccountToken"] is False
    [policy] = [one for one in of_kind(rendered(overlay), "NetworkPolicy") if "Egress" in one["spec"]["policyTypes"]]
    assert policy["spec"]["egress"] == []


@every_overlay
def test_memory_that_is_asked_for_is_memory_that_may_be_used(overlay: str):
    resources = container(overlay)["resources"]
    for name in ("cpu", "memory"):
        assert resources["requests"][name] == resources["limits"][name]


@every_overlay
def test_a_node_can_be_drained_and_one_replica_stays(overlay: str):
    [budget] = of_kind(rendered(overlay), "PodDisruptionBudget")
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    scaled = of_kind(rendered(overlay), "ScaledObject")
    least = scaled[0]["spec"]["minReplicaCount"] if scaled else deployment(overlay)["spec"]["replicas"]
    assert least > budget["spec"]["minAvailable"]
    assert ("replicas" in deployment(overlay)["spec"]) == (not scaled)


def test_keys_come_from_a_secrets_file_that_only_the_server_reads():
    [keys] = [volume["secret"] for volume in pod("keys")["volumes"] if "secret" in volume]
    [mount] = [mount["mountPath"] for mount in container("keys")["volumeMounts"] if mount["name"] == "keys"]
    assert variables("keys")["SLUICE_API_KEYS_FILE"] == f"{mount}/{keys['items'][0]['path']}"
    assert keys["defaultMode"] == 0o440
    [monitor] = of_kind(rendered("keys"), "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["authorization"]["credentials"]["name"] == keys["secretName"]


def test_a_gpu_replica_takes_the_place_of_an_old_one_and_a_cpu_replica_comes_before_it():
    rollout = {overlay: deployment(overlay)["spec"]["strategy"]["rollingUpdate"] for overlay in ("cpu", "gpu")}
    assert rollout["cpu"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert rollout["gpu"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container("cpu")["resources"]["limits"]
