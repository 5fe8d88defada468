"""A real server with a model for each task, one that calls tools, one that translates, and a key that clients send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.scripted_model import write_caller
from tests.server_process import ServerProcess, running_server
from tests.tiny_encoder_decoders import write_tiny_encoder_decoder
from tests.tiny_encoders import write_encoder

ROOT = Path(__file__).parents[2]
KEY = "a-key-for-clients-0123456789"
MODELS = {
    "smollm2-135m-instruct": ROOT / "models/smollm2-135m-instruct",
    "sentiment": ROOT / "server/defaults/sentiment",
    "rampart": ROOT / "models/rampart",
    "minilm": ROOT / "models/minilm-l6",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only where they are asked for: they install what they need from the network."""
    if "clients" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("clients"):
            item.add_marker(pytest.mark.skip(reason="clients of others: make test-clients"))


def write_translator(folder: Path) -> Path:
    """A T5 that is told in words to translate English to German."""
    config = write_tiny_encoder_decoder(folder, "t5") / "config.json"
    tasks = {"translation_en_to_de": {"prefix": "translate English to German: "}}
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_specific_params": tasks}))
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("clients")
    models = {**MODELS, "mask": write_encoder(folder / "mask", "bert", "fill-mask")}
    models["answers"] = write_encoder(folder / "answers", "bert", "question-answering")
    models["writer"] = write_tiny_encoder_decoder(folder / "writer", "bart")
    models["translator"] = write_translator(folder / "translator")
    models["caller"] = write_caller(folder / "caller")
    flags = [flag for name, path in models.items() for flag in ("--model", f"{name}={path}")]
    keys = folder / "keys"
    keys.write_text(f"{KEY} use,metrics\n")
    with running_server(*flags, "--api-keys-file", str(keys), "--kv-cache-gib", "1") as running:
        yield running
