"""What `sluice finetune` writes, `sluice serve` answers from at once: both as real commands."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server.finetune.data import TagExample, read_tags, read_texts
from server.finetune.scores import entity_spans
from tests.finetune.bases import write_base, write_reviews, write_sentences
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
    common = ("--model", "base", "--batch-size", "8", "--seed", "2", "--epochs", "8")
    sluice(tmp_path, "finetune", "classify", *common, "--data", "reviews.csv", "--out", "mood",
           "--learning-rate", "3e-3")  # fmt: skip
    sluice(tmp_path, "finetune", "ner", *common, "--data", "sentences.conll", "--out", "names",
           "--learning-rate", "5e-3")  # fmt: skip
    assert (tmp_path / "mood/adapter_config.json").exists()
    assert (tmp_path / "names/adapter_config.json").exists()

    flags = ("--model", f"mood={tmp_path / 'mood'}", "--model", f"names={tmp_path / 'names'}", "--threads", "1")
    with running_server(*flags, "--dtype", "float32") as server:
        reviews = read_texts(tmp_path / "reviews.csv").examples[:40]
        answers = post(server, "/classify", {"inputs": [review.text for review in reviews]})
        best = [max(answer, key=lambda entry: entry["score"])["label"] for answer in answers]
        assert sum(label == review.labels[0] for label, review in zip(best, reviews, strict=True)) >= 36

        sentences = read_tags(tmp_path / "sentences.conll")[:40]
        answers = post(server, "/ner", {"inputs": [sentence.text for sentence in sentences]})
        found = [{(e["entity_group"], e["start"], e["end"]) for e in answer} for answer in answers]
        assert sum(spans == expected(sentence) for spans, sentence in zip(found, sentences, strict=True)) >= 36


def expected(sentence: TagExample) -> set[tuple[str, int, int]]:
    """Type and character offsets of every entity in the words joined by spaces."""
    starts = [len(" ".join([*sentence.words[:index], ""])) for index in range(len(sentence.words))]
    return {
        (kind, starts[first], starts[last] + len(sentence.words[last]))
        for kind, first, last in entity_spans(sentence.tags)
    }
