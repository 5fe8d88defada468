"""The whole application over real engines of tiny models, one for each task, and answers held against its document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import msgspec
from starlette.testclient import TestClient

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.errors import FAILURES
from server.protocol import Failed, Generate, Tokens
from server.vocabulary import TokenBytes
from tests.api.embed_app import embed_worker
from tests.api.scripted import MAX_MODEL_LEN, VOCAB_SIZE, ScriptedWorker, Step, ready
from tests.api.test_options_page import Runner
from tests.api.translators import MANY, translator
from tests.encoder_app import client_of, tiny_worker
from tests.sandbox.chat_templates import CHATML
from tests.tiny_tokenizers import tokenizer_files

GENERATOR = "words"
"""The generating model's name, and that of a template."""
TEMPLATE = 'task = "generate"\ntext = "Sum up: {{ text }}"\n[variables.text]\n'
STREAMS = ("/generate", "/generate_stream", "/", "/v1/chat/completions", "/v1/completions", "/v1/responses",
           "/v1/messages", "/translate", "/summarize")  # fmt: skip


def engine_for_each() -> Callable[[Generate], Iterator[Step]]:
    """A worker with a real engine for each request."""
    vocabulary = TokenBytes(tokenizer_files("byte_level"), VOCAB_SIZE)

    def script(command: Generate) -> Iterator[Step]:
        engine = DecoderEngine(
            Runner(num_blocks=128),
            max_model_len=MAX_MODEL_LEN,
            max_batch_tokens=64,
            max_running=64,
            prefix_cache=True,
            vocabulary=vocabulary,
        )
        engine.add(command)
        while engine.has_work:
            replies = engine.step()
            for failed in [reply for reply in replies if isinstance(reply, Failed)]:
                yield FAILURES[failed.code](failed.message)
            yield [reply for reply in replies if isinstance(reply, Tokens)]

    return script


def generator() -> Any:
    worker = ScriptedWorker(engine_for_each(), ready())
    worker.model = ModelConfig(name=GENERATOR, path="nowhere")
    files = msgspec.structs.replace(worker.ready.tokenizer, chat_template=CHATML)
    worker.ready = msgspec.structs.replace(worker.ready, tokenizer=files)
    return worker


@contextmanager
def all_tasks(**settings: Any) -> Iterator[TestClient]:
    """A client of a server of every task; the first classifier has moods, and others judge pairs."""
    with TemporaryDirectory() as folder:
        (Path(folder) / f"{GENERATOR}.toml").write_text(TEMPLATE)
        settings = {"default_max_new_tokens": 4, "templates": folder, **settings}
        with client_of(generator(), translator("many", MANY), *encoders(), **settings) as client:
            assert client.portal is not None
            services = client.app.front.registry.services  # type: ignore[attr-defined]
            client.portal.call(services.start)
            try:
                yield client
            finally:
                client.portal.call(services.close)


def encoders() -> list[Any]:
    return [
        tiny_worker("mood", "bert", "classify"),
        tiny_worker("nli", "bert", "classify", labels=("contradiction", "neutral", "entailment")),
        tiny_worker("pairs", "bert", "classify", labels=("relevance",)),
        tiny_worker("tags", "bert", "ner"),
        tiny_worker("masks", "bert", "fill-mask"),
        tiny_worker("answers", "bert", "question-answering"),
        embed_worker("vectors"),
    ]


def documented(document: dict[str, Any], method: str, path: str, response: Any) -> dict[str, Any]:
    """The media type's entry for this answer in the document; fails where answer and document differ."""
    described = document["paths"][path][method]["responses"].get(str(response.status_code))
    assert described is not None, f"{method} {path} answers {response.status_code}, which is not documented"
    media_type = response.headers["content-type"].partition(";")[0]
    content = described["content"].get(media_type)
    assert content is not None, f"{method} {path} answers {media_type}, which is not documented"
    if media_type == "application/json":
        validator(document, content["schema"]).validate(response.json())
    if "retry-after" in response.headers:
        assert "Retry-After" in described["headers"]
    found: dict[str, Any] = content
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Of a schema that refers into the document."""
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})
