"""What the languages of a request mean: tokens around its text, and the first tokens of the output."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import ConflictingParameters, InvalidParameter, InvalidRequest, UnsupportedParameter
from server.languages import Language, Languages
from server.pieces import end_of_tag
from server.sentences import Field, sentence

REGION = re.compile(r"(?!zh|zho|cmn)([a-z]{2,3})-(?:[a-z]{2}|[0-9]{3})")
"""A language and a region in a plain code. Regions of Chinese name its script."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """The languages of one request, as the model reads them."""

    source: Language | None
    target: Language | None
    prefix: str = ""
    """Text before the source's text."""
    prefix_ids: list[int] | None = None
    """All special tokens before the text; None: those of the tokenizer."""
    suffix_ids: list[int] | None = None
    """All special tokens behind the text; None: those of the tokenizer."""
    forced_bos_id: int | None = None
    decoder_start_id: int | None = None
    is_target_in_text: bool = False
    """Whether each text begins with the tag of its target, such as ``>>fra<<``."""


def direction(
    languages: Languages | None,
    src_lang: str | None,
    tgt_lang: str | None,
    texts: Sequence[str] = (),
    *,
    prefix: str = "",
) -> Direction:
    """Of a request with these fields and texts. Raises `InvalidRequest` for a language that the model does not have.

    ``prefix`` stands before every text of a model without languages.
    """
    if languages is None:
        for name, code in (("src_lang", src_lang), ("tgt_lang", tgt_lang)):
            if code is not None:
                raise UnsupportedParameter(name, "this model has no languages to choose from")
        return Direction(source=None, target=None, prefix=prefix)
    source = _source(languages, src_lang)
    is_target_in_text = _is_target_in_text(languages, tgt_lang, texts)
    target = None if is_target_in_text else _target(languages, tgt_lang)
    return Direction(
        source=source,
        target=target,
        prefix=_prefix(languages, source, target),
        prefix_ids=_prefix_ids(source, target),
        suffix_ids=source.source_suffix_ids if source else None,
        forced_bos_id=target.forced_bos_id if target else None,
        decoder_start_id=target.decoder_start_id if target else None,
        is_target_in_text=is_target_in_text,
    )


def find(languages: Iterable[Language], code: str) -> Language | None:
    """The language of that code: the model's own first, in any case and with hyphens or underscores.

    A code with a region that no language of the model has means the language without it: ``en-US`` is ``en``.
    """
    known = list(languages)
    exact = next((language for language in known if language.code == code), None)
    if exact:
        return exact
    plain = plain_code(code)
    found = _plainly(known, plain)
    region = REGION.fullmatch(plain)
    return _plainly(known, region[1]) if found is None and region else found


def _plainly(known: Sequence[Language], plain: str) -> Language | None:
    same = (language for language in known if plain_code(language.code) == plain)
    return next(same, None) or next((language for language in known if plain in language.short_codes), None)


def describe_languages(languages: Languages) -> dict[str, Any]:
    """What clients can choose from."""
    shown = ("code", "name", "short_codes", "is_source", "is_target")
    pairs = [{"source": pair.source, "target": pair.target} for pair in languages.pairs]
    return {
        **({"language_pairs": pairs} if pairs else {}),
        "languages": [{name: getattr(language, name) for name in shown} for language in languages.languages],
        "default_src_lang": languages.default_source,
        "default_tgt_lang": languages.default_target,
    }


def plain_code(code: str) -> str:
    """
    >>> plain_code("zh_Hans")
    'zh-hans'
    """
    return code.replace("_", "-").lower()


def _source(languages: Languages, code: str | None) -> Language | None:
    sources = [language for language in languages.languages if language.is_source]
    if code is not None and not sources:
        reason = 'this model needs no source language; leave it out, or send "auto" with q'
        raise UnsupportedParameter("src_lang", reason)
    return _chosen("src_lang", sources, languages.default_source if code is None else code)


def _is_target_in_text(languages: Languages, code: str | None, texts: Sequence[str]) -> bool:
    """Whether the texts name the target, by a tag that the model knows."""
    if not languages.is_target_in_text:
        return False
    tags = {f">>{language.code}<<" for language in languages.languages if language.target_prefix_ids}
    found = [text[: end_of_tag(text)] for text in texts if text[: end_of_tag(text)] in tags]
    if found and code is not None:
        reason = f"a text begins with {found[0]}, which names a target too; send one of them"
        raise ConflictingParameters("tgt_lang", "inputs", reason)
    if found and len(found) < len(texts):
        rule = f"must all begin with the tag of a target language such as {found[0]}, or all without one"
        raise InvalidParameter("inputs", texts, rule)
    return bool(found)


def _target(languages: Languages, code: str | None) -> Language | None:
    targets = [language for language in languages.languages if language.is_target]
    if code is None:
        code = languages.default_target
    if code is not None and not targets:
        raise UnsupportedParameter("tgt_lang", "this model has no target language to choose")
    return _chosen("tgt_lang", targets, code)


def _chosen(name: str, known: list[Language], code: str | None) -> Language | None:
    if not known:
        return None
    if code is None:
        words = sentence("{name} is required: one of {codes}.", name=Field(name), codes=known_codes(known))
        raise InvalidRequest(words, param=name)
    language = find(known, code)
    if language is None:
        raise InvalidParameter(name, code, f"must be one of {known_codes(known, code)}")
    return language


def known_codes(known: Iterable[Language], near: str = "") -> str:
    """All of them, the most similar first."""
    codes = list(dict.fromkeys(language.code for language in known))
    first = difflib.get_close_matches(near[:64], codes, n=5)
    return ", ".join([*first, *(code for code in codes if code not in first)])


def _prefix(languages: Languages, source: Language | None, target: Language | None) -> str:
    if not languages.pairs or source is None or target is None:
        return ""
    for pair in languages.pairs:
        if (pair.source, pair.target) == (source.code, target.code):
            return pair.prefix
    known = ", ".join(f"{pair.source} to {pair.target}" for pair in languages.pairs)
    raise ConflictingParameters("src_lang", "tgt_lang", f"this model translates {known}")


def _prefix_ids(source: Language | None, target: Language | None) -> list[int] | None:
    of_source = source.source_prefix_ids if source else None
    of_target = target.target_prefix_ids if target else []
    return [*of_target, *(of_source or [])] if of_source is not None or of_target else None
