"""What the languages of a request mean to a model."""

from __future__ import annotations

import msgspec
import pytest

from server.errors import ConflictingParameters, InvalidParameter, InvalidRequest, UnsupportedParameter
from server.languages import Language, Languages, Pair
from server.text.languages import direction, find


def tagged(code: str, token: int, short: str) -> Language:
    return Language(
        code=code, name=code, short_codes=[short], source_prefix_ids=[token], source_suffix_ids=[2], forced_bos_id=token
    )


NLLB = Languages(languages=[tagged("eng_Latn", 10, "en"), tagged("fra_Latn", 11, "fr"), tagged("zho_Hans", 12, "zh")])
OPUS = Languages(
    languages=[
        Language(code="en", name="English", is_target=False),
        Language(code="fra", name="French", is_source=False, target_prefix_ids=[7]),
        Language(code="ron", name="Romanian", is_source=False, target_prefix_ids=[8]),
    ],
    default_source="en",
    is_target_in_text=True,
)
T5 = Languages(
    languages=[Language(code=code, name=code) for code in ("en", "de", "fr")],
    pairs=[Pair(source="en", target="de", prefix="to German: "), Pair(source="de", target="fr", prefix="to French: ")],
)


@pytest.mark.parametrize("code", ["fra_Latn", "fra-latn", "FRA_LATN", "fr", "FR"])
def test_finds_a_language_by_any_of_its_codes(code: str) -> None:
    found = direction(NLLB, "en", code)
    assert (found.prefix_ids, found.suffix_ids, found.forced_bos_id) == ([10], [2], 11)


@pytest.mark.parametrize(
    ("code", "found"),
    [("en-US", "eng_Latn"), ("en_GB", "eng_Latn"), ("fr-419", "fra_Latn"), ("en-Cyrl", None), ("zh-TW", None)],
)
def test_a_region_that_the_model_does_not_know_is_left_out_and_a_script_is_not(code: str, found: str | None) -> None:
    language = find(NLLB.languages, code)
    assert (language and language.code) == found


def test_takes_the_defaults_of_the_model() -> None:
    found = direction(msgspec.structs.replace(NLLB, default_source="zho_Hans", default_target="eng_Latn"), None, None)
    assert (found.prefix_ids, found.forced_bos_id) == ([12], 10)


@pytest.mark.parametrize(("source", "target", "name"), [("xx", "fr", "src_lang"), ("en", "frr", "tgt_lang")])
def test_refuses_an_unknown_language_and_lists_the_known_ones(source: str, target: str, name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        direction(NLLB, source, target)
    assert caught.value.param == name
    assert all(code in str(caught.value) for code in ("eng_Latn", "fra_Latn", "zho_Hans"))


@pytest.mark.parametrize("code", ["", "x" * 1_000_000, "\ud800"])
def test_refuses_an_odd_code_briefly(code: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        direction(NLLB, code, "fr")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("source", "target", "name"), [(None, "fr", "src_lang"), ("en", None, "tgt_lang")])
def test_requires_a_language_without_a_default(source: str | None, target: str | None, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        direction(NLLB, source, target)
    assert str(caught.value) == f"{name} is required: one of eng_Latn, fra_Latn, zho_Hans."


@pytest.mark.parametrize(("source", "target"), [("en", None), (None, "fr")])
def test_refuses_languages_for_a_model_without_any(source: str | None, target: str | None) -> None:
    with pytest.raises(UnsupportedParameter):
        direction(None, source, target)
    assert direction(None, None, None).target is None


def test_refuses_a_source_for_a_model_that_needs_none() -> None:
    with pytest.raises(UnsupportedParameter):
        direction(msgspec.structs.replace(OPUS, languages=OPUS.languages[1:], default_source=None), "en", "fra")


def test_refuses_a_target_for_a_model_that_names_none() -> None:
    with pytest.raises(UnsupportedParameter):
        direction(msgspec.structs.replace(OPUS, languages=OPUS.languages[:1], is_target_in_text=False), "en", "fra")


def test_tells_an_opus_model_its_target_in_the_source() -> None:
    assert direction(OPUS, None, "fra").prefix_ids == [7]
    tagged_text = direction(OPUS, "en", None, [">>fra<< a"])
    assert tagged_text.prefix_ids is None and tagged_text.is_target_in_text


@pytest.mark.parametrize("text", ["hello", ">>xyz<< hello", "hello >>fra<<"])
def test_requires_a_target_that_no_known_tag_names(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        direction(OPUS, None, None, [text])
    assert str(caught.value) == "tgt_lang is required: one of fra, ron."


def test_refuses_a_target_beside_a_text_that_names_one() -> None:
    with pytest.raises(ConflictingParameters) as caught:
        direction(OPUS, None, "ron", ["a", ">>fra<< b"])
    assert caught.value.fields == ("tgt_lang", "inputs") and ">>fra<<" in str(caught.value)


def test_the_tag_of_a_text_overrides_the_default_target() -> None:
    found = direction(msgspec.structs.replace(OPUS, default_target="ron"), None, None, [">>fra<< b"])
    assert found.target is None and found.is_target_in_text


def test_refuses_texts_of_which_some_name_a_target() -> None:
    with pytest.raises(InvalidParameter) as caught:
        direction(OPUS, None, None, ["a", ">>fra<< b"])
    assert caught.value.param == "inputs"


def test_refuses_a_target_as_a_source() -> None:
    with pytest.raises(InvalidParameter) as caught:
        direction(OPUS, "fra", "ron")
    assert "must be one of en" in str(caught.value)


def test_tells_t5_its_direction_in_words() -> None:
    assert direction(T5, "en", "de").prefix == "to German: "


def test_refuses_a_pair_of_languages_that_the_model_lacks() -> None:
    with pytest.raises(ConflictingParameters) as caught:
        direction(T5, "en", "fr")
    assert "en to de, de to fr" in str(caught.value)


def test_languages_travel_in_a_message() -> None:
    for languages in (NLLB, OPUS, T5):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(languages), type=Languages) == languages
