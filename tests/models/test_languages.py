"""The languages that a folder names, beside what transformers' tokenizers do with the same folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    MarianConfig,
    MarianMTModel,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)
from transformers.models.mbart.modeling_mbart import shift_tokens_right

from server.config import ModelConfig
from server.languages import Languages
from server.models.languages import (
    read_languages,
    rewriting_tasks,
    summary_options,
    summary_prefix,
    translation_options,
    translation_prefix,
)
from server.models.loader import load
from server.models.tokenizer_files import load_tokenizer
from server.text.languages import direction
from tests.tiny_sentencepiece import train, write_json, write_m2m100, write_marian, write_plbart

TEXT = "The river runs past the mill"
T5_TASKS = {
    "summarization": {"prefix": "summarize: ", "max_length": 200},
    "translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 300},
    "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 300},
}


def saved(folder: Path, tokenizer: Any, model_type: str, **generation: int) -> Path:
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", {"model_type": model_type})
    if generation:
        write_json(folder / "generation_config.json", generation)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "nllb": lambda folder: saved(folder, NllbTokenizer(), "m2m_100"),
    "legacy nllb": lambda folder: saved(folder, NllbTokenizer(legacy_behaviour=True), "m2m_100"),
    "mbart": lambda folder: saved(folder, MBartTokenizer(), "mbart"),
    "mbart50": lambda folder: saved(folder, MBart50Tokenizer(), "mbart"),
    "m2m100": lambda folder: write_m2m100(folder, train("bpe")),
    "plbart": lambda folder: write_plbart(folder, train("bpe"), language_codes="multi"),
}


def loaded(folder: Path) -> Any:
    with warnings.catch_warnings():
        # Without sacremoses Marian's texts stay as they are.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return AutoTokenizer.from_pretrained(folder)


def read(folder: Path) -> Languages | None:
    return read_languages(folder, json.loads((folder / "config.json").read_text()), load_tokenizer(folder))


@pytest.mark.parametrize("family", FOLDERS)
def test_surrounds_a_text_as_the_tokenizer_does_in_every_source_language(family: str, tmp_path: Path) -> None:
    tokenizer = loaded(FOLDERS[family](tmp_path))
    languages = read(tmp_path)
    assert languages is not None
    text_ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    target = languages.languages[-1].code
    for language in languages.languages:
        tokenizer.src_lang = language.code
        found = direction(languages, language.code, target)
        assert [*(found.prefix_ids or []), *text_ids, *(found.suffix_ids or [])] == tokenizer(TEXT).input_ids


@pytest.mark.parametrize(("family", "number"), [("nllb", 202), ("mbart", 25), ("mbart50", 52), ("m2m100", 100)])
def test_finds_every_language_of_the_tokenizer(family: str, number: int, tmp_path: Path) -> None:
    languages = read(FOLDERS[family](tmp_path))
    assert languages is not None
    assert len(languages.languages) == number
    assert all(language.name != language.code for language in languages.languages)


@pytest.mark.parametrize("family", ["nllb", "mbart50", "m2m100"])
def test_forces_the_target_that_a_pipeline_forces(family: str, tmp_path: Path) -> None:
    tokenizer = loaded(FOLDERS[family](tmp_path))
    languages = read(tmp_path)
    assert languages is not None
    source = languages.languages[0].code
    for language in languages.languages:
        inputs = tokenizer._build_translation_inputs(TEXT, return_tensors=None, src_lang=source, tgt_lang=language.code)
        assert direction(languages, source, language.code).forced_bos_id == inputs["forced_bos_token_id"]


@pytest.mark.parametrize("family", ["mbart", "plbart"])
def test_starts_the_decoder_with_the_target_as_in_training(family: str, tmp_path: Path) -> None:
    """Labels end in the language, and transformers makes decoder inputs of them by moving it to the front."""
    tokenizer = loaded(FOLDERS[family](tmp_path))
    languages = read(tmp_path)
    assert languages is not None
    source = languages.languages[0].code
    for language in languages.languages:
        tokenizer.tgt_lang = language.code
        start = shift_tokens_right(torch.tensor([tokenizer(text_target=TEXT).input_ids]), 1)[0, 0]
        assert direction(languages, source, language.code).decoder_start_id == start


def test_finds_a_language_that_fine_tuning_added(tmp_path: Path) -> None:
    tokenizer = NllbTokenizer()
    tokenizer.add_tokens([AddedToken("tyv_Cyrl", special=True)])
    languages = read(saved(tmp_path, tokenizer, "m2m_100"))
    assert languages is not None
    assert direction(languages, "tyv", "eng").prefix_ids == [tokenizer.convert_tokens_to_ids("tyv_Cyrl")]


@pytest.mark.parametrize(
    ("settings", "forced", "source", "target"),
    [
        ({}, None, None, None),
        ({"src_lang": "eng_Latn"}, None, "eng_Latn", None),
        ({"src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}, None, "eng_Latn", "fra_Latn"),
        ({"tgt_lang": "fra_Latn"}, "deu_Latn", None, "deu_Latn"),
        ({"src_lang": "no_Such", "tgt_lang": "no_Such"}, "</s>", None, None),
    ],
)
def test_takes_default_languages_from_the_folder(
    settings: dict[str, str], forced: str | None, source: str | None, target: str | None, tmp_path: Path
) -> None:
    tokenizer = NllbTokenizer()
    saved(tmp_path, tokenizer, "m2m_100")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "NllbTokenizer", **settings})
    if forced:
        number = tokenizer.convert_tokens_to_ids(forced)
        write_json(tmp_path / "generation_config.json", {"forced_bos_token_id": number})
    languages = read(tmp_path)
    assert languages is not None
    assert (languages.default_source, languages.default_target) == (source, target)


def test_takes_the_target_that_mbarts_decoder_starts_with(tmp_path: Path) -> None:
    tokenizer = MBartTokenizer()
    number = tokenizer.convert_tokens_to_ids("ro_RO")
    languages = read(saved(tmp_path, tokenizer, "mbart", decoder_start_token_id=number))
    assert languages is not None and languages.default_target == "ro_RO"


def test_puts_the_target_of_a_multilingual_opus_model_before_the_text(tmp_path: Path) -> None:
    model = train("unigram")
    folder = write_marian(tmp_path, model, model, [">>fra<<", ">>por_BR<<"], source_lang="eng", target_lang="roa")
    tokenizer = loaded(folder)
    languages = read(folder)
    assert languages is not None
    for asked, code in (("fra", "fra"), ("fr", "fra"), ("pt-br", "por_BR"), ("por", "por_BR")):
        found = direction(languages, "en", asked)
        ids = tokenizer(TEXT, add_special_tokens=False).input_ids
        assert [*(found.prefix_ids or []), *ids, tokenizer.eos_token_id] == tokenizer(f">>{code}<<{TEXT}").input_ids
        assert found.suffix_ids is None


def test_lets_the_text_name_the_target_of_an_opus_model(tmp_path: Path) -> None:
    model = train("unigram")
    languages = read(write_marian(tmp_path, model, model, [">>fra<<", ">>ron<<"], source_lang="en", target_lang="roa"))
    assert languages is not None
    assert direction(languages, None, None, [">>fra<< A mill."]).prefix_ids is None


@pytest.mark.parametrize(
    ("settings", "sources", "targets"),
    [
        ({"source_lang": "en", "target_lang": "pt"}, ["en"], ["pt"]),
        ({"source_lang": "eng", "target_lang": "mul"}, ["eng"], []),
        ({"source_lang": "roa", "target_lang": "eng"}, [], ["eng"]),
    ],
)
def test_knows_the_languages_of_an_opus_model_for_one_direction(
    settings: dict[str, str], sources: list[str], targets: list[str], tmp_path: Path
) -> None:
    model = train("unigram")
    languages = read(write_marian(tmp_path, model, model, [], **settings))
    assert languages is not None
    assert [language.code for language in languages.languages if language.is_source] == sources
    assert [language.code for language in languages.languages if language.is_target] == targets
    found = direction(languages, *(codes[0] if codes else None for codes in (sources, targets)))
    assert (found.prefix_ids, found.suffix_ids, found.forced_bos_id) == (None, None, None)


def test_reads_the_directions_of_t5_from_its_config(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "t5", "task_specific_params": T5_TASKS})
    ByT5Tokenizer().save_pretrained(tmp_path)
    languages = read(tmp_path)
    assert languages is not None
    assert direction(languages, None, "fr").prefix == "translate English to French: "
    assert direction(languages, "eng", "deu").prefix == "translate English to German: "
    assert [language.name for language in languages.languages] == ["English", "German", "French"]
    assert [pair.options for pair in languages.pairs] == [{"max_length": 300}] * 2


def test_reads_what_t5_is_told_before_a_text_to_summarise() -> None:
    assert summary_prefix({"task_specific_params": T5_TASKS}) == "summarize: "


def test_reads_the_prefix_of_a_model_without_languages() -> None:
    assert translation_prefix({"task_specific_params": {"translation": {"prefix": "spell: "}}}) == "spell: "
    assert translation_prefix({"task_specific_params": T5_TASKS}) == ""


@pytest.mark.parametrize(
    ("tasks", "names_languages", "expected"),
    [
        (None, False, ["translation", "summarization"]),
        (None, True, ["translation"]),
        (T5_TASKS, True, ["translation", "summarization"]),
        ({"summarization": {"num_beams": 4}}, False, ["summarization"]),
        ({"summarization_xsum": {}}, False, ["summarization"]),
        ({"translation": {"prefix": "spell: "}}, False, ["translation"]),
        ([], False, ["translation", "summarization"]),
    ],
)
def test_reads_from_the_config_whether_a_model_translates_or_summarises(
    tasks: Any, names_languages: bool, expected: list[str]
) -> None:
    languages = Languages(languages=[]) if names_languages else None
    assert rewriting_tasks({"task_specific_params": tasks}, languages) == expected


def test_reads_the_options_of_t5_for_summaries() -> None:
    options = {"num_beams": 4, "early_stopping": True, "no_repeat_ngram_size": -1, "prefix": "summarize: ", "x": {}}
    found = summary_options({"task_specific_params": {"summarization": options}})
    assert found == {"num_beams": 4, "early_stopping": True, "no_repeat_ngram_size": None, "x": None}


def test_reads_the_options_for_translations_of_any_languages() -> None:
    options = {"prefix": "spell: ", "num_beams": 4, "no_repeat_ngram_size": -1}
    found = translation_options({"task_specific_params": {"translation": options}})
    assert found == {"num_beams": 4, "no_repeat_ngram_size": None}
    assert translation_options({"task_specific_params": T5_TASKS}) == {}


@pytest.mark.parametrize("tasks", [None, [], {"summarization": None}, {"summarization": {"prefix": 3}}, {}])
def test_tells_a_model_nothing_before_a_text_where_its_config_does_not(tasks: Any) -> None:
    assert summary_prefix({"task_specific_params": tasks}) == ""
    assert summary_options({"task_specific_params": tasks}) == {}


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
def test_finds_no_languages_where_the_folder_names_none(model_type: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": model_type})
    assert read_languages(tmp_path, {"model_type": model_type}, ByT5Tokenizer()) is None


def test_a_loaded_model_brings_its_languages(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"vocab_size": 300, "pad_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 0}
    MarianMTModel(MarianConfig(**sizes, **heads, **ids)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model = train("unigram")
    write_marian(tmp_path, model, model, [">>fra<<", ">>ron<<"], source_lang="en", target_lang="roa")
    write_json(tmp_path / "config.json", config)
    loaded_model = load(ModelConfig(name="tiny", path=str(tmp_path)))
    assert loaded_model.languages == read(tmp_path)
    assert direction(loaded_model.languages, "en", "fr").target is not None
