"""A body is parsed once, by the parser that refuses what readers could understand in two ways."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.api.app import ROUTERS
from server.api.http import json_body
from server.api.http.middleware import LARGE_BODY_BYTES
from tests.api.shell import client_of, shell

PATHS = sorted(path for _, router in ROUTERS for path in router.work_paths)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All texts that the standard library's parser has read."""
    loads, texts = json.loads, []

    def counted(text: Any, **options: Any) -> Any:
        texts.append(text if isinstance(text, str) else text.decode())
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    assert json_body.json is json
    return texts


@pytest.mark.parametrize("path", PATHS)
def test_every_route_parses_its_body_once(path: str, parsed: list[Any]) -> None:
    body = json.dumps({"no_such_field": 1})
    client_of(shell()).post(path, content=body, headers={"Content-Type": "application/json"})
    assert parsed == [body]


def test_a_large_body_is_parsed_once(parsed: list[Any]) -> None:
    body = json.dumps({"inputs": "a" * LARGE_BODY_BYTES})
    client_of(shell()).post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert parsed == [body]
