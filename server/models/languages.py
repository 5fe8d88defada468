"""The languages of a model that translates, read from its folder and its tokenizer. No text is tokenised here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.languages import Language, Languages, Pair
from server.models.describe import NONE_BELOW_ZERO, read_json
from server.models.language_names import named
from server.models.language_table import KEYS
from server.protocol import GenerationValue

ANSWERING = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""``model_type`` of models that were trained on questions in words, as those of SQuAD."""
PREFIXES = re.compile(r"translation_([a-z]{2,3})_to_([a-z]{2,3})")
"""Names of ``task_specific_params`` that translate."""

REWRITING_TASKS = ("translation", "summarization")


@dataclass(frozen=True)
class Family:
    """How the tokens of one kind of models name languages."""

    token: re.Pattern[str]
    """A token that is a language; its group is the code."""
    make: Callable[[str, int, int], Language]
    """From code, token id and id of the end token, to a language without names."""


def _tagged_first(code: str, token: int, end: int) -> Language:
    """``[language] text </s>``."""
    return Language(code=code, name="", source_prefix_ids=[token], source_suffix_ids=[end], forced_bos_id=token)


def _tagged_last(code: str, token: int, end: int) -> Language:
    """``text </s> [language]``; an output begins as NLLB's do."""
    return Language(code=code, name="", source_prefix_ids=[], source_suffix_ids=[end, token], forced_bos_id=token)


def _tagged_start(code: str, token: int, end: int) -> Language:
    """``text </s> [language]``; the decoder starts with the language itself."""
    return Language(code=code, name="", source_prefix_ids=[], source_suffix_ids=[end, token], decoder_start_id=token)


def _tagged_target(code: str, token: int, _end: int) -> Language:
    """``[target] text </s>``."""
    return Language(code=code, name="", is_source=False, target_prefix_ids=[token])


NLLB = Family(re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"), _tagged_first)
LEGACY_NLLB = Family(NLLB.token, _tagged_last)
MBART = Family(re.compile(r"([a-z]{2}_[A-Z]{2})"), _tagged_start)
MBART50 = Family(MBART.token, _tagged_first)
M2M100 = Family(re.compile(r"__([a-z]{2,3})__"), _tagged_first)
PLBART = Family(re.compile(r"__([a-z]{2,}(?:_[A-Z]{2})?)__"), _tagged_start)
OPUS = Family(re.compile(r">>(.+)<<"), _tagged_target)
BY_CLASS = {"Nllb": NLLB, "MBart": MBART, "MBart50": MBART50, "M2M100": M2M100, "PLBart": PLBART, "Marian": OPUS}
"""Name of a tokenizer's class, without ``Tokenizer``."""
BY_TYPE = {"mbart": MBART, "m2m_100": M2M100, "nllb-moe": NLLB, "plbart": PLBART, "marian": OPUS}
"""``model_type`` of a folder that does not name its tokenizer's class."""


def has_language_tokens(folder: Path) -> bool:
    """Whether models of this kind have tokens for their languages; others are asked in words."""
    return _family(read_json(folder, "config.json"), _optional_json(folder, "tokenizer_config.json")) is not None


def read_languages(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> Languages | None:
    """Of the loaded ``tokenizer``, which lies in ``folder``; None: nothing names languages."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    settings = _optional_json(folder, "tokenizer_config.json")
    family = _family(config, settings)
    if family is None:
        return _in_words(config)
    found = [(match[1], token) for token in vocabulary if (match := family.token.fullmatch(token))]
    found.sort(key=lambda entry: vocabulary[entry[1]])
    languages = [family.make(code, vocabulary[token], tokenizer.eos_token_id) for code, token in found]
    if family is OPUS:
        languages = [*_one_way(settings, has_targets=bool(languages)), *languages]
    if not languages:
        return None
    generation = _optional_json(folder, "generation_config.json") or config
    return Languages(
        languages=named(languages),
        default_source=_default_source(languages, settings),
        default_target=_default_target(languages, settings, generation),
        is_target_in_text=family is OPUS and bool(found),
    )


def summary_prefix(config: Mapping[str, Any]) -> str:
    """Words that T5's kind reads before a text that it shall summarise; none for other models."""
    return _prefix_of(config, "summarization")


def translation_prefix(config: Mapping[str, Any]) -> str:
    """Words that a model without languages reads before every text that it rewrites; often none."""
    return _prefix_of(config, "translation")


def rewriting_tasks(config: Mapping[str, Any], languages: Languages | None) -> list[str]:
    """Which of ``translation`` and ``summarization`` the model does. A folder that names neither may do both."""
    params = config.get("task_specific_params")
    named_tasks = {name.partition("_")[0] for name in params} if isinstance(params, dict) else set()
    if languages is not None:
        named_tasks.add("translation")
    return [task for task in REWRITING_TASKS if task in named_tasks] or list(REWRITING_TASKS)


def can_answer(config: Mapping[str, Any]) -> bool:
    """Whether models of this kind answer questions about texts, asked in words."""
    return config.get("model_type") in ANSWERING


def translation_options(config: Mapping[str, Any]) -> dict[str, GenerationValue]:
    """Defaults for translations into any language, as those for summaries. Pairs of T5's kind have their own."""
    return _without_prefix(_task_options(config, "translation"))


def summary_options(config: Mapping[str, Any]) -> dict[str, GenerationValue]:
    """Defaults for summaries, under transformers' names; None where a value sets nothing. They are not checked."""
    return _without_prefix(_task_options(config, "summarization"))


def _without_prefix(options: Mapping[str, Any]) -> dict[str, GenerationValue]:
    found: dict[str, GenerationValue] = {}
    for name, value in options.items():
        if name != "prefix":
            is_none = isinstance(value, dict) or (name in NONE_BELOW_ZERO and value == -1)
            found[name] = None if is_none else value
    return found


def _prefix_of(config: Mapping[str, Any], task: str) -> str:
    prefix = _task_options(config, task).get("prefix")
    return prefix if isinstance(prefix, str) else ""


def _task_options(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    tasks = config.get("task_specific_params")
    options = tasks.get(task) if isinstance(tasks, dict) else None
    return options if isinstance(options, dict) else {}


def _optional_json(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder, name) if (folder / name).is_file() else {}
    return content


def _family(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Family | None:
    kind = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "")
    family = BY_CLASS.get(kind.removesuffix("Fast").removesuffix("Tokenizer"))
    family = family or BY_TYPE.get(str(config.get("model_type")))
    return LEGACY_NLLB if family is NLLB and settings.get("legacy_behaviour") else family


def _in_words(config: Mapping[str, Any]) -> Languages | None:
    """Of T5's kind, where words before the text name the task."""
    tasks = config.get("task_specific_params")
    pairs = list(_pairs(tasks)) if isinstance(tasks, dict) else []
    if not pairs:
        return None
    sources, targets = {pair.source for pair in pairs}, {pair.target for pair in pairs}
    codes = dict.fromkeys(code for pair in pairs for code in (pair.source, pair.target))
    languages = [Language(code=code, name="", is_source=code in sources, is_target=code in targets) for code in codes]
    return Languages(
        languages=named(languages), pairs=pairs, default_source=_only(sources), default_target=_only(targets)
    )


def _pairs(tasks: dict[str, Any]) -> Iterator[Pair]:
    for task, options in tasks.items():
        match = PREFIXES.fullmatch(task)
        if match and isinstance(options, dict) and isinstance(options.get("prefix"), str):
            own = _without_prefix(options)
            yield Pair(source=match[1], target=match[2], prefix=options["prefix"], options=own)


def _one_way(settings: Mapping[str, Any], *, has_targets: bool) -> Iterator[Language]:
    """The languages of a model for one direction, which no token names. ``mul`` and groups of languages are not any."""
    for name, is_source in (("source_lang", True), ("target_lang", False)):
        code = settings.get(name)
        if isinstance(code, str) and code in KEYS and (is_source or not has_targets):
            yield Language(code=code, name="", is_source=is_source, is_target=not is_source)


def _default_source(languages: list[Language], settings: Mapping[str, Any]) -> str | None:
    """What the folder sets, else the only one."""
    codes = [language.code for language in languages if language.is_source]
    return settings["src_lang"] if settings.get("src_lang") in codes else _only(codes)


def _default_target(languages: list[Language], settings: Mapping[str, Any], generation: Any) -> str | None:
    """What the folder sets for its generations or its tokenizer, else the only one."""
    targets = [language for language in languages if language.is_target]
    forced, start = generation.get("forced_bos_token_id"), generation.get("decoder_start_token_id")
    for language in targets:
        if forced is not None and forced == language.forced_bos_id:
            return language.code
        if start is not None and start == language.decoder_start_id:
            return language.code
    codes = [language.code for language in targets]
    return settings["tgt_lang"] if settings.get("tgt_lang") in codes else _only(codes)


def _only(codes: Collection[str]) -> str | None:
    return next(iter(codes)) if len(codes) == 1 else None
