"""Which served model translates from one language into another, and all languages that can be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.errors import InvalidParameter, InvalidRequest
from server.languages import Language, Languages
from server.serving.generator import ServedGenerator
from server.text.languages import Direction, direction, find, known_codes


def choose(
    models: Sequence[ServedGenerator], source: str | None, target: str | None, texts: Sequence[str]
) -> tuple[ServedGenerator, Direction]:
    """The first model that translates these languages. ``texts`` may name their target themselves.

    If there is none, raises for a language that no model has, or what the first model with the source says, or else the
    first with languages, or the first.
    """
    refusals: list[tuple[int, InvalidRequest]] = []
    for served in models:
        try:
            ready = served.ready
            return served, direction(ready.languages, source, target, texts, prefix=ready.translation_prefix)
        except InvalidRequest as error:
            rank = 2 if served.ready.languages is None else int(error.param == "src_lang")
            refusals.append((rank, error))
    _check_known(models, source, target)
    raise min(refusals, key=lambda refusal: refusal[0])[1]


def _check_known(models: Sequence[ServedGenerator], source: str | None, target: str | None) -> None:
    """Raise for a language that none of several models has, and list those of all."""
    each = [served.ready.languages.languages for served in models if served.ready.languages]
    sources = [language for languages in each for language in languages if language.is_source]
    if len(each) > 1 and sources and source is not None and find(sources, source) is None:
        raise InvalidParameter("src_lang", source, f"must be one of {known_codes(sources, source)}")
    readers = [
        languages
        for languages in each
        if source is None or find((language for language in languages if language.is_source), source)
    ]
    targets = [language for languages in readers for language in languages if language.is_target]
    if len(readers) > 1 and target is not None and find(targets, target) is None:
        raise InvalidParameter("tgt_lang", target, f"must be one of {known_codes(targets, target)}")


ANY = Language(code="auto", name="Any language", is_target=False)
"""The source of a model that needs no language of its texts."""


def has_certain_source(languages: Languages | None) -> bool:
    """Whether a text needs no language: the model reads one, or needs none."""
    is_free = languages is None or not any(language.is_source for language in languages.languages)
    return is_free or only_source(languages) is not None


def only_source(languages: Languages | None) -> Language | None:
    """The language of every text that the model reads, where there is but one."""
    sources = [language for language in languages.languages if language.is_source] if languages else []
    return sources[0] if len(sources) == 1 else None


def targets(languages: Languages) -> Iterator[tuple[Language, list[Language]]]:
    """Each language that the model reads, with those that it translates it into; `ANY` where it needs none."""
    if not any(language.is_source for language in languages.languages):
        yield ANY, languages.languages
    by_code = {language.code: language for language in languages.languages}
    for source in languages.languages:
        if languages.pairs:
            found = [by_code[pair.target] for pair in languages.pairs if pair.source == source.code]
        else:
            found = [each for each in languages.languages if each.is_target and each.code != source.code]
        if source.is_source and found:
            yield source, found


def short_code(language: Language) -> str:
    """The code that most clients know."""
    return min([language.code, *language.short_codes], key=len)
