"""One entry in the table is an option everywhere: in the bodies, the checks, the defaults, OPTIONS.md and the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.serving.options import table

ROOT = Path(__file__).parents[2]
ENTRY = '''
    made_up: float | None = option(
        Number(0, 5), neutral=0.0, from_model=True, example=2.5, form=Form("Sampling", "Made up", step=0.5)
    )
    """Does nothing, and does it well."""
'''
SCRIPT = """
import importlib.util, json, sys
name = "server.serving.options.table"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])

from server.api import page
from server.serving.options import docs
from starlette.testclient import TestClient
from tests.api.scripted import front, says

client = TestClient(front(says("yes"), generation_config={"made_up": 1.5}))

def posted(path, **body):
    response = client.post(path, json=body)
    return [response.status_code, response.json()]

told = {"details": True, "return_parameters": True}
document = client.app.openapi()
json.dump({
    "schemas": document["components"]["schemas"],
    "refused": posted("/generate", inputs="a", parameters={"made_up": 6}),
    "refused_in_chat": posted("/v1/completions", prompt="a", made_up="b"),
    "told": posted("/generate", inputs="a", parameters={"made_up": 2, **told}),
    "default": posted("/generate", inputs="a", parameters=told),
    "neutral": posted("/generate", inputs="a", parameters={"made_up": 0, **told}),
    "markdown": docs.page(),
    "page": page.FILES["generation_settings.js"].content.decode(),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server says whose table has one more entry."""
    source = Path(table.__file__).read_text(encoding="utf-8")
    last = '"""Rejected if true."""\n'
    assert source.count(last) == 1
    path = tmp_path_factory.mktemp("options") / "table.py"
    path.write_text(source.replace(last, last + ENTRY), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


@pytest.mark.parametrize("body", ["GenerateParameters", "ChatBody", "CompletionBody", "ResponsesBody", "MessagesBody"])
def test_the_option_is_documented_in_every_body(found: dict[str, Any], body: str) -> None:
    schema = found["schemas"][body]["properties"]["made_up"]
    assert {"type": "number", "minimum": 0, "maximum": 5} in schema["anyOf"]
    assert schema["description"] == "Does nothing, and does it well. It must be from 0 to 5."


def test_its_type_and_range_are_checked(found: dict[str, Any]) -> None:
    status, body = found["refused"]
    assert status == 422 and body["error"]["message"] == "made_up is 6.0: it must be from 0 to 5."
    status, body = found["refused_in_chat"]
    assert status == 400 and body["error"]["message"] == 'made_up is "b": it must be a number.'


def test_its_value_comes_from_the_request_or_from_the_model(found: dict[str, Any]) -> None:
    for case, expected in [
        ("told", {"value": 2.0, "origin": "request"}),
        ("default", {"value": 1.5, "origin": "model"}),
        ("neutral", None),
    ]:
        status, body = found[case]
        assert status == 200 and body["details"]["parameters"].get("made_up") == expected


def test_it_is_in_options_md(found: dict[str, Any]) -> None:
    assert '| `made_up` | Does nothing, and does it well. | from 0 to 5 | `{"made_up": 2.5}` |' in found["markdown"]
    assert "| `made_up` | yes | yes | yes | yes | yes | yes |" in found["markdown"]


def test_the_page_offers_it(found: dict[str, Any]) -> None:
    groups = json.loads(found["page"].removeprefix("export const GENERATE = ").rstrip(";\n"))
    assert groups[0]["fields"][-1] == {
        "name": "made_up", "label": "Made up", "kind": "number", "min": 0, "max": 5, "step": 0.5,
    }  # fmt: skip
