"""The languages and the prefix that a run trains, and how its folder names them to the server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import ConfigurationError, InvalidRequest
from server.finetune.options import Options
from server.languages import Languages
from server.models.describe import read_json
from server.models.languages import has_language_tokens, read_languages
from server.models.tokenizer_files import read_tokenizer
from server.sentences import Reader
from server.text.languages import Direction, direction

ROUTES = {"translate": "translation", "summarize": "summarization"}
"""Values of --route, and transformers' names of their tasks."""
NAMES = {"src_lang": "--src-lang", "tgt_lang": "--tgt-lang", "inputs": "a source"}
"""The server's fields, as messages of the command name them."""


@dataclass(frozen=True)
class TrainedDirection:
    """The direction of every example, and the files' fields that make it the default when served."""

    direction: Direction
    task_params: dict[str, Any] | None = None
    """``task_specific_params`` of the config."""
    tokenizer_fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of tokenizer_config.json."""

    def save_tokenizer(self, base: Path, folder: Path) -> None:
        """Write the base's own tokenizer: the one that the server converts it to has no files."""
        read_tokenizer(base).save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        content = {**read_json(folder, path.name), **self.tokenizer_fields}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def trained_direction(options: Options, tokenizer: Any, sources: Sequence[str]) -> TrainedDirection:
    """Raises `ConfigurationError` for options that do not fit the base or each other."""
    folder = Path(options.model)
    languages = read_languages(folder, read_json(folder, "config.json"), tokenizer)
    if languages is not None and not languages.pairs:
        return _with_languages(options, languages, sources)
    if options.src_lang is None and options.tgt_lang is None:
        prefix = options.prefix or ""
        params = {ROUTES[options.route]: {"prefix": prefix}}
        return TrainedDirection(Direction(source=None, target=None, prefix=prefix), params)
    if has_language_tokens(folder):
        raise ConfigurationError("This base names no languages. Leave out --src-lang and --tgt-lang.")
    return _in_words(options, languages)


def in_flags(error: InvalidRequest) -> ConfigurationError:
    """The same message, with the names of the command line's options."""
    error.reader = Reader(NAMES)
    return ConfigurationError(error.message)


def _with_languages(options: Options, languages: Languages, sources: Sequence[str]) -> TrainedDirection:
    if options.prefix is not None:
        raise ConfigurationError(
            "--prefix is for bases without languages of their own. For this one set --src-lang and --tgt-lang."
        )
    _check_translates(options, "this base")
    try:
        found = direction(languages, options.src_lang, options.tgt_lang, sources)
    except InvalidRequest as error:
        raise in_flags(error) from error
    named = {"src_lang": found.source, "tgt_lang": found.target}
    return TrainedDirection(found, None, {name: each.code for name, each in named.items() if each is not None})


def _in_words(options: Options, languages: Languages | None) -> TrainedDirection:
    """For a base that reads its task as a prefix, such as T5."""
    source, target = options.src_lang, options.tgt_lang
    _check_translates(options, "a model with --src-lang and --tgt-lang")
    for name, code in (("--src-lang", source), ("--tgt-lang", target)):
        if code is None:
            raise ConfigurationError(f"{name} is missing. Set both --src-lang and --tgt-lang, or neither.")
        if not re.fullmatch("[a-z]{2,3}", code):
            raise ConfigurationError(f"{name} is {code!r}: this base takes codes of two or three letters, such as en.")
    pairs = languages.pairs if languages else []
    usual = next((pair.prefix for pair in pairs if (pair.source, pair.target) == (source, target)), "")
    prefix = usual if options.prefix is None else options.prefix
    params = {f"translation_{source}_to_{target}": {"prefix": prefix}}
    return TrainedDirection(Direction(source=None, target=None, prefix=prefix), params)


def _check_translates(options: Options, what: str) -> None:
    if options.route != "translate":
        raise ConfigurationError(f"--route is {options.route}: {what} is served on /translate only.")
