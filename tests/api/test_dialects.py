"""What a dialect does with a wrong body is an attribute of the dialect, and every route has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute

from server.api.app import ROUTERS
from server.api.bodies.fields import LenientModel
from server.api.http.dialect import Dialect
from server.errors import SluiceError
from server.tasks import TASKS
from tests.api.shell import client_of, shell


def routes() -> Iterator[Any]:
    for _, router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.body_field is not None:
                yield pytest.param(route.path, router.dialect, route.body_field.field_info.annotation, id=route.path)


@pytest.mark.parametrize(("path", "dialect", "body"), list(routes()))
def test_a_body_keeps_unknown_fields_where_its_dialect_names_them(path: str, dialect: Dialect, body: type[Any]) -> None:
    assert issubclass(body, LenientModel) == dialect.names_unknown_fields


@pytest.mark.parametrize(("path", "dialect", "body"), list(routes()))
def test_a_wrong_body_has_the_status_of_its_dialect(path: str, dialect: Dialect, body: type[Any]) -> None:
    refused = client_of(shell()).post(path, json=[1])
    assert refused.status_code == dialect.status_of_invalid
    assert refused.json().keys() >= {"error", "error_type"}


@pytest.mark.parametrize(("path", "dialect", "body"), list(routes()))
def test_a_body_that_cannot_be_read_has_the_shape_of_its_dialect(path: str, dialect: Dialect, body: type[Any]) -> None:
    client = client_of(shell(max_body_bytes=1000))
    for content, kind, status in (("{", "json", 400), ("[" + "1," * 1000, "json", 413), ("a", "yaml", 415)):
        refused = client.post(path, content=content, headers={"Content-Type": f"application/{kind}"})
        assert refused.status_code == status
        shown = dialect.of_unread().error(SluiceError("A sentence."), refused.headers["x-request-id"])
        assert refused.json().keys() == shown.keys()
        assert type(refused.json()["error"]) is type(shown["error"])


@pytest.mark.parametrize(("path", "dialect", "body"), list(routes()))
def test_a_strict_server_refuses_an_unknown_field_in_every_dialect(
    path: str, dialect: Dialect, body: type[Any]
) -> None:
    examples = {**EXAMPLES, **OTHERS.get(path, {}), **OF_TASKS.get(path, {})}
    required = {name: examples[name] for name, info in body.model_fields.items() if info.is_required()}
    refused = client_of(shell(strict=True)).post(path, json={**required, "no_such_field": 1})
    assert refused.status_code == dialect.status_of_invalid
    assert refused.json()["error"]["param"] == "no_such_field"


EXAMPLES: dict[str, Any] = {
    "inputs": "a",
    "input": "a",
    "prompt": "a",
    "query": "a",
    "tokens": [1],
    "messages": [{"role": "user", "content": "a"}],
    "parameters": {"candidate_labels": ["a"]},
}
"""Values of required fields."""

OTHERS: dict[str, dict[str, Any]] = {
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["a"]}},
}
"""By path, where a field of that name has another type."""

OF_TASKS = {task.route: task.example for task in TASKS.values()}
