"""`sluice finetune` on tiny bases: it learns, keeps the best, and what it writes is what it scored."""

from __future__ import annotations

import json
import random
import shlex
from argparse import ArgumentParser
from itertools import pairwise

import numpy as np
import peft
import pytest
import torch
import transformers

from server.errors import ConfigurationError
from server.finetune import cli
from server.finetune.data import read_tags, read_texts
from server.finetune.options import Options
from server.finetune.splitting import split
from tests.finetune.bases import WORDS, write_base, write_reviews, write_sentences


def finetune(*arguments: str) -> int:
    parser = ArgumentParser()
    cli.add_tasks(parser)
    return cli.run(parser.parse_args([*map(str, arguments)]))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    for model_type in ("bert", "roberta", "distilbert"):
        write_base(folder / model_type, model_type)
    write_reviews(folder / "reviews.csv")
    write_sentences(folder / "sentences.conll")
    return folder


def logits_of(model, folder, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        return model.eval()(**inputs).logits[0]


def test_a_classifier_learns(workshop, tmp_path):
    out = tmp_path / "adapter"
    options = ("--data", workshop / "reviews.csv", "--out", out, "--learning-rate", "3e-3", "--batch-size", "8")
    assert finetune("classify", "--model", workshop / "bert", *options, "--epochs", "8") == 0
    assert json.loads((out / "metrics.json").read_text())["test"]["macro_f1"] > 0.9


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
def test_a_lora_adapter_scores_the_same_when_loaded_again(workshop, tmp_path, model_type):
    out = tmp_path / "adapter"
    options = ("--data", workshop / "reviews.csv", "--out", out, "--learning-rate", "3e-3", "--max-steps", "8")
    assert finetune("classify", "--model", workshop / model_type, *options, "--seed", "3") == 0

    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["label2id"] == {"negative": 0, "positive": 1}
    assert config["problem_type"] == "single_label_classification"
    assert config["architectures"][0].endswith("ForSequenceClassification")

    adapter = json.loads((out / "adapter_config.json").read_text())
    base = (out / adapter["base_model_name_or_path"]).resolve()
    assert base == (workshop / model_type).resolve()

    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = peft.PeftModel.from_pretrained(model, out)
    reviews = read_texts(workshop / "reviews.csv").examples
    held_out = split(reviews, validation_share=0.1, test_share=0.1, seed=3).test
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_test"] == len(held_out)
    losses = [
        -logits_of(model, out, example.text).log_softmax(-1)[config["label2id"][example.labels[0]]].item()
        for example in held_out
    ]
    assert np.mean(losses) == pytest.approx(metrics["test"]["loss"], abs=1e-3)


def test_every_linear_layer_of_the_body_is_adapted_and_the_head_is_saved_whole(workshop, tmp_path):
    from safetensors import safe_open

    out = tmp_path / "adapter"
    finetune("classify", "--model", workshop / "roberta", "--data", workshop / "reviews.csv", "--out", out,
             "--max-steps", "1")  # fmt: skip
    with safe_open(out / "adapter_model.safetensors", "pt") as weights:
        names = set(weights.keys())
    for layer in (0, 1):
        place = f"base_model.model.roberta.encoder.layer.{layer}"
        for linear in ("attention.self.query", "attention.self.key", "attention.self.value",
                       "attention.output.dense", "intermediate.dense", "output.dense"):  # fmt: skip
            assert f"{place}.{linear}.lora_A.weight" in names
    head = {name for name in names if ".classifier." in name}
    assert head == {f"base_model.model.classifier.{part}" for part in
                    ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")}  # fmt: skip


def test_full_training_writes_a_whole_tagger(workshop, tmp_path):
    out = tmp_path / "tagger"
    options = ("--data", workshop / "sentences.conll", "--out", out, "--learning-rate", "1e-2", "--batch-size", "8")
    assert finetune("ner", "--model", workshop / "bert", *options, "--method", "full") == 0

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["f1"] > 0.9
    assert not (out / "adapter_config.json").exists()
    model = transformers.AutoModelForTokenClassification.from_pretrained(out)
    assert model.config.id2label == {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "B-PER", 4: "I-PER"}
    held_out = split(
        read_tags(workshop / "sentences.conll").examples, validation_share=0.1, test_share=0.1, seed=0
    ).test
    right = num_words = 0
    for example in held_out:
        found = logits_of(model, out, example.text).argmax(-1).tolist()[1:-1]
        right += sum(model.config.id2label[index] == tag for index, tag in zip(found, example.tags, strict=True))
        num_words += len(example.tags)
    assert right / num_words == pytest.approx(metrics["test"]["accuracy"], abs=1e-4)


def test_list_labels_train_a_multi_label_classifier(workshop, tmp_path):
    data = tmp_path / "topics.jsonl"
    words = random.Random(0).choices(["good", "near", "old"], k=200)
    rows = [{"text": f"{a} {b} {i}", "label": sorted({a, b} - {"old"})} for i, (a, b) in enumerate(pairwise(words))]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "topics"
    finetune("classify", "--model", workshop / "bert", "--data", data, "--out", out, "--learning-rate", "3e-3",
             "--method", "full", "--batch-size", "8")  # fmt: skip
    assert json.loads((out / "config.json").read_text())["problem_type"] == "multi_label_classification"
    assert json.loads((out / "metrics.json").read_text())["test"]["micro_f1"] > 0.8


def test_training_stops_when_the_validation_score_does_and_the_best_epoch_is_kept(workshop, tmp_path):
    out = tmp_path / "adapter"
    finetune("ner", "--model", workshop / "bert", "--data", workshop / "sentences.conll", "--out", out,
             "--learning-rate", "1e-2", "--method", "full", "--epochs", "40", "--patience", "1")  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["epochs"] < 40
    assert metrics["best_step"] == metrics["steps"] - metrics["steps"] // round(metrics["epochs"])
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_held_out_data_of_ones_own_is_used_whole(workshop, tmp_path):
    write_reviews(tmp_path / "held-out.csv", num_rows=30)
    out = tmp_path / "adapter"
    finetune("classify", "--model", workshop / "bert", "--data", workshop / "reviews.csv", "--out", out,
             "--eval-data", tmp_path / "held-out.csv", "--max-steps", "1")  # fmt: skip
    assert json.loads((out / "metrics.json").read_text())["num_test"] == 30


def test_the_card_holds_front_matter_scores_and_the_exact_command(workshop, tmp_path):
    out = tmp_path / "my adapter"
    finetune("classify", "--model", workshop / "bert", "--data", workshop / "reviews.csv", "--out", out,
             "--max-steps", "1", "--license", "mit", "--base-model-id", "some/base")  # fmt: skip
    card = (out / "README.md").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    for line in ('base_model: "some/base"', 'datasets: ["reviews.csv"]', 'license: "mit"', 'library_name: "peft"'):
        assert line in card.splitlines()
    assert f"| macro_f1 | {metrics['validation']['macro_f1']:.4f} | {metrics['test']['macro_f1']:.4f} |" in card
    assert (
        f"sluice finetune classify --model {workshop / 'bert'} --data {workshop / 'reviews.csv'} --out '{out}' "
        "--max-steps 1 --base-model-id some/base --license mit\n"
    ) in card


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-length", "1000"], "--max-length is 1000: this base takes at most 66 tokens"),
        (["--test-share", "0.7"], "--test-share is 0.7: it must be above 0 and below 0.5"),
        (["--model", "nowhere"], "There is no folder nowhere"),
        (["--eval-data", "EVAL"], "--eval-data has labels that --data does not have: mixed"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(workshop, tmp_path, arguments, said):
    (tmp_path / "eval.csv").write_text("text,label\nx,mixed\n")
    arguments = [str(tmp_path / "eval.csv") if argument == "EVAL" else argument for argument in arguments]
    base = () if "--model" in arguments else ("--model", workshop / "bert")
    with pytest.raises(ConfigurationError) as caught:
        finetune("classify", *base, "--data", workshop / "reviews.csv", "--out", tmp_path / "out", *arguments)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_over(workshop, tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigurationError, match="already exists"):
        finetune("classify", "--model", workshop / "bert", "--data", workshop / "reviews.csv", "--out", tmp_path)


def test_a_folder_that_cannot_be_made_is_named(workshop, tmp_path):
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "out"
    with pytest.raises(ConfigurationError, match="cannot be written: not a directory"):
        finetune("classify", "--model", workshop / "bert", "--data", workshop / "reviews.csv", "--out", out)


def test_without_accelerate_the_message_says_what_to_install(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sluice-server\[finetune\]'"):
        finetune("classify", "--model", "x", "--data", "y", "--out", tmp_path / "z")


def test_the_recorded_command_gives_back_the_same_options(workshop):
    options = Options(task="ner", model="a b", data="d.conll", out="o", learning_rate=2e-4, epochs=1.5, lora_rank=8)
    parser = ArgumentParser()
    cli.add_tasks(parser)
    assert Options.from_arguments(parser.parse_args(shlex.split(options.command())[2:])) == options


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--epochs", "inf", "--epochs is inf: it must be a number"),
        ("--learning-rate", "inf", "--learning-rate is inf: it must be a number"),
        ("--weight-decay", "inf", "--weight-decay is inf: it must be a number"),
        ("--seed", "4294967296", "--seed is 4294967296: it must be below 4294967296"),
        ("--max-length", "4", "--max-length is 4: it must be at least 5 for this base"),
    ],
)
def test_an_option_that_no_run_can_have_is_refused(workshop, tmp_path, option, value, said):
    data = ("--data", workshop / "reviews.csv", "--out", tmp_path / "out", "--max-steps", "1")
    with pytest.raises(ConfigurationError, match=said):
        finetune("classify", "--model", workshop / "bert", *data, option, value)


def test_labels_may_have_any_characters_and_each_has_its_score(workshop, tmp_path):
    labels = ["rest|time", "leisure_time", "run`time", "b, c", "two\nlines", "\u202eright", "\U0001f600"]
    rows = [{"text": f"the {word} {index}", "label": labels[index % 7]} for index in range(14) for word in WORDS[:9]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    finetune("classify", "--model", workshop / "bert", "--data", tmp_path / "a.jsonl", "--out", out, "--max-steps", "1")
    scores = json.loads((out / "metrics.json").read_text())["test"]
    assert {name.removeprefix("f1/") for name in scores if name.startswith("f1/")} == set(labels)
    assert json.loads((out / "config.json").read_text())["label2id"].keys() == set(labels)
    table = (out / "README.md").read_text().split("## Scores")[1].split("Held out")[0].strip().splitlines()
    assert all(line.startswith("| ") and line.replace("\\|", "").count("|") == 4 for line in table)
