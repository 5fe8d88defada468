"""``adapter_id`` on the paths of Text Generation Inference means an adapter by its served name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.app import build_app
from server.config import ModelConfig, ServeConfig
from tests.api.scripted import FakeSupervisor, ScriptedWorker, ready, says

WORKERS = ("plain", "formal", "another")


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """An adapter of the first model, and another model; each says its own name."""
    folder = tmp_path / "formal"
    folder.mkdir()
    (tmp_path / "plain").mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "plain")}))
    models = tuple(ModelConfig(name=name, path=str(tmp_path / name)) for name in WORKERS)
    workers = {}
    for model in models:
        workers[model.name] = ScriptedWorker(says(model.name), ready())
        workers[model.name].model = model
    config = ServeConfig(models=models)
    app = build_app(config, FakeSupervisor(config, workers))  # type: ignore[arg-type]
    app.front.registry.load()
    app.front.lifecycle.is_loaded = True
    return TestClient(app)


def ask(client: TestClient, route: str = "/generate", **fields: Any) -> Any:
    adapter_id = fields.pop("adapter_id", None)
    return client.post(route, json={"inputs": "a", "parameters": {"adapter_id": adapter_id}, **fields})


@pytest.mark.parametrize("model", [None, "plain", "formal", "tgi"])
def test_names_the_adapter_beside_its_model_or_alone(client: TestClient, model: str | None) -> None:
    assert ask(client, adapter_id="formal", model=model).json() == {"generated_text": "formal"}
    assert ask(client, "/", adapter_id="formal", model=model).json() == [{"generated_text": "formal"}]


@pytest.mark.parametrize("adapter_id", [None, "", "__base_model__"])
def test_names_no_adapter_where_clients_mean_none(client: TestClient, adapter_id: str | None) -> None:
    assert ask(client, adapter_id=adapter_id).json() == {"generated_text": "plain"}


@pytest.mark.parametrize("adapter_id", ["nobody", "another", "plain"])
def test_rejects_a_name_that_is_no_adapter(client: TestClient, adapter_id: str) -> None:
    refusal = ask(client, adapter_id=adapter_id)
    error = refusal.json()["error"]
    assert refusal.status_code == 404 and error["code"] == "adapter_not_found"
    assert error["param"] == "parameters.adapter_id" and "Served: formal." in error["message"]


def test_rejects_an_adapter_of_another_model(client: TestClient) -> None:
    refusal = ask(client, adapter_id="formal", model="another")
    assert refusal.status_code == 422
    assert "the adapter belongs to plain" in refusal.json()["error"]["message"]


def test_other_routes_take_the_adapter_in_model(client: TestClient) -> None:
    refusal = client.post("/v1/completions", json={"prompt": "a", "adapter_id": "formal"})
    assert refusal.status_code == 400 and "name the adapter in model" in refusal.json()["error"]["message"]
