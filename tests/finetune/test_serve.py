"""What `sluice finetune` writes, `sluice serve` answers from at once: both as real commands."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server.finetune.data import read_texts
from tests.finetune.bases import CITIES, NAMES, write_base, write_reviews, write_sentences
from tests.server_process import ServerProcess, running_server

pytestmark = pytest.mark.timeout(240)


def sluice(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "server", *arguments, "--threads", "1"]
    # Started in the data's own folder, with paths as a user would type them.
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr


def post(server: ServerProcess, path: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_a_folder_of_finetune_is_served_as_it_is(tmp_path):
    write_base(tmp_path / "base")
    write_reviews(tmp_path / "reviews.csv")
    write_sentences(tmp_path / "sentences.conll")
    common = ("--model", "base", "--batch-size", "8")
    sluice(tmp_path, "finetune", "classify", *common, "--data", "reviews.csv", "--out", "mood",
           "--learning-rate", "3e-3", "--epochs", "8")  # fmt: skip
    sluice(tmp_path, "finetune", "ner", *common, "--data", "sentences.conll", "--out", "names",
           "--learning-rate", "1e-2", "--epochs", "8")  # fmt: skip
    assert (tmp_path / "mood/adapter_config.json").exists()
    assert (tmp_path / "names/adapter_config.json").exists()

    flags = ("--model", f"mood={tmp_path / 'mood'}", "--model", f"names={tmp_path / 'names'}", "--threads", "1")
    with running_server(*flags, "--dtype", "float32") as server:
        reviews = read_texts(tmp_path / "reviews.csv").examples[:40]
        answers = post(server, "/classify", {"inputs": [review.text for review in reviews]})
        best = [max(answer, key=lambda entry: entry["score"])["label"] for answer in answers]
        assert sum(label == review.labels[0] for label, review in zip(best, reviews, strict=True)) >= 36

        text = f"{NAMES[0]} {NAMES[1]} lives in {CITIES[2]}"
        entities = post(server, "/ner", {"inputs": text})
        found = {(entity["entity_group"], text[entity["start"] : entity["end"]]) for entity in entities}
        assert found == {("PER", f"{NAMES[0]} {NAMES[1]}"), ("LOC", CITIES[2])}
