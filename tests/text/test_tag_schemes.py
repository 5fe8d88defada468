"""Labels of every scheme are read alike, in training and in serving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from server.text.entities import Entity, TaggedText
from server.text.joined import joined_entities
from server.text.tag_schemes import scheme_of, spans


def entities(text: str, offsets: Sequence[tuple[int, int]], tags: Sequence[str], labels: Sequence[str]) -> list[Entity]:
    """Of words that each are one token, of which the model is sure."""
    num_words = len(offsets)
    probabilities = np.array([[label == tag for label in labels] for tag in tags], dtype=np.float32)
    return joined_entities(
        TaggedText(
            text=text, token_ids=[0] * num_words, tokens=[""] * num_words, offsets=offsets,
            word_ids=range(num_words), positions=range(num_words), labels=labels, probabilities_TL=probabilities,
        )
    )  # fmt: skip


SCHEMES = {
    "BIO": "B-PER I-PER I-PER O B-LOC B-PER",
    "BIO with underscores": "B_PER I_PER I_PER O B_LOC B_PER",
    "IO": "PER PER PER O LOC PER",
    "I alone": "I-PER I-PER I-PER O I-LOC I-PER",
    "IOE": "I-PER I-PER E-PER O E-LOC E-PER",
    "BIOES": "B-PER I-PER E-PER O S-LOC S-PER",
    "BILOU": "B-PER I-PER L-PER O U-LOC U-PER",
    "BMES": "B-PER M-PER E-PER O S-LOC S-PER",
    "BMEWO": "B-PER M-PER E-PER O W-LOC W-PER",
    "suffixes": "PER-B PER-I PER-I O LOC-B PER-B",
    "lower case": "b-per i-per i-per o b-loc b-per",
    "lower case and underscores": "b_per m_per e_per O s_loc s_per",
    "lower case suffixes": "per-b per-i per-i O loc-b per-b",
    "a type with a hyphen": "B-X-PER I-X-PER I-X-PER O B-LOC B-X-PER",
    "another spelling of O": "B-PER I-PER E-PER o S-LOC S-PER",
    "integers": "1 1 1 0 2 1",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_of_labels_gives_the_same_entities(scheme: str) -> None:
    words, tags = ["Anna", "van", "Berg", "visits", "Rome", "Ben"], SCHEMES[scheme].split()
    labels = sorted(set(tags), reverse=True)
    outside = next(label for label in labels if label in ("O", "o", "0"))
    text = " ".join(words)
    starts = [text.index(word) for word in words]
    offsets = [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
    found = entities(text, offsets, tags, labels)
    assert [entity.word for entity in found if entity.label != outside] == ["Anna van Berg", "Rome", "Ben"]
    assert len({entity.label for entity in found}) == 3


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("B-PER E-PER B-PER E-PER", ["a b", "c d"]),
        ("S-PER S-PER B-PER E-PER", ["a", "b", "c d"]),
        ("I-PER E-PER I-PER E-PER", ["a b", "c d"]),
        ("PER PER PER PER", ["a b c d"]),
    ],
)
def test_neighbours_of_one_type_are_parted_as_their_scheme_says(tags: str, words: list[str]) -> None:
    labels = ["O", *sorted(set(tags.split()))]
    offsets = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [entity.word for entity in entities("a b c d", offsets, tags.split(), labels)] == words


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_of_labels_is_scored_alike(scheme: str) -> None:
    tags = SCHEMES[scheme].split()
    meaning = scheme_of(tags)
    assert [(first, last) for _, first, last in spans([meaning.tags[tag] for tag in tags])] == [(0, 2), (4, 4), (5, 5)]


@pytest.mark.parametrize(
    ("labels", "types"),
    [
        ("O B-PER I-PER E-PER S-LOC", ["O", "PER", "PER", "PER", "LOC"]),
        ("O B-PER E-PER B-LOC E-LOC U-X", ["O", "PER", "PER", "LOC", "LOC", "X"]),
        ("O B-PER I-PER S-BAHN E-MAIL", ["O", "PER", "PER", "S-BAHN", "E-MAIL"]),
        ("O E-MAIL S-BAHN", ["O", "E-MAIL", "S-BAHN"]),
        ("o e-mail i-phone s-bahn", ["o", "e-mail", "i-phone", "s-bahn"]),
        ("O B_CELL T_CELL", ["O", "B_CELL", "T_CELL"]),
        ("O VITAMIN-B VITAMIN-C", ["O", "VITAMIN-B", "VITAMIN-C"]),
        ("O DIABETES-I HEPATITIS-B", ["O", "DIABETES-I", "HEPATITIS-B"]),
        ("LABEL_0 LABEL_1", ["LABEL_0", "LABEL_1"]),
        ("Outside PER-B PER-I", ["Outside", "PER", "PER"]),
        ("O B-E-MAIL I-E-MAIL", ["O", "E-MAIL", "E-MAIL"]),
    ],
)
def test_a_letter_is_a_place_only_where_the_labels_agree(labels: str, types: list[str]) -> None:
    assert [tag.type for tag in scheme_of(labels.split()).tags.values()] == types


@pytest.mark.parametrize(
    ("labels", "added"),
    [
        ("O B-PER", "I-PER"),
        ("O S-LOC B-PER I-PER E-PER S-PER", "B-LOC I-LOC E-LOC"),
        ("O S-LOC B-PER M-PER E-PER S-PER", "B-LOC M-LOC E-LOC"),
        ("O I-PER E-PER I-LOC", "E-LOC"),
        ("O PER-B PER-I LOC-B", "LOC-I"),
        ("o b-per", ""),
        ("o b-per i-per b-loc", "i-loc"),
        ("O PER LOC", ""),
    ],
)
def test_each_type_gets_every_place_of_its_scheme(labels: str, added: str) -> None:
    assert scheme_of(labels.split()).complete() == {*labels.split(), *added.split()}
