"""The codes by which a model's languages can be asked for."""

from __future__ import annotations

import re

import pytest
from transformers.models.nllb import tokenization_nllb

from server.languages import Language
from server.models.language_names import named
from server.models.language_table import CODES, KEYS, NAMES


def short_codes(*codes: str) -> dict[str, str]:
    """Short code -> the model's."""
    languages = named([Language(code=code, name="") for code in codes])
    return {short: language.code for language in languages for short in language.short_codes}


@pytest.mark.parametrize(
    ("short", "code"),
    [
        ("fr", "fra_Latn"), ("fra", "fra_Latn"), ("en", "eng_Latn"), ("ar", "arb_Arab"), ("fa", "pes_Arab"),
        ("zh", "zho_Hans"), ("zh-cn", "zho_Hans"), ("zh-tw", "zho_Hant"), ("zt", "zho_Hant"), ("nb", "nob_Latn"),
        ("ks-deva", "kas_Deva"), ("ks", None), ("no", None), ("acm", "acm_Arab"), ("lv", "lvs_Latn"),
    ],
)  # fmt: skip
def test_maps_a_short_code_to_the_only_language_that_it_fits(short: str, code: str | None) -> None:
    assert short_codes(*tokenization_nllb.FAIRSEQ_LANGUAGE_CODES).get(short) == code


def test_has_a_short_code_for_every_language_of_iso_639_1() -> None:
    """Where a model writes three letters and a script."""
    known = short_codes(*tokenization_nllb.FAIRSEQ_LANGUAGE_CODES)
    two_letters = {KEYS[code[:3]] for code in tokenization_nllb.FAIRSEQ_LANGUAGE_CODES if code[:3] in KEYS}
    missing = {key for key in two_letters if len(key) == 2 and key not in known}
    assert missing == {"ks", "kr"}


def test_prefers_the_code_without_a_region() -> None:
    known = short_codes("pt", "pt_br")
    assert known["por"] == "pt" and known["por-br"] == "pt_br"


def test_never_shadows_a_code_of_the_model_itself() -> None:
    assert "fr" not in short_codes("fr", "fra", "fr_CA")


def test_names_scripts_and_regions_only_where_a_language_has_several() -> None:
    codes = ["zho_Hans", "zho_Hant", "fra_Latn", "pt", "pt_BR", "xyz_Latn"]
    names = [language.name for language in named([Language(code=code, name="") for code in codes])]
    assert names == [
        "Chinese (Simplified)", "Chinese (Traditional)", "French", "Portuguese", "Portuguese (BR)", "xyz_Latn"
    ]  # fmt: skip


def test_the_table_has_each_code_once() -> None:
    codes = [code for listed in CODES.values() for code in listed]
    assert len(codes) == len(set(codes)) == len(KEYS)
    assert all(re.fullmatch("[a-z]{2,3}", code) for code in codes)
    assert all(NAMES.values())
