"""``/v1/models`` lists what is served in OpenAI's shape, and says 404 in the one shape of errors."""

from __future__ import annotations

import json

from starlette.testclient import TestClient

from server.api.app import build_app
from server.config import ModelConfig, ServeConfig
from tests.api.embed_app import embed_worker
from tests.api.scripted import FakeSupervisor, ScriptedWorker, front, ready, says
from tests.encoder_app import client_of, tiny_worker


def served() -> TestClient:
    return client_of(tiny_worker("team/mood", "bert", "classify"), embed_worker("vectors"))


def test_every_model_is_listed_with_its_length() -> None:
    answer = served().get("/v1/models").json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["team/mood", "vectors"]
    for model in answer["data"]:
        assert model["object"] == "model" and model["owned_by"] == "sluice"
        assert isinstance(model["created"], int) and model["max_model_len"] == 64
    assert [model["task"] for model in answer["data"]] == ["classify", "embed"]


def test_a_model_names_its_folder_and_an_adapter_its_base(tmp_path) -> None:
    adapter = tmp_path / "mood-lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/bert"}))
    worker = tiny_worker("mood", "bert", "classify")
    worker.model = ModelConfig(name="mood", path=str(adapter))
    mood, vectors = client_of(worker, embed_worker("vectors")).get("/v1/models").json()["data"]
    assert (mood["root"], mood["parent"]) == ("mood-lora", "bert")
    assert (vectors["root"], vectors["parent"]) == ("nowhere", None)


def test_a_model_is_found_by_its_name_which_may_hold_slashes() -> None:
    client = served()
    listed = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/team/mood").json() == listed[0]
    assert client.get("/v1/models/team%2Fmood").json() == listed[0]
    assert client.get("/v1/models/vectors").json() == listed[1]


def test_an_unknown_name_is_a_404_that_says_what_is_served() -> None:
    response = served().get("/v1/models/gpt-4")
    error = response.json()["error"]
    assert response.status_code == 404
    assert error["code"] == "model_not_found" and "team/mood, vectors" in error["message"]


def test_while_models_are_loaded_clients_are_told_to_come_back() -> None:
    model = ModelConfig(name="tiny", path="nowhere")
    config = ServeConfig(models=(model,))
    worker = ScriptedWorker(says(""), ready())
    app = build_app(config, FakeSupervisor(config, {"tiny": worker}))  # type: ignore[arg-type]
    response = TestClient(app).get("/v1/models")
    assert response.status_code == 503 and response.headers["retry-after"] == "1"


def test_a_generating_model_is_listed_too() -> None:
    [model] = TestClient(front(says(""))).get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 128)
