"""What graded penalties on phrases promise: by definition, token by token, and by how often phrases then come."""

from __future__ import annotations

import codecs

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.phrase_index import DOT, is_apart
from server.engine.processors.base import Start
from server.engine.processors.phrase_penalties import PhrasePenalties
from server.phrases import fold, folded, variants
from server.protocol import SamplingParams
from tests.engine.pieces import Pieces

Penalties = tuple[tuple[str, float], ...]


def processor(vocabulary: Pieces, penalties: Penalties, output_ids: list[int] = ()) -> PhrasePenalties:
    made = PhrasePenalties.for_sequence(
        Start(
            params=SamplingParams(max_new_tokens=8, phrase_penalties=penalties),
            prompt_ids=np.array([0]),
            output_ids=np.array(output_ids, dtype=np.int64),
            ending_ids=frozenset(),
            max_tokens=100,
            vocabulary=vocabulary,
        )
    )
    assert made is not None
    return made


def taken(*processors: PhrasePenalties, vocab_size: int) -> list[list[float]]:
    logits_SV = torch.zeros(len(processors), vocab_size)
    PhrasePenalties.apply(logits_SV, list(range(len(processors))), list(processors))
    return (-logits_SV).tolist()


def amounts(tokens: list[bytes], penalties: Penalties, output: list[bytes] = ()) -> dict[bytes, float]:
    """What each token loses, of those that lose anything."""
    vocabulary = Pieces(tokens)
    [row] = taken(
        processor(vocabulary, penalties, [vocabulary.tokens.index(token) for token in output]),
        vocab_size=len(tokens) + 1,
    )
    return {vocabulary.tokens[i]: round(amount, 4) for i, amount in enumerate(row) if amount}


def by_definition(output: bytes, token: bytes, penalties: Penalties) -> float:
    """What a token loses: tries every phrase at every place."""
    if not token:
        return 0.0
    before, _ = codecs.utf_8_decode(output, "replace", False)
    text, num_decoded = codecs.utf_8_decode(output + token, "replace", False)
    pending = (output + token)[num_decoded:]
    return max(
        (
            amount * share(text, start, len(before), pending, folded(phrase))
            for phrase, amount in penalties
            for start in range(len(text) + 1)
        ),
        default=0.0,
    )


def share(text: str, start: int, num_before: int, pending: bytes, phrase: str) -> float:
    """How much of a phrase the text has from ``start`` on: it ends with it, or has it whole in its new characters."""
    matched = 0
    for place in range(start, len(text)):
        units = fold(text[place])
        if place == start and (not units or (start and not is_apart(text[start - 1], text[start]))):
            return 0.0
        if not phrase[matched:].startswith(units):
            return 0.0
        matched += len(units)
        if matched == len(phrase):
            is_whole = place + 1 == len(text) or is_apart(text[place], text[place + 1])
            return 1.0 if is_whole and place >= num_before else 0.0
    if not pending:
        return matched / len(phrase)
    return max(
        (
            (matched + len(fold(character)) * len(pending) / len(character.encode())) / len(phrase)
            for character in [*variants(phrase[matched]), DOT]
            if character.encode().startswith(pending)
            and phrase[matched:].startswith(fold(character))
            and (matched or (character != DOT and (start == 0 or is_apart(text[start - 1], character))))
        ),
        default=0.0,
    )


CHARACTERS = "aAbB Iiİı1ßs天气😀."
SKY, AIR, SMILE = (character.encode() for character in "天气😀")
SPLIT = [SKY[:1], SKY[1:2], SKY[2:], SKY[:2], SKY[1:], AIR[:1], AIR[1:], SMILE[:2], SMILE[2:], SKY + AIR[:1], b"\xcc"]
PHRASES = [
    "a",
    "ab",
    "aab",
    "a b",
    "b a",
    "ia",
    "ıb",
    "ss",
    "s1",
    "天气",
    "天",
    "天气a",
    "a天",
    "😀",
    "b.",
    "asb",
    "ab ab",
]


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_every_token_loses_what_the_definition_says(data: st.DataObject) -> None:
    piece = st.one_of(st.text(CHARACTERS, min_size=1, max_size=5).map(str.encode), st.sampled_from(SPLIT))
    tokens = data.draw(st.lists(piece, min_size=1, max_size=12, unique=True))
    phrases = data.draw(st.lists(st.sampled_from(PHRASES), min_size=1, max_size=4, unique=True))
    penalties = tuple((phrase, data.draw(st.sampled_from([1.0, 2.0, 6.0]))) for phrase in phrases)
    output_ids = data.draw(st.lists(st.integers(0, len(tokens)), max_size=6))
    vocabulary = Pieces(tokens)
    output = b"".join(map(vocabulary.token_bytes, output_ids))
    [row] = taken(processor(vocabulary, penalties, output_ids), vocab_size=len(tokens) + 1)
    expected = [by_definition(output, token, penalties) for token in vocabulary.tokens]
    assert row == pytest.approx(expected, abs=1e-5), (vocabulary.tokens, output)


def test_the_token_that_completes_a_phrase_loses_all_however_many_there_are() -> None:
    tokens = [b" New", b" York", b" new york", b" ne", b"w", b" Y", b"ork", b" Yard", b" Newer", b"NEW"]
    penalty = (("New York", 4.0),)
    assert amounts(tokens, penalty) == {b" New": 1.5, b"NEW": 1.5, b" new york": 4.0, b" ne": 1.0}
    after_new = amounts(tokens, penalty, [b" ne", b"w"])
    assert after_new == {b" York": 4.0, b" Y": 2.5, b" New": 1.5, b" new york": 4.0, b" ne": 1.0}
    assert amounts(tokens, penalty, [b" ne", b"w", b" Y"])[b"ork"] == 4.0


def test_a_word_counts_only_as_a_whole() -> None:
    tokens = [b" war", b" warm", b"War,", b" software", b"ware", b" wars", b"m", b" the war."]
    assert amounts(tokens, (("war", 3.0),)) == {b" war": 3.0, b"War,": 3.0, b" the war.": 3.0}
    assert amounts([*tokens, b" soft"], (("war", 3.0),), [b" soft"]) == {b" war": 3.0, b" the war.": 3.0}


def test_chinese_counts_anywhere_and_the_bytes_of_its_characters_by_their_share() -> None:
    tokens = ["天".encode(), "天气".encode(), "今天".encode(), "气".encode(), b"\xe5", b"\xe5\xa4", b"\xa9", b"x"]
    penalty = (("天气", 6.0),)
    begins = {
        "天".encode(): 3.0,
        "天气".encode(): 6.0,
        "今天".encode(): 3.0,
        b"\xe5": 1.0,
        b"\xe5\xa4": 2.0,
    }
    assert amounts(tokens, penalty) == begins
    assert amounts(tokens, penalty, [b"\xe5\xa4"]) == {**begins, b"\xa9": 3.0}
    assert amounts(tokens, penalty, [b"\xe5\xa4", b"\xa9"])["气".encode()] == 6.0


def test_of_several_phrases_the_greatest_amount_counts() -> None:
    tokens = [b" war", b" crime"]
    penalties = (("war", 2.0), ("war crime", 9.0), ("crime", 1.0))
    assert amounts(tokens, penalties) == {b" war": 3.0, b" crime": 1.0}
    assert amounts(tokens, penalties, [b" war"]) == {b" war": 3.0, b" crime": 9.0}


def test_rows_have_their_own_places_and_phrases() -> None:
    vocabulary = Pieces([b"a", b"b", b" c"])
    rows = [processor(vocabulary, (("ab", 2.0),)), processor(vocabulary, (("ab", 2.0),), [1])]
    rows.append(processor(vocabulary, (("c", 5.0),)))
    assert taken(*rows, vocab_size=4) == [[0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 5]]


def test_a_fork_goes_its_own_way_and_a_sequence_that_went_back_is_where_it_was() -> None:
    vocabulary = Pieces([b"a", b"b"])
    parent = processor(vocabulary, (("ab", 2.0),))
    child = parent.fork()
    child.accept(1)
    again = processor(vocabulary, (("ab", 2.0),), [1])
    assert taken(parent, child, again, vocab_size=3) == [[0, 1, 0], [0, 0, 2], [0, 0, 2]]


def test_a_strength_of_nothing_is_no_rule() -> None:
    start = Start(
        params=SamplingParams(max_new_tokens=8, phrase_penalties=(("a", 0.0),)),
        prompt_ids=np.array([0]),
        output_ids=np.array([], dtype=np.int64),
        ending_ids=frozenset(),
        max_tokens=9,
    )
    assert PhrasePenalties.for_sequence(start) is None


FREQUENCY_TOKENS = [b" cat", b" dog", b" ice", b" cream", b" tea", b"\xe5\xa4", b"\xa9", "气".encode(), b" on", b"."]


def frequency(penalties: Penalties, phrase: str, num_rows: int = 200, num_steps: int = 100) -> float:
    """How often a phrase comes per token, of a model that takes any token after any other."""
    torch.manual_seed(7)
    vocabulary = Pieces(FREQUENCY_TOKENS)
    rows = [processor(vocabulary, penalties) for _ in range(num_rows)] if penalties else []
    output_RN: list[list[int]] = [[] for _ in range(num_rows)]
    for _ in range(num_steps):
        logits_RV = torch.zeros(num_rows, len(vocabulary.tokens))
        logits_RV[:, 0] = -torch.inf
        if rows:
            PhrasePenalties.apply(logits_RV, list(range(num_rows)), rows)
        chosen = torch.multinomial(logits_RV.softmax(-1), 1).flatten().tolist()
        for i, token_id in enumerate(chosen):
            output_RN[i].append(token_id)
            if rows:
                rows[i].accept(token_id)
    texts = [b"".join(map(vocabulary.token_bytes, ids)).decode(errors="replace") for ids in output_RN]
    return sum(text.count(phrase) for text in texts) / (num_rows * num_steps)


@pytest.mark.parametrize("phrase", ["cat", "ice cream", "天气"])
def test_phrases_of_one_and_of_many_tokens_grow_rarer_with_their_strength(phrase: str) -> None:
    usual, weak, strong = (frequency(((phrase, strength),) if strength else (), phrase) for strength in (0.0, 1.0, 4.0))
    # The odds of each token that completes it fall by exp(strength); beginnings are rarer besides.
    assert weak < 0.5 * usual
    assert strong < 0.05 * usual
    assert frequency(((phrase, 4.0),), "dog") >= 0.95 * frequency((), "dog")


def test_one_token_comes_as_often_as_its_lowered_odds_say() -> None:
    strength = 1.5
    probability = np.exp(-strength) / (len(FREQUENCY_TOKENS) - 1 + np.exp(-strength))
    deviation = np.sqrt(probability / (200 * 100))
    assert frequency((("tea", strength),), "tea") == pytest.approx(probability, abs=5 * deviation)
