"""Graded penalties on phrases, by the tokens' bytes."""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from server.engine.batch_inputs import IntArray
from server.engine.phrase_index import PhraseTokens, WeightedPhrases, greatest, in_words, vocabulary_index
from server.engine.processors.base import FloatArray, LogitsProcessor, Start, add
from server.phrases import PhraseTrie, fold
from server.vocabulary import Vocabulary

MAX_KEPT_PLACES = 4096


class Place(NamedTuple):
    """What of a text decides which tokens begin a phrase or go on with one."""

    states: tuple[int, ...] = ()
    """Of the beginnings of phrases that the text ends with."""
    pending: bytes = b""
    """The bytes of an unfinished character after them."""
    after_word: bool = False
    """Whether the text ends with a character of a word."""

    def after(self, data: bytes, phrases: WeightedPhrases) -> Place:
        """The place after a token's bytes."""
        data = self.pending + data
        text, num_decoded = codecs.utf_8_decode(data, "replace", False)
        states, after_word = self.states, self.after_word
        for character in text:
            is_inside = after_word and in_words(character)
            after_word = in_words(character)
            if fold(character):
                begun = states if is_inside else (*states, PhraseTrie.ROOT)
                found = (phrases.follow(state, character) for state in begun)
                states = tuple(state for state in found if state is not None and phrases.children[state])
        return Place(states, data[num_decoded:], after_word)


class PenaltyTable:
    """What is taken from which logits, for one vocabulary and set of phrases; made place by place, and kept.

    Tokens that begin a phrase may be many, where the phrases are, and are the same at most places: they are a row as
    wide as the vocabulary. What tokens take besides that go on with a phrase is a few pairs.
    """

    def __init__(self, tokens: PhraseTokens, vocabulary: Vocabulary) -> None:
        self.phrases = tokens.phrases
        self.token_bytes = vocabulary.token_bytes
        self._tokens = tokens
        self._beginnings: dict[tuple[bool, torch.device], Tensor] = {}
        self._more: dict[Place, tuple[IntArray, FloatArray]] = {}

    def beginnings(self, place: Place, device: torch.device) -> Tensor:
        """To be taken from every token, for beginning a phrase; 0 for most."""
        # An unfinished character that the next token does not go on with parts words as any other sign does.
        after_word = place.after_word and not place.pending
        if (after_word, device) not in self._beginnings:
            amounts = self._tokens.beginnings(after_word=after_word)
            amounts_V = torch.zeros(self._tokens.num_tokens)
            amounts_V[list(amounts)] = torch.tensor(list(amounts.values()))
            self._beginnings[after_word, device] = amounts_V.to(device)
        return self._beginnings[after_word, device]

    def more(self, place: Place) -> tuple[IntArray, FloatArray]:
        """Tokens that go on with a phrase, and what each takes beyond what it takes for beginning one."""
        if place not in self._more:
            if len(self._more) >= MAX_KEPT_PLACES:
                self._more.clear()
            self._more[place] = self._beyond(place, self.beginnings(place, torch.device("cpu")))
        return self._more[place]

    def _beyond(self, place: Place, beginnings_V: Tensor) -> tuple[IntArray, FloatArray]:
        found: dict[int, float] = {}
        if place.pending:
            found = self._tokens.continuations(PhraseTrie.ROOT, place.pending, after_word=place.after_word)
        for state in place.states:
            found = greatest(found, self._tokens.continuations(state, place.pending))
        ids = np.array(list(found), dtype=np.int64)
        amounts = np.array(list(found.values()), dtype=np.float64) - beginnings_V.numpy()[ids]
        return ids[amounts > 0], amounts[amounts > 0]


class PhrasePenalties(LogitsProcessor):
    """Make phrases rarer, each by its own strength, in any case and however they are made of tokens.

    A token's logit is lowered by the strength times the part of the phrase that the text would end with after it.
    So the token that completes a phrase always loses the whole strength, whether it is the first or the tenth: the
    odds against every other token fall by ``exp(strength)``. Those before it lose their share, by characters (and by
    bytes within one): the less a beginning says, the less it costs, such as the first byte of a Chinese character.
    A text may have begun several phrases, and a token may serve several: the greatest amount counts, so that a long
    list of words weighs no more than its entries.

    In scripts with upper and lower case a word counts only as a whole: ``war`` does not lower ``software`` or
    ``warm``. Elsewhere a phrase may stand anywhere. Only the output counts, not the prompt.
    """

    def __init__(self, table: PenaltyTable, strength: float) -> None:
        """``strength``: what the table's amounts are parts of."""
        self.table = table
        self.strength = strength
        self.place = Place()

    @classmethod
    def for_sequence(cls, start: Start) -> Self | None:
        penalties = tuple(penalty for penalty in start.params.phrase_penalties if penalty[1])
        if not penalties:
            return None
        assert start.vocabulary is not None
        # Most requests penalise a list by one strength or another: they share a table.
        strongest = max(strength for _, strength in penalties)
        relative = tuple((phrase, strength / strongest) for phrase, strength in penalties)
        processor = cls(penalty_table(start.vocabulary, relative), strongest)
        for token_id in start.output_ids.tolist():
            processor.accept(token_id)
        return processor

    def accept(self, token_id: int) -> None:
        self.place = self.place.after(self.table.token_bytes(token_id), self.table.phrases)

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Self]) -> None:
        for row, processor in zip(rows, processors, strict=True):
            amounts_V = processor.table.beginnings(processor.place, logits_SV.device)
            logits_SV[row].sub_(amounts_V, alpha=processor.strength)
        more = [processor.table.more(processor.place) for processor in processors]
        amounts = [-p.strength * amounts for p, (_, amounts) in zip(processors, more, strict=True)]
        add(logits_SV, rows, [ids for ids, _ in more], amounts)


@lru_cache(maxsize=8)
def penalty_table(vocabulary: Vocabulary, penalties: tuple[tuple[str, float], ...]) -> PenaltyTable:
    """Shared by all sequences with the same penalties. A large one takes some ten megabytes: few are kept."""
    return PenaltyTable(PhraseTokens(vocabulary_index(vocabulary), WeightedPhrases(penalties)), vocabulary)
