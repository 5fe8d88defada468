"""The demo of `sluice finetune seq2seq`: numbers and their words."""

from __future__ import annotations

import csv
import json
import random
import shlex
from pathlib import Path

import num2words
import pytest

from server.__main__ import main as sluice
from server.config import ModelConfig
from server.finetune.number_words import MAX_BELOW, main, words_of
from server.models.loader import load
from tests.test_readme import ROOT, blocks

FINETUNING = ROOT / "server" / "FINETUNING.md"


def test_writes_the_words_that_num2words_writes() -> None:
    rng = random.Random(0)
    numbers = [*range(2200), *(rng.randrange(MAX_BELOW) for _ in range(1000)), 100_000, 100_100, MAX_BELOW - 1]
    assert [words_of(number) for number in numbers] == [num2words.num2words(number) for number in numbers]


def test_writes_different_numbers_of_every_length(tmp_path: Path) -> None:
    main([str(tmp_path), "--count", "500", "--below", "5000"])
    with (tmp_path / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = [int(row["source"]) for row in rows]
    assert len(set(numbers)) == 500 and max(numbers) < 5000
    assert {len(str(number)) for number in numbers} == {1, 2, 3, 4}
    assert all(row["target"] == words_of(int(row["source"])) for row in rows)


@pytest.mark.parametrize("words", [["--below", "2000000"], ["--below", "100"], ["--below", "1000", "--count", "501"]])
def test_refuses_numbers_that_it_cannot_write(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(tmp_path), *words])
    assert words[-2] in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_the_commands_of_the_page_train_a_model_that_writes_exact_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer and smaller numbers, to be done in seconds."""
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks(FINETUNING) if block.language == "sh"]
    write, train, serve = (shlex.split(command.replace("\\\n", "")) for command in block.commands)
    assert write[:3] == ["python", "-m", "server.finetune.number_words"]
    main([*write[3:], "--count", "500", "--below", "1000"])
    assert sluice([*train[1:], "--epochs", "40", "--batch-size", "32", "--patience", "40"]) == 0
    scores = json.loads(Path("spelling/metrics.json").read_text())["test"]
    assert scores["exact_match"] > 0.6 and scores["chrf"] > 80
    assert load(ModelConfig(name="spelling", path=serve[-1])).rewriting_tasks == ["translation"]
