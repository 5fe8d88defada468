"""Languages, prefixes and routes of `sluice finetune seq2seq`: what is trained, refused, and written for the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import ConfigurationError
from server.finetune.directions import TrainedDirection, trained_direction
from server.finetune.options import Options
from server.models.languages import read_languages
from server.models.tokenizer_files import load_tokenizer
from tests.finetune.seq2seq_bases import BASES
from tests.tiny_sentencepiece import write_json

GERMAN = "translate English to German: "


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in ("t5", "mbart", "marian", "m2m100", "nllb"):
        BASES[name][0](folder / name)
    return folder


def found(base: Path, **options: Any) -> TrainedDirection:
    chosen = Options(task="seq2seq", model=str(base), data="d", out="o", **options)
    return trained_direction(chosen, load_tokenizer(base), ["the mill"])


@pytest.mark.parametrize(
    ("base", "given", "written"),
    [
        ("mbart", ("en_XX", "de_DE"), {"src_lang": "en_XX", "tgt_lang": "de_DE"}),
        ("nllb", ("eng", "deu"), {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"}),
        ("m2m100", ("en", "de"), {"src_lang": "en", "tgt_lang": "de"}),
        ("marian", (None, None), {"src_lang": "en", "tgt_lang": "de"}),
    ],
)
def test_trained_languages_become_the_defaults_of_the_served_model(
    base: str, given: tuple[str | None, str | None], written: dict[str, str], bases: Path, tmp_path: Path
) -> None:
    trained = found(bases / base, src_lang=given[0], tgt_lang=given[1])
    trained.save_tokenizer(bases / base, tmp_path)
    config = json.loads((bases / base / "config.json").read_text())
    languages = read_languages(tmp_path, config, load_tokenizer(tmp_path))
    assert languages is not None
    assert {"src_lang": languages.default_source, "tgt_lang": languages.default_target} == written


def test_languages_of_t5_take_the_words_of_its_config(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "t5").symlink_to(bases / "t5")
    config = json.loads((bases / "t5" / "config.json").read_text())
    folder = tmp_path / "asked"
    load_tokenizer(bases / "t5").save_pretrained(folder)
    write_json(folder / "config.json", {**config, "task_specific_params": {"translation_en_to_de": {"prefix": GERMAN}}})
    trained = found(folder, src_lang="en", tgt_lang="de")
    assert trained.direction.prefix == GERMAN
    assert trained.task_params == {"translation_en_to_de": {"prefix": GERMAN}}
    assert found(folder, src_lang="en", tgt_lang="de", prefix="to German: ").direction.prefix == "to German: "


@pytest.mark.parametrize(("route", "task"), [("translate", "translation"), ("summarize", "summarization")])
def test_a_prefix_belongs_to_the_chosen_route_alone(route: str, task: str, bases: Path) -> None:
    trained = found(bases / "t5", prefix="spell: ", route=route)
    assert trained.direction.prefix == "spell: "
    assert trained.task_params == {task: {"prefix": "spell: "}}


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ("m2m100", {"tgt_lang": "de"}, "--src-lang is required: one of"),
        ("nllb", {"src_lang": "eng"}, "--tgt-lang is required: one of"),
        ("nllb", {"src_lang": "eng", "tgt_lang": "xx"}, '--tgt-lang is "xx": it must be one of'),
        ("nllb", {"src_lang": "eng", "tgt_lang": "deu", "prefix": "a"}, "--prefix is for bases without languages"),
        ("nllb", {"src_lang": "eng", "tgt_lang": "deu", "route": "summarize"}, "--route is summarize: this base"),
        ("marian", {"src_lang": "en", "tgt_lang": "fr"}, '--tgt-lang is "fr": it must be one of de'),
        ("t5", {"src_lang": "en"}, "--tgt-lang is missing"),
        ("t5", {"tgt_lang": "de"}, "--src-lang is missing"),
        ("t5", {"src_lang": "en", "tgt_lang": "German"}, "--tgt-lang is 'German': this base takes codes"),
        ("t5", {"src_lang": "en", "tgt_lang": "de", "route": "summarize"}, "--route is summarize: a model with"),
    ],
)
def test_refuses_what_the_base_does_not_support(base: str, options: dict[str, Any], message: str, bases: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        found(bases / base, **options)


def test_refuses_languages_for_a_marian_that_names_none(bases: Path, tmp_path: Path) -> None:
    for path in (bases / "marian").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer_config.json").unlink()
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer"})
    with pytest.raises(ConfigurationError, match="This base names no languages"):
        found(tmp_path, src_lang="en", tgt_lang="de")
