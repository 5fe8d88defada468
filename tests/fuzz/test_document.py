"""Requests made from `/openapi.json` itself: sound ones, and ones with a fault, for every operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from starlette.testclient import TestClient

from tests.api.documented import all_tasks
from tests.api.test_openapi import WORK
from tests.fuzz.refusals import check_refusal
from tests.fuzz.scale import SCALE

EXAMPLES = 5 * SCALE
READ = ("/livez", "/readyz", "/startupz", "/health", "/info", "/version", "/load", "/metrics", "/templates",
        "/languages", "/templates/{name}", "/tokenizer_info", "/v1/models", "/v1/models/{name}")  # fmt: skip
OPERATIONS = [*(("POST", path) for path in WORK), *(("GET", path) for path in READ)]
CASES = [
    *((GenerationMode.POSITIVE, *operation) for operation in OPERATIONS),
    # The others have no part that could have a fault.
    *((GenerationMode.NEGATIVE, "POST", path) for path in WORK),
]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with all_tasks() as client:
        yield client


@pytest.fixture(scope="module")
def schema(client: TestClient) -> Any:
    document = client.get("/openapi.json").json()
    operations = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert operations == set(OPERATIONS)
    return schemathesis.openapi.from_dict(document)


@pytest.mark.parametrize(("mode", "method", "path"), CASES, ids=lambda value: getattr(value, "value", value))
def test_no_request_made_from_the_document_is_answered_otherwise(
    client: TestClient, schema: Any, mode: GenerationMode, method: str, path: str
) -> None:
    operation = schema[path][method]

    @seed(5)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        response = send(client, case)
        # Which sound requests are refused is checked more closely than schemathesis does.
        excluded = ["positive_data_acceptance"]
        if response.status_code == 504 and "max_time" in case.body:
            # The request's own time limit: the status is documented, and no fault of the server.
            excluded.append("not_a_server_error")
        case.validate_response(response, excluded_checks=[CHECKS.get_one(name) for name in excluded])
        if mode == GenerationMode.POSITIVE:
            check_refusal(schema.raw_schema, case, response)

    run()


def send(client: TestClient, case: Any) -> Any:
    """In this process, as the bytes that a client would send."""
    sent = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
    return client.request(str(sent.method), str(sent.url), headers=dict(sent.headers), content=sent.body)
