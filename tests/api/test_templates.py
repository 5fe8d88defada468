"""Templates over HTTP: listed, filled, refused by name; entities point into the client's own texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import TEXTS

MOOD = """
description = "Two lines as one text."
task = "classify"
text = "{{ first }} / {{ rest|join(' ') }}"
[variables.first]
max_length = 200
description = "The first line."
[variables.rest]
type = "list"
default = []
"""
NAMES = """
task = "ner"
text = "Letter of {{ sender }} from Paris:\\n{{ body|upper if loud else body }} {{ examples }}"
[variables.sender]
[variables.body]
[variables.loud]
type = "boolean"
default = false
[examples]
text = "[{{ note }}]"
[examples.fields.note]
"""


@cache
def worker(task: str) -> EngineWorker:
    return tiny_worker(task, "bert", task)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "mood.toml").write_text(MOOD)
    (tmp_path / "mood@2.toml").write_text(MOOD.replace("/", "//"))
    (tmp_path / "names.toml").write_text(NAMES)
    return str(tmp_path)


@contextmanager
def served(folder: str | None, *tasks: str) -> Iterator[TestClient]:
    """With a loop of its own, for the sandbox lives as long as its loop."""
    with client_of(*map(worker, tasks), templates=folder) as client:
        yield client
        assert client.portal is not None
        client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


def test_templates_are_listed_with_their_variables(folder: str) -> None:
    with served(folder, "classify") as client:
        listed = client.get("/templates").json()["templates"]
        newest = client.get("/templates/mood").json()
        first = client.get("/templates/mood@1").json()
    assert [(entry["name"], entry["version"], entry["task"]) for entry in listed] == [
        ("mood", 1, "classify"),
        ("mood", 2, "classify"),
        ("names", 1, "ner"),
    ]
    assert first == listed[0]
    assert newest == listed[1]
    assert first["description"] == "Two lines as one text."
    assert first["variables"] == {
        "first": {"type": "string", "required": True, "description": "The first line.", "max_length": 200},
        "rest": {"type": "list", "required": False, "default": []},
    }
    assert "text" not in first


@pytest.mark.parametrize("name", ["nothing", "mood@3", "..%2fmood", "%2e%2e", "mood%00", "m" * 5000])
def test_an_unknown_template_is_404(folder: str, name: str) -> None:
    with served(folder, "classify") as client:
        response = client.get(f"/templates/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("template_not_found", "not_found")


def test_classify_judges_the_text_that_the_template_makes(folder: str) -> None:
    with served(folder, "classify") as client:
        body = {"template": "mood@1", "variables": {"first": TEXTS[0][:30], "rest": ["a", TEXTS[1][:30]]}}
        templated = client.post("/classify", json=body)
        plain = client.post("/classify", json={"inputs": f"{TEXTS[0][:30]} / a {TEXTS[1][:30]}"})
    assert templated.status_code == 200, templated.text
    assert templated.json() == plain.json()


def ner(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    response = client.post("/ner", json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()
    return found


@pytest.mark.parametrize("strategy", ["joined", "none", "simple", "first", "max"])
@pytest.mark.parametrize("loud", [False, True])
def test_entities_of_a_template_are_counted_in_the_variable_that_holds_them(
    folder: str, strategy: str, loud: bool
) -> None:
    parameters = {"aggregation_strategy": strategy, "ignore_labels": []}
    variables = {"sender": "Ünal 王小明", "body": f"{TEXTS[0]} {TEXTS[1]}", "loud": loud}
    notes = [{"note": "Rome \U0001f600 Berlin"}, {"note": TEXTS[2]}]
    paths = {"sender": variables["sender"], "body": variables["body"]}
    paths |= {f"examples.{i}.note": note["note"] for i, note in enumerate(notes)}
    with served(folder, "ner") as client:
        found = ner(client, template="names", variables=variables, examples=notes, parameters=parameters)
        body = str(variables["body"])
        text = f"Letter of {variables['sender']} from Paris:\n{body.upper() if loud else body} "
        text += "\n".join(f"[{note['note']}]" for note in notes)
        whole = ner(client, inputs=text, parameters=parameters)
    places = {entity["variable"] for entity in found}
    # An entity of several tokens may reach over a variable's end, and is left out then.
    assert places == set(paths) if strategy == "none" else places <= set(paths)
    starts = {path: text.upper().index(str(value).upper()) for path, value in paths.items()}
    expected = []
    for entity in whole:
        for path, start in starts.items():
            if start <= entity["start"] and entity["end"] <= start + len(str(paths[path])):
                place = {"start": entity["start"] - start, "end": entity["end"] - start, "variable": path}
                expected.append({**entity, **place})
    assert found == expected
    # Labels of the template's own words were found too, and left out.
    assert len(found) < len(whole)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "inputs"),
        ({"inputs": None}, 422, "inputs"),
        ({"inputs": "x", "template": "mood", "variables": {"first": "x"}}, 422, "template"),
        ({"inputs": "x", "variables": {"first": "x"}}, 422, "variables"),
        ({"inputs": "x", "examples": []}, 422, "examples"),
        ({"template": "none"}, 404, "template"),
        ({"template": "names", "variables": {}}, 422, "template"),
        ({"template": 5}, 422, "template"),
        ({"template": {"text": "{{ x }}"}}, 422, "template"),
        ({"template": "mood"}, 422, "variables.first"),
        ({"template": "mood", "variables": {"first": 5}}, 422, "variables.first"),
        ({"template": "mood", "variables": {"first": "x" * 201}}, 422, "variables.first"),
        ({"template": "mood", "variables": {"first": "x", "last": "y"}}, 422, "variables.last"),
        ({"template": "mood", "variables": {"first": "x", "rest": [[]]}}, 422, "variables.rest"),
        ({"template": "mood", "variables": ["x"]}, 422, "variables"),
        ({"template": "mood", "variables": {"first": "x"}, "examples": [{}]}, 422, "examples"),
        ({"template": "mood", "variables": {"first": "x"}, "chat_template": "x"}, 422, "chat_template"),
    ],
)
def test_a_body_that_does_not_fit_its_template_is_refused_by_name(
    folder: str, body: dict[str, Any], status: int, param: str
) -> None:
    with served(folder, "classify") as client:
        response = client.post("/classify", json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param


def test_a_variable_cannot_become_a_template(folder: str) -> None:
    attack = "{{ 7 * 7 }}{% for x in range(9) %}x{% endfor %}"
    with served(folder, "classify") as client:
        templated = client.post("/classify", json={"template": "mood@1", "variables": {"first": attack}})
        plain = client.post("/classify", json={"inputs": f"{attack} / "})
    assert templated.json() == plain.json()


def test_without_a_folder_there_is_no_template() -> None:
    with served(None, "classify") as client:
        assert client.get("/templates").json() == {"templates": []}
        response = client.post("/classify", json={"template": "mood"})
    assert response.status_code == 404
    assert "no templates" in response.json()["error"]["message"]
