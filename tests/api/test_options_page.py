"""`server/OPTIONS.md` says what is: it is made from the tables, and every cell of it is tried on the routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from server.engine.engine import DecoderEngine
from server.errors import FAILURES
from server.protocol import Failed, Generate, Tokens
from server.serving.options.docs import COLUMNS, PAGE, body_of, cell, page, parameters_of
from server.vocabulary import TokenBytes
from tests.api.scripted import MAX_MODEL_LEN, VOCAB_SIZE, Step, front
from tests.engine.fake_runner import FakeRunner
from tests.option_examples import EXAMPLES, NEEDS_MORE
from tests.tiny_tokenizers import tokenizer_files

SUMMARY = 'task = "generate"\ntext = "Sum up: {{ text }}"\n[variables.text]\n'


class Runner(FakeRunner):
    """A model with the tokens of the front's tokenizer."""

    vocab_size = VOCAB_SIZE

    @staticmethod
    def logits_of(prefix: np.ndarray) -> torch.Tensor:
        seed = int.from_bytes(blake2b(prefix.tobytes(), digest_size=8).digest(), "little")
        return torch.from_numpy(np.random.default_rng(seed).normal(scale=2.0, size=VOCAB_SIZE)).float()


def engine_script() -> Callable[[Generate], Iterator[Step]]:
    """A worker with a real engine, one request at a time."""
    engine = DecoderEngine(
        Runner(num_blocks=512),
        max_model_len=MAX_MODEL_LEN,
        max_batch_tokens=64,
        max_running=64,
        prefix_cache=True,
        vocabulary=TokenBytes(tokenizer_files("byte_level"), VOCAB_SIZE),
    )

    def script(command: Generate) -> Iterator[Step]:
        engine.add(command)
        try:
            while engine.has_work:
                replies = engine.step()
                for failed in [reply for reply in replies if isinstance(reply, Failed)]:
                    yield FAILURES[failed.code](failed.message)
                yield [reply for reply in replies if isinstance(reply, Tokens)]
        finally:
            engine.abort(command.request_id)

    return script


@contextmanager
def engine_client(**settings: Any) -> Iterator[TestClient]:
    """The front over a real engine, with one event loop for all requests, as the sandbox wants it."""
    with TestClient(front(engine_script(), **settings), raise_server_exceptions=False) as client:
        try:
            yield client
        finally:
            assert client.portal is not None
            client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("templates")
    (folder / "summary.toml").write_text(SUMMARY)
    with engine_client(default_max_new_tokens=4, templates=str(folder)) as client:
        yield client


def test_the_page_is_made_from_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m server.serving.options.docs"


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in NEEDS_MORE])
def test_every_example_of_the_page_is_answered(client: TestClient, name: str) -> None:
    response = client.post("/generate", json={**body_of(name), "parameters": EXAMPLES[name]})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in NEEDS_MORE])
def test_every_cell_of_the_page_is_what_the_route_does(client: TestClient, name: str, column: str) -> None:
    body: dict[str, Any] = {**body_of(name, column), "parameters": parameters_of(name, column)}
    response = client.post("/generate", json=body)
    outcome = cell(name, column)
    assert response.status_code == (200 if outcome == "yes" else 422), response.text
    if outcome == "yes":
        assert '"error":' not in response.text and "generated_text" in response.text
    else:
        message = response.json()["error"]["message"]
        assert all(field in message for field in outcome.removeprefix("no: ").replace("`", "").split(" with "))
