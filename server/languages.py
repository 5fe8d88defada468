"""The languages of a model that translates, as a worker reads them from the folder and the front uses them."""

from __future__ import annotations

from typing import Any

import msgspec


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """One language, and the tokens that name it to the model."""

    code: str
    """As the model has it: ``fra_Latn``."""
    name: str
    """In English."""
    short_codes: list[str] = []
    """Codes that mean this language and no other of the model, in lower case with hyphens."""
    is_source: bool = True
    is_target: bool = True
    source_prefix_ids: list[int] | None = None
    """Special tokens before a text in this language; None: those of the tokenizer."""
    source_suffix_ids: list[int] | None = None
    """Special tokens behind a text in this language; None: those of the tokenizer."""
    target_prefix_ids: list[int] = []
    """Tokens before a text that is translated into this language."""
    forced_bos_id: int | None = None
    """The first new token of a translation into this language."""
    decoder_start_id: int | None = None
    """The decoder's first token for this language, where it is not the same for all."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A direction that the model is asked for in words."""

    source: str
    target: str
    prefix: str
    """Text before the source's text."""
    options: dict[str, Any] = {}
    """The model's defaults for this direction, under transformers' names. They are not checked."""


class Languages(msgspec.Struct, frozen=True, kw_only=True):
    """All languages of one model, in the model's order."""

    languages: list[Language]
    pairs: list[Pair] = []
    """The only directions; empty: every source into every target."""
    default_source: str | None = None
    """The code that holds where a request has none."""
    default_target: str | None = None
    is_target_in_text: bool = False
    """Whether a text may name the target itself, by a token such as ``>>fra<<`` at its start."""
