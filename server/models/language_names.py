"""Names of a model's languages, and the other codes that each can be asked for by."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from server.languages import Language
from server.models.language_table import CODES, KEYS, NAMES, SCRIPTS

REGIONS = {"zh-cn": "hans", "zh-sg": "hans", "zh-tw": "hant", "zh-hk": "hant"}
"""The script that a region tells."""
OF_SCRIPT = {"zh-hans": ["zh-cn"], "zh-hant": ["zh-tw", "zt"]}
"""Other codes that clients have for a language in a script."""
USUAL = ("zh-hans",)
"""Scripts that the bare code of the language means."""


@dataclass(frozen=True)
class _Code:
    """A model's code, taken apart."""

    key: str
    rest: str
    """Script or region, in lower case; often empty."""

    @classmethod
    def read(cls, code: str) -> _Code:
        language, _, rest = code.replace("_", "-").lower().partition("-")
        # mBART writes XX for no region.
        return cls(KEYS.get(language, language), "" if rest == "xx" else rest)

    @property
    def script(self) -> str:
        return self.rest if len(self.rest) == 4 else REGIONS.get(f"{self.key}-{self.rest}", "")


def named(languages: list[Language]) -> list[Language]:
    """With names and short codes. A code that fits two languages of the model is a short code of neither."""
    codes = [_Code.read(language.code) for language in languages]
    own = {language.code.replace("_", "-").lower() for language in languages}
    by_key: dict[str, list[_Code]] = {}
    for code in codes:
        by_key.setdefault(code.key, []).append(code)
    return [_named(language, code, by_key[code.key], own) for language, code in zip(languages, codes, strict=True)]


def _named(language: Language, code: _Code, of_key: list[_Code], own: set[str]) -> Language:
    short_codes = dict.fromkeys([*_bare(code, of_key), *_longer(code, of_key)])
    return msgspec.structs.replace(
        language,
        name=_name(language.code, code, of_key),
        short_codes=[short for short in short_codes if short not in own],
    )


def _bare(code: _Code, of_key: list[_Code]) -> list[str]:
    """Codes without script and region, if they mean this one of the model's codes of the language."""
    plain = [other for other in of_key if not other.rest]
    usual = [other for other in of_key if f"{other.key}-{other.script}" in USUAL]
    return CODES.get(code.key, [code.key]) if (plain or usual or of_key) == [code] else []


def _longer(code: _Code, of_key: list[_Code]) -> list[str]:
    """Codes with script or region."""
    rests = [code.rest] if code.rest else []
    extra = []
    if code.script and [other.script for other in of_key].count(code.script) == 1:
        rests.append(code.script)
        extra = OF_SCRIPT.get(f"{code.key}-{code.script}", [])
    return [f"{short}-{rest}" for rest in rests for short in CODES.get(code.key, [code.key])] + extra


def _name(written: str, code: _Code, of_key: list[_Code]) -> str:
    """The language in English; with script or region where the model has it in several."""
    name = NAMES.get(code.key, written)
    if len(of_key) == 1 or not code.rest or code.key not in NAMES:
        return name
    return f"{name} ({SCRIPTS.get(code.script.title(), code.rest.upper())})"
