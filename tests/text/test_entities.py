"""From labelled tokens to entities: whole words, exact slices, no overlap, and windows that leave no trace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from server.text.entities import PIPELINE_STRATEGIES, Entity, TaggedText, TokenRules, pipeline_entities
from server.text.joined import joined_entities
from server.text.windows import merge_rows, num_windows, plan_windows
from tests.tiny_encoders import TAGS, TEXTS, Kind, tiny_tokenizer

KINDS: tuple[Kind, ...] = ("wordpiece", "bytes", "metaspace")
ALPHABET = "aB3 .-'@\n\t张三李四京م Ôé\u0301한🇩😀\u200d(,"


def tagged(
    text: str, probabilities_TL: NDArray[np.float32] | None = None, *, kind: Kind = "wordpiece",
    labels: Sequence[str] = TAGS, spans: dict[str, list[str]] | None = None,
) -> TaggedText:  # fmt: skip
    """The text's real tokens. ``spans`` names, for each word of the text, the labels of its tokens in order."""
    encoding: Encoding = tiny_tokenizer(kind).backend_tokenizer.encode(text, add_special_tokens=False)
    if probabilities_TL is None:
        probabilities_TL = one_hot(text, encoding, spans or {}, labels)
    return from_encoding(text, encoding, probabilities_TL, labels)


def from_encoding(
    text: str, encoding: Encoding, probabilities_TL: NDArray[np.float32], labels: Sequence[str]
) -> TaggedText:
    return TaggedText(
        text=text, token_ids=encoding.ids, tokens=encoding.tokens, offsets=encoding.offsets,
        word_ids=encoding.word_ids, positions=range(len(encoding.ids)), labels=labels,
        probabilities_TL=probabilities_TL,
    )  # fmt: skip


def one_hot(text: str, encoding: Encoding, spans: dict[str, list[str]], labels: Sequence[str]) -> NDArray[np.float32]:
    chosen = ["O"] * len(encoding.ids)
    for word, tags in spans.items():
        start = text.index(word)
        inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < start + len(word) and b > start]
        for i, token in enumerate(inside):
            chosen[token] = tags[min(i, len(tags) - 1)]
    probabilities = np.full((len(chosen), len(labels)), 0.1 / (len(labels) - 1), dtype=np.float32)
    for token, label in enumerate(chosen):
        probabilities[token, labels.index(label)] = 0.9
    return probabilities


def found(text: str, spans: dict[str, list[str]], *, kind: Kind = "wordpiece") -> list[tuple[str, str]]:
    entities = joined_entities(tagged(text, kind=kind, spans=spans))
    return [(entity.label, entity.word) for entity in entities if entity.label != "O"]


@pytest.mark.parametrize("kind", KINDS)
def test_b_on_every_piece_of_a_word_is_one_entity(kind: Kind) -> None:
    assert found("in Springfield, IL", {"Springfield": ["B-LOC"]}, kind=kind) == [("LOC", "Springfield")]


@pytest.mark.parametrize("kind", KINDS)
def test_b_inside_an_address_without_spaces_does_not_cut_it(kind: Kind) -> None:
    text = "mail maria.gonzalez@example.com now"
    tags = ["B-PER", "I-PER", "I-PER", "B-PER", "B-PER"]
    assert found(text, {"maria.gonzalez@example.com": tags}, kind=kind) == [("PER", "maria.gonzalez@example.com")]


@pytest.mark.parametrize("kind", KINDS)
def test_two_neighbours_of_one_type_stay_two_where_the_second_begins(kind: Kind) -> None:
    spans = {"Alice": ["B-PER", "I-PER"], "Bob": ["B-PER", "I-PER"]}
    assert found("met Alice Bob there", spans, kind=kind) == [("PER", "Alice"), ("PER", "Bob")]


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_one_entity_are_joined_over_spaces(kind: Kind) -> None:
    spans = {"New": ["B-LOC", "I-LOC"], "York": ["I-LOC"], "City": ["I-LOC"]}
    assert found("in New   York\nCity.", spans, kind=kind) == [("LOC", "New   York\nCity")]


def test_a_blank_line_parts_two_entities() -> None:
    spans = {"Alice": ["B-PER"], "Bob": ["I-PER"]}
    assert found("Alice\nBob", spans) == [("PER", "Alice\nBob")]
    assert found("Alice\n \nBob", spans) == [("PER", "Alice"), ("PER", "Bob")]


def test_a_piece_that_disagrees_does_not_cut_a_word() -> None:
    for tags in (["B-LOC", "O", "I-LOC"], ["O", "I-LOC", "I-LOC"]):
        assert found("in Springfield now", {"Springfield": tags}) == [("LOC", "Springfield")]


CHINESE = "昨天张三李四住在北京。"
CHINESE_NAMES = [("PER", "张三"), ("PER", "李四"), ("LOC", "北京")]


def by_hand(text: str, offsets: Sequence[tuple[int, int]], per: Sequence[float]) -> list[tuple[str, str]]:
    """Entities of tokens that all are of one word, where each is a person with the probability ``per``."""
    num_tokens = len(offsets)
    probabilities = np.array([[1 - value, value] for value in per], dtype=np.float32)
    entities = joined_entities(
        TaggedText(
            text=text, token_ids=[0] * num_tokens, tokens=[""] * num_tokens, offsets=offsets,
            word_ids=[0] * num_tokens, positions=range(num_tokens), labels=("O", "PER"),
            probabilities_TL=probabilities,
        )
    )  # fmt: skip
    return [(entity.label, entity.word) for entity in entities]


@pytest.mark.parametrize(
    ("text", "offsets"),
    [
        ("Jose\u0301", [(0, 2), (2, 4)]),
        ("Jose\u0301s", [(0, 4), (5, 6)]),
        ("\u0645\u064f\u062d\u064e\u0645", [(0, 1), (2, 3), (4, 5)]),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", [(0, 2), (3, 8)]),
        ("Haupt\u00admann", [(0, 5), (6, 10)]),
    ],
    ids=["last accent", "inner accent", "vowel signs", "joiner", "soft hyphen"],
)
def test_a_word_keeps_the_marks_and_joiners_that_its_tokenizer_drops(text: str, offsets: list[tuple[int, int]]) -> None:
    assert by_hand(text, offsets, [0.9] + [0.4] * (len(offsets) - 1)) == [("PER", text)]


def test_a_mark_stays_with_its_character_in_a_script_without_spaces() -> None:
    # Two Thai syllables, the second with two marks, in tokens that share characters.
    text = "\u0e01\u0e17\u0e35\u0e48"
    assert by_hand(text, [(0, 2), (1, 3), (2, 4)], [0.1, 0.6, 0.9]) == [("O", text[0]), ("PER", text[1:])]


CHINESE_LABELS = {"张": "B-PER", "三": "I-PER", "李": "B-PER", "四": "I-PER", "北": "B-LOC", "京": "I-LOC"}


def chinese(encoding: Encoding) -> list[tuple[str, str]]:
    """What is found where each token has the label of its first character."""
    chosen = [CHINESE_LABELS.get(CHINESE[start], "O") for start, _ in encoding.offsets]
    probabilities = np.full((len(chosen), len(TAGS)), 0.01, dtype=np.float32)
    probabilities[range(len(chosen)), [TAGS.index(label) for label in chosen]] = 0.9
    entities = joined_entities(from_encoding(CHINESE, encoding, probabilities, TAGS))
    return [(entity.label, entity.word) for entity in entities if entity.label != "O"]


@pytest.mark.parametrize("kind", ["wordpiece", "metaspace"])
def test_chinese_names_that_touch_are_parted_by_b(kind: Kind) -> None:
    assert chinese(tiny_tokenizer(kind).backend_tokenizer.encode(CHINESE, add_special_tokens=False)) == CHINESE_NAMES


def test_the_bytes_of_chinese_characters_are_joined_into_the_same_names() -> None:
    alphabet = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding = backend.encode(CHINESE)
    assert len(encoding.ids) == 3 * len(CHINESE)
    assert chinese(encoding) == CHINESE_NAMES


def test_tokens_that_hold_parts_of_several_characters_keep_the_labels_of_the_characters_apart() -> None:
    # "李四" as three tokens: the middle one has the end of the first character and the beginning of the second.
    text = TaggedText(
        text="在李四", token_ids=[0, 1, 2, 3], tokens=["a", "b", "c", "d"], offsets=[(0, 1), (1, 2), (1, 3), (2, 3)],
        word_ids=[0, 0, 0, 0], positions=range(4), labels=("O", "PER"),
        probabilities_TL=np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.1, 0.9]], dtype=np.float32),
    )  # fmt: skip
    assert [(entity.label, entity.word) for entity in joined_entities(text)] == [("O", "在李"), ("PER", "四")]


def test_a_score_is_the_mean_over_words_of_b_and_i_together() -> None:
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.1, 0.5]], dtype=np.float32)
    [entity] = joined_entities(tagged("maria gonzalez", probabilities, labels=("O", "B-X", "I-X")))
    assert entity.score == pytest.approx((0.8 + 0.6) / 2)


def test_plain_labels_join_neighbours_and_a_dash_inside_a_label_is_no_prefix() -> None:
    labels = ("O", "E-MAIL", "S-BAHN")
    entities = joined_entities(tagged("maria gonzalez", labels=labels, spans={"maria gonzalez": ["E-MAIL"]}))
    assert [(e.label, e.word) for e in entities] == [("E-MAIL", "maria gonzalez")]


def test_single_and_end_prefixes_are_read_where_the_type_has_b_or_i() -> None:
    labels = ("O", "B-X", "I-X", "E-X", "S-X")
    spans = {"Alice": ["B-X"], "Bob": ["E-X"], "Smith": ["S-X"]}
    entities = joined_entities(tagged("Alice Bob Smith", labels=labels, spans=spans))
    assert [entity.word for entity in entities] == ["Alice Bob", "Smith"]


@st.composite
def random_tagging(draw: st.DrawFn) -> TaggedText:
    text = draw(st.one_of(st.text(ALPHABET, max_size=40), st.sampled_from(TEXTS)))
    kind = draw(st.sampled_from(KINDS))
    num_tokens = len(tiny_tokenizer(kind).backend_tokenizer.encode(text, add_special_tokens=False).ids)
    logits = np.random.default_rng(draw(st.integers(0, 2**32))).normal(scale=2, size=(num_tokens, len(TAGS)))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return tagged(text, probabilities.astype(np.float32), kind=kind)


def assert_sound(text: str, entities: Sequence[Entity]) -> None:
    end = 0
    for entity in entities:
        assert end <= entity.start < entity.end <= len(text)
        assert entity.word == text[entity.start : entity.end] == entity.word.strip()
        assert 0 < entity.score <= 1
        end = entity.end


@settings(max_examples=300, deadline=None)
@given(random_tagging())
def test_joined_entities_are_slices_in_order_and_never_overlap_whatever_the_labels(text: TaggedText) -> None:
    entities = joined_entities(text)
    assert_sound(text.text, entities)
    visible = {i for start, end in text.offsets for i in range(start, end) if not text.text[i].isspace()}
    covered = {i for entity in entities for i in range(entity.start, entity.end)}
    assert visible <= covered


@settings(max_examples=150, deadline=None)
@given(random_tagging(), st.sampled_from(PIPELINE_STRATEGIES))
def test_every_token_is_in_exactly_one_entity_of_the_pipelines_strategies(text: TaggedText, strategy: str) -> None:
    rules = TokenRules(joins=" ".join, unk_id=None, marks_continuation=False)
    entities = pipeline_entities(text, strategy, rules)
    starts = [entity.start for entity in entities]
    assert starts == sorted(starts)
    if strategy == "none":
        assert [(entity.start, entity.end) for entity in entities] == list(text.offsets)


@given(st.integers(0, 300), st.integers(1, 60), st.data())
def test_windows_cover_every_token_and_overlap_as_asked(num_tokens: int, capacity: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    windows = plan_windows(num_tokens, capacity, overlap)
    assert windows[0].start == 0 and windows[-1].stop == num_tokens
    assert len(windows) == num_windows(num_tokens, capacity, overlap)
    assert all(len(window) == min(capacity, num_tokens) for window in windows)
    for left, right in itertools.pairwise(windows):
        assert left.start < right.start and left.stop - right.start >= overlap


@given(st.integers(1, 300), st.integers(1, 60), st.data())
def test_each_token_is_read_in_the_window_that_shows_most_around_it(
    num_tokens: int, capacity: int, data: st.DataObject
) -> None:
    windows = plan_windows(num_tokens, capacity, data.draw(st.integers(0, capacity - 1)))
    # Each window's row of a token is the token and how much the window shows on its poorer side.
    rows = [
        np.array([[i, min(i - window.start, window.stop - 1 - i)] for i in window], dtype=np.float32)
        for window in windows
    ]
    merged = merge_rows(windows, rows)
    assert merged[:, 0].tolist() == list(range(num_tokens))
    if len(windows) > 1:
        inner = range(windows[0].stop - capacity // 2, windows[-1].start + capacity // 2)
        for i in inner:
            assert merged[i, 1] == max(row[i - window.start, 1] for window, row in zip(windows, rows, strict=True)
                                       if i in window)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(random_tagging(), st.integers(1, 12), st.data())
def test_windows_give_what_the_whole_document_gives_where_labels_depend_on_tokens_alone(
    whole: TaggedText, capacity: int, data: st.DataObject
) -> None:
    windows = plan_windows(len(whole.token_ids), capacity, data.draw(st.integers(0, capacity - 1)))
    rows = [whole.probabilities_TL[window.start : window.stop] for window in windows]
    pieced = TaggedText(**{**vars(whole), "probabilities_TL": merge_rows(windows, rows)})
    assert joined_entities(pieced) == joined_entities(whole)


@pytest.mark.timeout(30)
def test_a_letter_with_very_many_marks_is_one_unit_and_takes_no_time() -> None:
    size = 40_000
    text = "e" + "\u0301" * size
    offsets = [(place, place + 1) for place in range(size + 1)]
    probabilities = np.tile(np.float32([0.1, 0.9]), (size + 1, 1))
    tagged_text = TaggedText(
        text=text, token_ids=[0] * (size + 1), tokens=["x"] * (size + 1), offsets=offsets, word_ids=[0] * (size + 1),
        positions=range(size + 1), labels=["O", "PER"], probabilities_TL=probabilities,
    )  # fmt: skip
    [entity] = joined_entities(tagged_text)
    assert (entity.start, entity.end) == (0, size + 1)
