"""Which tokens begin a phrase or go on with one: a vocabulary's tokens, sorted by their bytes, walked along phrases.

Knows neither logits nor sequences. Built once per vocabulary, and once per vocabulary and set of phrases.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import pairwise

from server.phrases import PhraseTrie, fold, folded, variants
from server.vocabulary import Vocabulary

ASCII_STARTS = re.compile(rb"(?<![0-9A-Za-z])[0-9A-Za-z]|[^0-9A-Za-z\s\x1c-\x1f]")

DOT = "\N{COMBINING DOT ABOVE}"
"""Folds to nothing: it may stand anywhere inside a phrase."""


@lru_cache(maxsize=8192)
def in_words(character: str) -> bool:
    """Whether words are made of such characters and parted by others, as in scripts that have upper and lower case.

    In Chinese or Thai a word may begin and end anywhere.
    """
    return character.isdigit() or character.lower() != character.upper()


def is_apart(before: str, after: str) -> bool:
    """Whether a word may end or begin between two characters."""
    return not (in_words(before) and in_words(after))


class SortedTokens:
    """Pieces of tokens in the order of their bytes."""

    def __init__(self, pieces: list[tuple[bytes, int]]) -> None:
        pieces.sort()
        self.keys = [key for key, _ in pieces]
        self.ids = [token_id for _, token_id in pieces]

    def narrow(self, within: tuple[int, int], prefix: bytes) -> tuple[int, int]:
        """The places, of those ``within``, whose keys begin with ``prefix``. No prefix ends with byte 255."""
        low = bisect_left(self.keys, prefix, *within)
        return low, bisect_left(self.keys, prefix[:-1] + bytes([prefix[-1] + 1]), low, within[1])


class VocabularyIndex:
    """A vocabulary's tokens, whole and from every place inside at which a word begins."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        all_bytes = list(vocabulary.all_bytes())
        self.num_tokens = len(all_bytes)
        tokens = [(data, token_id) for token_id, data in enumerate(all_bytes) if data]
        self.inner = SortedTokens([(data[i:], token_id) for data, token_id in tokens for i in _inner_starts(data)])
        self.whole = SortedTokens(tokens)


def _inner_starts(token: bytes) -> Iterator[int]:
    """Where in a token, but for its first byte, a word may begin."""
    if token.isascii():
        yield from (match.start() for match in ASCII_STARTS.finditer(token, 1))
        return
    position = 0
    # Bytes that are no text become one character each, so that places can be counted.
    for before, after in pairwise(token.decode(errors="surrogateescape")):
        position += _num_bytes(before)
        if not after.isspace() and is_apart(before, after):
            yield position


def _num_bytes(character: str) -> int:
    return len(character.encode(errors="surrogateescape"))


class WeightedPhrases(PhraseTrie):
    """Phrases of which each is worth an amount, and a beginning of one a part of it, by its length.

    A word, in scripts with upper and lower case, counts only as a whole.
    """

    def __init__(self, phrases: tuple[tuple[str, float], ...]) -> None:
        super().__init__()
        paths = [(self.add(folded(phrase.strip())), amount) for phrase, amount in phrases]
        self.amount = [0.0] * len(self.children)
        """For each state, what the phrase is worth that ends with it."""
        self._rate = [0.0] * len(self.children)
        """For each state, the greatest amount per character of the phrases that begin so."""
        for path, amount in paths:
            self.amount[path[-1]] = max(self.amount[path[-1]], amount)
            for state in path:
                self._rate[state] = max(self._rate[state], amount / len(path))

    def follow(self, state: int, character: str) -> int | None:
        """The state after one more character of a text."""
        after: int | None = state
        for unit in fold(character):
            after = self.children[state].get(unit)
            if after is None:
                return None
            state = after
        return after

    def part(self, before: int, after: int, share: float) -> float:
        """The worth of a text that has a share of the character which leads from ``before`` to ``after``."""
        if before == after:
            # Of the phrases that go on: one that ends here was complete before.
            longer = max((self._rate[child] for child in self.children[after].values()), default=0.0)
            return longer * self.depth[after]
        depth = self.depth[before] + (self.depth[after] - self.depth[before]) * share
        return self._rate[after] * depth

    def steps(self, state: int) -> Iterator[tuple[str, int]]:
        """Every character that leads on, and where to."""
        for unit in self.children[state]:
            for character in variants(unit):
                after = self.follow(state, character)
                if after is not None:
                    yield character, after
        if state != self.ROOT:
            yield DOT, state


class PhraseTokens:
    """What each token earns, given how much of the phrases a text ends with."""

    def __init__(self, index: VocabularyIndex, phrases: WeightedPhrases) -> None:
        self.num_tokens = index.num_tokens
        self.phrases = phrases
        self._index = index

    def beginnings(self, *, after_word: bool) -> dict[int, float]:
        """Tokens in which a phrase begins, at their first character or at a later one.

        ``after_word``: the text ends with a character of a word, which a word's first character would only go on.
        """
        return greatest(self._inner, self.continuations(PhraseTrie.ROOT, b"", after_word=after_word))

    def continuations(self, state: int, pending: bytes, *, after_word: bool = False) -> dict[int, float]:
        """Tokens whose first character goes on with a phrase from ``state``; the text has ``pending`` of its bytes."""
        walk = _Walk(self._index.whole, self.phrases)
        walk.go_on_from(state, pending, after_word=after_word)
        return walk.amounts

    @cached_property
    def _inner(self) -> dict[int, float]:
        walk = _Walk(self._index.inner, self.phrases)
        walk.go_on_from(PhraseTrie.ROOT)
        return walk.amounts


class _Walk:
    """Goes through sorted tokens along the phrases, and notes for each the most that it earns."""

    def __init__(self, tokens: SortedTokens, phrases: WeightedPhrases) -> None:
        self.amounts: dict[int, float] = {}
        self._tokens = tokens
        self._phrases = phrases

    def go_on_from(self, state: int, pending: bytes = b"", *, after_word: bool = False) -> None:
        everywhere = (0, len(self._tokens.keys))
        for character, after in self._phrases.steps(state):
            encoded = character.encode()
            if encoded.startswith(pending) and encoded != pending and not (after_word and in_words(character)):
                self._take(everywhere, b"", (character, encoded[len(pending) :]), (state, after))

    def _take(self, within: tuple[int, int], prefix: bytes, written: tuple[str, bytes], step: tuple[int, int]) -> None:
        """Tokens ``within`` begin with ``prefix``: take one more character, and then all that lead on from there.

        ``written``: the character and those of its bytes that are not written yet.
        """
        character, missing = written
        num_bytes = len(character.encode())
        for num_missing in reversed(range(len(missing))):
            prefix += missing[len(missing) - num_missing - 1 :][:1]
            within = self._tokens.narrow(within, prefix)
            if within[0] == within[1]:
                return
            # Tokens that are the prefix and nothing more come first.
            ends = range(within[0], bisect_right(self._tokens.keys, prefix, *within))
            self._note(ends, self._phrases.part(*step, 1 - num_missing / num_bytes))
        state = step[1]
        if amount := self._phrases.amount[state]:
            keys = self._tokens.keys
            self._note((i for i in range(*within) if _ends_word(character, keys[i][len(prefix) :])), amount)
        for following, after in self._phrases.steps(state):
            self._take(within, prefix, (following, following.encode()), (state, after))

    def _note(self, places: Iterable[int], amount: float) -> None:
        for place in places:
            token_id = self._tokens.ids[place]
            if amount > self.amounts.get(token_id, 0.0):
                self.amounts[token_id] = amount


def greatest(amounts: dict[int, float], others: dict[int, float]) -> dict[int, float]:
    """Both, and where both have a token, the greater amount.

    >>> greatest({1: 2.0, 2: 2.0}, {2: 3.0, 3: 1.0})
    {1: 2.0, 2: 3.0, 3: 1.0}
    """
    return amounts | {token_id: max(amount, amounts.get(token_id, 0.0)) for token_id, amount in others.items()}


def _ends_word(character: str, rest: bytes) -> bool:
    """Whether a word may end with ``character`` where the token goes on with ``rest``."""
    if not in_words(character):
        return True
    # An unfinished character at the end counts as one that parts words.
    following = rest[:4].decode(errors="replace")[:1]
    return not following or not in_words(following)


def vocabulary_index(vocabulary: Vocabulary) -> VocabularyIndex:
    """The index of a vocabulary, which a worker has one of."""
    with _building:
        return _index(vocabulary)


@lru_cache(maxsize=4)
def _index(vocabulary: Vocabulary) -> VocabularyIndex:
    return VocabularyIndex(vocabulary)


_building = threading.Lock()
"""Who asks for the index while it is being built waits for it."""


def prepare_index(vocabulary: Vocabulary) -> None:
    """Build the index in the background: the model is ready without it, and the first request with phrases has it."""
    threading.Thread(target=vocabulary_index, args=(vocabulary,), name="index", daemon=True).start()
