"""What `sluice finetune` writes, `sluice serve` answers from at once, with the scores that training reported."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.finetune.data import TagExample, read_tags, read_texts
from server.finetune.options import Options
from server.finetune.questions import read_questions
from server.finetune.scores import answer_scores, span_scores
from server.finetune.splitting import split
from server.finetune.train import finetune
from server.text.tag_schemes import scheme_of, spans
from tests.finetune.bases import (
    write_base,
    write_chinese,
    write_chinese_base,
    write_pairs,
    write_questions,
    write_reviews,
    write_sentences,
)
from tests.server_process import ServerProcess, running_server

pytestmark = pytest.mark.timeout(240)


RUNS: dict[str, tuple[Any, str, str, float]] = {
    "mood": ("classify", "base", "reviews.csv", 3e-3),
    "agreement": ("classify", "base", "pairs.csv", 3e-3),
    "names": ("ner", "base", "sentences.conll", 5e-3),
    "chinese": ("ner", "chinese-base", "chinese.conll", 1e-2),
    "answers": ("qa", "base", "questions.json", 5e-3),
}
"""Name -> task, base, data and learning rate."""


def options(name: str) -> Options:
    task, base, data, rate = RUNS[name]
    return Options(
        task=task, model=base, data=data, out=name, learning_rate=rate, batch_size=8, seed=2, epochs=6.0, threads=1
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_base(folder / "base", for_words=True)
    write_chinese_base(folder / "chinese-base")
    write_reviews(folder / "reviews.csv")
    write_pairs(folder / "pairs.csv")
    write_sentences(folder / "sentences.conll")
    write_chinese(folder / "chinese.conll")
    write_questions(folder / "questions.json")
    # One as a user types it, in the data's own folder; the others here, where torch is imported already.
    command = [sys.executable, "-m", "server", *options("mood").command().split()[1:]]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in RUNS:
            if name != "mood":
                finetune(options(name))
    return folder


@pytest.fixture(scope="module")
def server(workshop: Path) -> Iterator[ServerProcess]:
    flags = [word for name in ("base", *RUNS) for word in ("--model", f"{name}={workshop / name}")]
    with running_server(*flags, "--threads", "1", "--dtype", "float32") as server:
        yield server


def post(server: ServerProcess, path: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_adapters_share_the_worker_of_their_base_if_it_is_served_too(server: ServerProcess) -> None:
    models = json.loads(server.get("/info")[1])["models"]
    shared = {model["name"] for model in models if model.get("shares_worker_of") == "base"}
    assert shared == {"mood", "agreement", "names", "answers"}
    assert len(server.worker_pids()) == 2


def metrics(folder: Path) -> dict[str, float]:
    scores: dict[str, float] = json.loads((folder / "metrics.json").read_text())["test"]
    return scores


@pytest.mark.parametrize(("name", "data"), [("mood", "reviews.csv"), ("agreement", "pairs.csv")])
def test_held_out_texts_get_the_scores_that_training_reported(
    workshop: Path, server: ServerProcess, name: str, data: str
) -> None:
    assert (workshop / name / "adapter_config.json").exists()
    examples = read_texts(workshop / data).examples
    held_out = split(examples, validation_share=0.1, test_share=0.1, seed=2).test
    inputs = [e.text if e.pair is None else {"text": e.text, "text_pair": e.pair} for e in held_out]
    answers = post(server, "/classify", {"model": name, "inputs": inputs})
    scores = [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
    losses = [-math.log(score[e.labels[0]]) for score, e in zip(scores, held_out, strict=True)]
    assert sum(losses) / len(losses) == pytest.approx(metrics(workshop / name)["loss"], abs=2e-4)
    right = sum(max(score, key=score.__getitem__) == e.labels[0] for score, e in zip(scores, held_out, strict=True))
    assert right / len(held_out) == pytest.approx(metrics(workshop / name)["accuracy"], abs=1e-4)


@pytest.mark.parametrize(("name", "data"), [("names", "sentences.conll"), ("chinese", "chinese.conll")])
def test_held_out_sentences_get_the_entities_that_training_scored(
    workshop: Path, server: ServerProcess, name: str, data: str
) -> None:
    examples = read_tags(workshop / data).examples
    held_out = split(examples, validation_share=0.1, test_share=0.1, seed=2).test
    answers = post(server, "/ner", {"model": name, "inputs": [example.text for example in held_out]})
    found = [{(e["entity_group"], e["start"], e["end"]) for e in answer} for answer in answers]
    scores = span_scores([expected(example) for example in held_out], found)
    assert scores["f1"] > 0.8
    assert scores["f1"] == pytest.approx(metrics(workshop / name)["f1"], abs=1e-4)


def test_held_out_questions_get_the_answers_that_training_scored(workshop: Path, server: ServerProcess) -> None:
    examples, _ = read_questions(workshop / "questions.json")
    held_out = split(examples, validation_share=0.1, test_share=0.1, seed=2).test
    inputs = [{"question": example.question, "context": example.context} for example in held_out]
    parameters = {"handle_impossible_answer": True}
    answers = post(server, "/question-answering", {"model": "answers", "inputs": inputs, "parameters": parameters})
    true = [[text for text, _ in example.answers] for example in held_out]
    scores = answer_scores(true, [answer["answer"] for answer in answers])
    assert scores["f1"] > 0.7 and {"f1/answered", "f1/impossible"} <= scores.keys()
    for name, score in scores.items():
        assert score == pytest.approx(metrics(workshop / "answers")[name], abs=1e-4)


def expected(sentence: TagExample) -> set[tuple[str, int, int]]:
    """Type and character offsets of every entity."""
    scheme = scheme_of(sentence.tags)
    return {
        (kind, sentence.starts[first], sentence.starts[last] + len(sentence.words[last]))
        for kind, first, last in spans([scheme.tags[tag] for tag in sentence.tags])
    }


def test_characters_of_a_script_without_spaces_are_joined_as_they_are_written(workshop: Path) -> None:
    texts = [example.text for example in read_tags(workshop / "chinese.conll").examples]
    assert not any(" " in text for text in texts)
    assert any("GE" in text for text in texts)
