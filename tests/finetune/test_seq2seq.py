"""`sluice finetune seq2seq`: data, lengths, scores and what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from server.config import ModelConfig
from server.errors import ConfigurationError
from server.finetune import train
from server.finetune.base import Base, load_base
from server.finetune.chrf import chrf
from server.finetune.options import Options
from server.finetune.rewrites import RewriteExample, read_rewrites
from server.finetune.seq2seq import Seq2Seq
from server.finetune.train import finetune
from server.models.loader import load
from server.models.tokenizer_files import load_tokenizer
from tests.finetune.bases import write_base, write_reviews
from tests.tiny_encoder_decoders import EOS_ID, write_tiny_encoder_decoder

torch.set_num_threads(1)
TEXTS = st.lists(st.tuples(st.text("ab c", max_size=9), st.text("ab c", max_size=9)), min_size=1, max_size=3)


@given(TEXTS)
def test_chrf_is_sacrebleus(texts: list[tuple[str, str]]) -> None:
    true, predicted = [wanted for wanted, _ in texts], [found for _, found in texts]
    assert chrf(true, predicted) == pytest.approx(sacrebleu.corpus_chrf(predicted, [true]).score)


def test_reads_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("id\ten\tde\n1\tdog\tHund\n")
    assert read_rewrites(path, "en", "de") == ([RewriteExample("dog", "Hund")], ["columns not used: id"])
    with pytest.raises(ConfigurationError, match="Name it with --source-column"):
        read_rewrites(path)


@pytest.mark.parametrize(
    ("task", "option"), [("qa", "text_column"), ("classify", "prefix"), ("seq2seq", "label_names")]
)
def test_refuses_options_of_other_tasks(task: str, option: str) -> None:
    with pytest.raises(ConfigurationError, match="--" + option.replace("_", "-")):
        Options(task=task, model="m", data="d", out="o", **{option: "x"})


def test_refuses_to_merge_without_an_adapter() -> None:
    with pytest.raises(ConfigurationError, match="--merge requires --method lora"):
        Options(task="classify", model="m", data="d", out="o", method="full", merge=True)


def run(folder: Path, base: Path, **options: Any) -> dict[str, Any]:
    """On lines of two lengths, one step if no option says otherwise."""
    rows = [{"source": f"the river {n}" + " and the mill" * (n % 2), "target": f"{n} mill"} for n in range(40)]
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    out = str(folder / "out")
    paths = {"model": str(base), "data": str(data), "out": out}
    return finetune(Options(task="seq2seq", **paths, **{"max_steps": 1, **options}))


def test_reports_how_many_texts_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_encoder_decoder(tmp_path / "base", "bart")
    limit = len(load_tokenizer(base).backend_tokenizer.encode("the river 39"))
    found = run(tmp_path, base, max_length=limit, max_target_length=2)
    assert (found["max_length"], found["max_target_length"]) == (limit, 2)
    printed = capsys.readouterr().out
    cut = re.findall(rf"(\d+) of \d+ \w+ sources are longer than {limit} tokens and are cut", printed)
    assert sum(map(int, cut)) == 20
    for part in ("32 of 32 train", "4 of 4 validation", "4 of 4 test"):
        assert f"{part} targets are longer than 2 tokens and are cut" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Sources were cut at {limit} tokens and targets at 2." in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 600}, "--max-length is 600: this base takes at most 512 tokens"),
        ({"max_target_length": 600}, "--max-target-length is 600: this base writes at most 511 tokens"),
        ({"max_target_length": 1}, "--max-target-length is 1: it must be at least 2"),
        ({"max_length": 3, "prefix": "a very long prefix: "}, "--max-length is 3: the prefix and the special tokens"),
    ],
)
def test_refuses_lengths_that_the_base_does_not_have(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path, write_tiny_encoder_decoder(tmp_path / "base", "bart"), **options)


def test_the_cut_text_keeps_its_last_special_token(tmp_path: Path) -> None:
    base = write_tiny_encoder_decoder(tmp_path / "base", "bart")
    run(tmp_path, base, max_length=4, max_target_length=3)
    options = Options(task="seq2seq", model=str(base), data=str(tmp_path / "data.jsonl"), out="o", max_target_length=3)
    task = Seq2Seq(options)
    examples, _ = task.read(tmp_path / "data.jsonl")
    task.set_labels(examples)
    task.prepare(load_base(task, options))
    encoded = [encoding for _, encoding in task.encodings(examples, None, 4, "train")]
    assert all(len(each.ids) == 4 and each.ids[-1] == EOS_ID for each in encoded)
    assert all(len(each.labels) == 3 and each.labels[-1] == EOS_ID for each in encoded)


def test_no_text_of_the_held_out_data_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"source": "the river 2", "target": "another mill"}))
    found = run(tmp_path, write_tiny_encoder_decoder(tmp_path / "base", "t5"), eval_data=str(held_out))
    assert (found["num_train"] + found["num_validation"], found["num_test"]) == (39, 1)
    assert f"1 examples of {tmp_path / 'data.jsonl'} are not trained on" in capsys.readouterr().out


def test_a_merged_model_is_the_base_with_its_adapter(tmp_path: Path) -> None:
    base = write_tiny_encoder_decoder(tmp_path / "base", "t5")
    found = {}
    for name, merge in (("adapter", False), ("merged", True)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, base, merge=merge, learning_rate=1e-2)
        found[name] = load(ModelConfig(name=name, path=str(tmp_path / name / "out"), dtype="float32"))
    assert not (tmp_path / "merged" / "out" / "adapter_config.json").exists()
    merged = found["merged"].module.state_dict()
    for name, weight in found["adapter"].module.state_dict().items():
        torch.testing.assert_close(merged[name], weight)
    assert 'library_name: "transformers"' in (tmp_path / "merged" / "out" / "README.md").read_text()


def test_a_merged_classifier_is_the_base_with_its_adapter(tmp_path: Path) -> None:
    base, data = write_base(tmp_path / "base"), write_reviews(tmp_path / "reviews.csv")
    found = {}
    for name, merge in (("adapter", False), ("merged", True)):
        out = str(tmp_path / name)
        finetune(Options(task="classify", model=str(base), data=str(data), out=out, max_steps=2, merge=merge))
        found[name] = load(ModelConfig(name=name, path=out, dtype="float32")).module.state_dict()
    assert found["adapter"].keys() == found["merged"].keys()
    for name, weight in found["adapter"].items():
        torch.testing.assert_close(found["merged"][name], weight)


def test_an_interrupted_run_continues_and_ends_with_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    base = write_tiny_encoder_decoder(tmp_path / "base", "t5")
    epochs = {"max_steps": 0, "epochs": 2.0}
    (tmp_path / "undisturbed").mkdir()
    expected = run(tmp_path / "undisturbed", base, **epochs)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Seq2Seq, "final_scores", interrupt)
        run(tmp_path, base, **epochs)
    found = run(tmp_path, base, **epochs)
    assert "continuing from step" in capsys.readouterr().out
    assert (found["test"], found["steps"]) == (expected["test"], expected["steps"])


def test_a_run_that_diverges_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Base:
        base = load_base(*arguments)
        base.model.shared.weight.data.fill_(float("nan"))
        return base

    monkeypatch.setattr(train, "load_base", broken)
    with pytest.raises(ConfigurationError, match=r"Training diverged: .* Lower --learning-rate"):
        run(tmp_path, write_tiny_encoder_decoder(tmp_path / "base", "t5"))
    assert not (tmp_path / "out").exists()


def test_marians_table_of_positions_is_written(tmp_path: Path) -> None:
    run(tmp_path, write_tiny_encoder_decoder(tmp_path / "base", "marian"), method="full")
    assert "model.encoder.embed_positions.weight" in load_file(tmp_path / "out" / "model.safetensors")
