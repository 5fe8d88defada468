"""Bases of many families after a few steps: the server gives transformers' tokens and the scores of training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from server.finetune.base import load_base
from server.finetune.chrf import chrf
from server.finetune.directions import ROUTES
from server.finetune.options import Options
from server.finetune.rewrites import RewriteExample, read_rewrites
from server.finetune.seq2seq import Seq2Seq
from server.finetune.splitting import split
from server.finetune.train import finetune
from tests.conftest import TINY_SETTINGS
from tests.finetune.seq2seq_bases import BASES, write_pairs
from tests.finetune.test_serve import post
from tests.server_process import ServerProcess, running_server

EXAMPLE = RewriteExample("the old mill", "a mill")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses"),
]


def options(folder: Path, name: str) -> Options:
    paths = {"model": str(folder / f"{name}-base"), "data": str(folder / "pairs.jsonl"), "out": str(folder / name)}
    return Options(task="seq2seq", learning_rate=1e-2, max_steps=4, max_target_length=16, threads=1,
                   **paths, **BASES[name][1])  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each base, and beside it the folder that training wrote."""
    folder = tmp_path_factory.mktemp("families")
    threads = torch.get_num_threads()
    write_pairs(folder / "pairs.jsonl")
    for name, (write, _) in BASES.items():
        write(folder / f"{name}-base")
        finetune(options(folder, name))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def server(workshop: Path) -> Iterator[ServerProcess]:
    flags = [word for name in BASES for word in ("--model", f"{name}={workshop / name}")]
    with running_server(*flags, *TINY_SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def held_out(workshop: Path) -> list[RewriteExample]:
    examples, _ = read_rewrites(workshop / "pairs.jsonl")
    return list(split(examples, validation_share=0.1, test_share=0.1, seed=0).test)


def answers(server: ServerProcess, name: str, sources: list[str]) -> list[dict[str, Any]]:
    """With the tokens, from the route that was trained."""
    route = BASES[name][1].get("route", "translate")
    body = {"model": name, "inputs": sources, "parameters": {"details": True}}
    return list(post(server, f"/{route}", body))


@pytest.mark.parametrize("name", BASES)
def test_serves_the_tokens_that_transformers_generates(
    name: str, workshop: Path, server: ServerProcess, held_out: list[RewriteExample]
) -> None:
    sources = [example.source for example in held_out]
    model, tokenizer = loaded(workshop / name)
    ends = model.generation_config.eos_token_id
    for source, answer in zip(sources, answers(server, name, sources), strict=True):
        inputs = tokenizer(BASES[name][1].get("prefix", "") + source, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            expected = model.generate(**inputs)[0, 1:].tolist()
        served = [token["id"] for token in answer["details"]["tokens"]]
        assert [id_ for id_ in served if id_ != ends] == [id_ for id_ in expected if id_ != ends]
        assert served


@pytest.mark.parametrize("name", BASES)
def test_serves_the_score_that_training_reported(
    name: str, workshop: Path, server: ServerProcess, held_out: list[RewriteExample]
) -> None:
    served = answers(server, name, [example.source for example in held_out])
    (key,) = {key for answer in served for key in answer} - {"details"}
    reported = json.loads((workshop / name / "metrics.json").read_text())["test"]["chrf"]
    assert chrf([example.target for example in held_out], [answer[key] for answer in served]) == pytest.approx(
        reported, abs=1e-4
    )


@pytest.mark.parametrize("name", BASES)
def test_card_and_info_offer_the_trained_route_alone(name: str, workshop: Path, server: ServerProcess) -> None:
    route = BASES[name][1].get("route", "translate")
    card = (workshop / name / "README.md").read_text()
    assert f"http://127.0.0.1:8000/{route} " in card
    assert f'pipeline_tag: "{ROUTES[route]}"' in card
    described = next(model for model in json.loads(server.get("/info")[1])["models"] if model["name"] == name)
    offered = {"translate": described["can_translate"], "summarize": described["can_summarize"]}
    assert offered == {each: each == route for each in ROUTES}


@pytest.mark.parametrize("name", BASES)
def test_trains_on_the_tokens_of_transformers_tokenizer(name: str, workshop: Path) -> None:
    task = Seq2Seq(options(workshop, name))
    task.set_labels([EXAMPLE])
    task.prepare(load_base(task, task.options))
    ((_, encoded),) = task.encodings([EXAMPLE], None, 64, "train")
    tokenizer = AutoTokenizer.from_pretrained(workshop / name)
    assert encoded.ids == tokenizer((task.options.prefix or "") + EXAMPLE.source).input_ids
    labels = tokenizer(text_target=EXAMPLE.target).input_ids
    start = task.start_id
    if name == "mbart":
        # Its labels end in the language, which the decoder starts with.
        *labels, start = labels
    assert task.labelled(EXAMPLE, encoded) == {"labels": labels, "decoder_input_ids": [start, *labels[:-1]]}


def loaded(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers and PEFT read them."""
    if (folder / "adapter_config.json").exists():
        model = AutoModelForSeq2SeqLM.from_pretrained(f"{folder}-base")
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
        model.generation_config = GenerationConfig.from_pretrained(folder)
    else:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
