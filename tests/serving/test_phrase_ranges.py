"""Phrases that could never be looked for are refused before a model sees them."""

from __future__ import annotations

import pytest

from server.serving.options.entry_ranges import Penalties
from server.serving.options.ranges import Texts
from server.serving.options.types import Penalty
from tests.api.scripted import ready

NOTHING = ["", " \n", "\u0307", " \u0307\u0307 "]
"""A dot above without its letter is left out of every comparison."""


@pytest.mark.parametrize("text", NOTHING)
def test_a_banned_phrase_has_a_character_to_look_for(text: str) -> None:
    rule = Texts(64, 256, is_stripped=True)
    assert list(rule.findings(("fine", text), ready()))
    assert not list(rule.findings(("fine", " i\u0307 "), ready()))


@pytest.mark.parametrize("text", NOTHING)
def test_a_penalised_phrase_has_a_character_to_look_for(text: str) -> None:
    rule = Penalties(64, 256)
    assert list(rule.findings((Penalty(phrase=text, strength=1.0),), ready()))
    assert not list(rule.findings((Penalty(phrase="i\u0307", strength=1.0),), ready()))
