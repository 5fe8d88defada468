"""Names that move between adapters while the server runs: routes, defaults and parents follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.client.adapters import AdapterVersion
from server.config import ModelConfig, ServeConfig
from server.errors import ModelNotFound
from server.protocol import SharedAdapter
from server.serving.classifier import ServedClassifier
from server.serving.registry import CLASSES, Registry
from tests.api.scripted import FakeSupervisor, ScriptedWorker, ready, says
from tests.encoder_app import EngineWorker, LoadedSupervisor, tiny_worker


@pytest.fixture
def encoders() -> tuple[Registry, dict[str, EngineWorker]]:
    workers = {task: tiny_worker(f"first {task}", "bert", task) for task in ("classify", "ner")}
    config = ServeConfig(models=tuple(worker.model for worker in workers.values()))
    supervisor = LoadedSupervisor({worker.model.name: worker for worker in workers.values()})
    registry = Registry(config, supervisor)  # type: ignore[arg-type]
    registry.load()
    return registry, workers


def publish(registry: Registry, name: str, worker: EngineWorker) -> None:
    model = ModelConfig(name=name, path="nowhere")
    version = AdapterVersion(SharedAdapter(name=name, digest="d"))
    served = registry.serve(model, worker, worker.ready, version)  # type: ignore[arg-type]
    registry.publish(model, worker, served)  # type: ignore[arg-type]


def test_a_name_may_move_to_another_task(encoders: tuple[Registry, dict[str, EngineWorker]]) -> None:
    registry, workers = encoders
    publish(registry, "moving", workers["classify"])
    assert registry.get(ServedClassifier, "moving").name == "moving"
    publish(registry, "moving", workers["ner"])
    assert registry.get(CLASSES["ner"], "moving").name == "moving"
    with pytest.raises(ModelNotFound):
        registry.get(ServedClassifier, "moving")
    registry.withdraw("moving")
    assert registry.names_by_task() == {"classify": ["first classify"], "ner": ["first ner"]}


def test_samples_are_ranked_by_classifiers_that_are_served(
    encoders: tuple[Registry, dict[str, EngineWorker]],
) -> None:
    registry, workers = encoders
    publish(registry, "mood", workers["classify"])
    assert [*registry.services.classifiers] == ["first classify", "mood"]
    publish(registry, "mood", workers["ner"])
    assert [*registry.services.classifiers] == ["first classify"]
    publish(registry, "mood", workers["classify"])
    registry.withdraw("mood")
    assert [*registry.services.classifiers] == ["first classify"]


def test_the_parent_of_an_adapter_is_the_model_whose_worker_it_shares(tmp_path: Path) -> None:
    """Another model may be served from the same folder."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
    (tmp_path / "tuned" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    models = tuple(ModelConfig(name=name, path=str(tmp_path / "base")) for name in ("first", "second"))
    workers = {model.name: ScriptedWorker(says(model.name), ready()) for model in models}
    for model in models:
        workers[model.name].model = model
    config = ServeConfig(models=models)
    registry = Registry(config, FakeSupervisor(config, workers))  # type: ignore[arg-type]
    registry.load()
    model = ModelConfig(name="tuned", path=str(tmp_path / "tuned"), base=str(tmp_path / "base"))
    version = AdapterVersion(SharedAdapter(name="tuned", digest="d"))
    served = registry.serve(model, workers["second"], ready(), version)  # type: ignore[arg-type]
    assert served.origin.parent == "second"
