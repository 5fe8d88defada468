"""Data files: what is read, how it is split, and what is said of mistakes."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigurationError
from server.finetune.data import TagExample, TextColumns, TextExample, label_names, read_tags, read_texts
from server.finetune.splitting import split, without_texts_of


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_csv_texts_may_hold_commas_quotes_and_line_breaks(write):
    path = write("a.csv", '\ufefftext,label\n"one, ""two""\nthree",yes\nfour,no\n')
    assert read_texts(path).examples == [
        TextExample('one, "two"\nthree', ("yes",)),
        TextExample("four", ("no",)),
    ]


def test_columns_may_have_other_names(write):
    path = write("a.tsv", "id\tbody\tstars\n1\thello\t5\n")
    assert read_texts(path, TextColumns("body", "stars")).examples == [TextExample("hello", ("5",))]


def test_a_list_of_labels_makes_the_data_multi_label(write):
    rows = [{"text": "a", "label": ["x", "y", "x"]}, {"text": "b", "label": []}]
    texts = read_texts(write("a.jsonl", "\n\n".join(json.dumps(row) for row in rows)))
    assert texts.is_multi_label
    assert texts.examples == [TextExample("a", ("x", "y")), TextExample("b", ())]


def test_conll_takes_the_first_column_and_the_last(write):
    path = write("a.conll", "-DOCSTART- -X- O\n\nAnna NNP B-PER\nsings\tVBZ\tO\n\n\nOslo NNP B-LOC")
    assert read_tags(path).examples == [
        TagExample(("Anna", "sings"), ("B-PER", "O")),
        TagExample(("Oslo",), ("B-LOC",)),
    ]


def test_tabs_alone_part_columns_where_words_hold_spaces(write):
    path = write("a.conll", "New York\tB-LOC\nis\tO\n\nOslo\tB-LOC\n")
    assert [example.words for example in read_tags(path).examples] == [("New York", "is"), ("Oslo",)]


def test_label_names_may_be_longer_than_a_file_name():
    names = [f"B-KIND{number}" for number in range(100)]
    assert label_names(",".join(names)) == names


def test_label_names_of_a_file_and_of_the_option_must_agree(write):
    rows = '{"label_names": ["O", "B-PER"]}\n{"tokens": ["Anna"], "ner_tags": [1]}'
    with pytest.raises(ConfigurationError, match="label_names and --label-names differ"):
        read_tags(write("a.jsonl", rows), names=["O", "B-LOC"])


def test_a_word_of_a_conll_file_may_hold_a_no_break_space(write):
    assert read_tags(write("a.conll", "10\u00a0000 CD O\r\n \t\r\nOslo\tNN\tB-LOC\r\n")).examples == [
        TagExample(("10\u00a0000",), ("O",)),
        TagExample(("Oslo",), ("B-LOC",)),
    ]


def test_numbered_tags_get_their_names_from_the_file_or_from_an_option(write):
    rows = '{"tokens": ["Anna", "sings"], "ner_tags": [1, 0]}'
    expected = [TagExample(("Anna", "sings"), ("B-PER", "O"))]
    assert read_tags(write("a.jsonl", rows), names=["O", "B-PER"]).examples == expected
    assert read_tags(write("b.jsonl", '{"label_names": ["O", "B-PER"]}\n' + rows)).examples == expected


def test_numbered_labels_get_their_names(write):
    path = write("a.csv", "text,label\nx,1\ny,0\n")
    assert [e.labels for e in read_texts(path, names=["bad", "good"]).examples] == [("good",), ("bad",)]


def test_another_spelling_of_o_is_read_as_o(write):
    sentences = read_tags(write("a.conll", "Anna PERSON\nsings none\n"))
    assert sentences.examples == [TagExample(("Anna", "sings"), ("PERSON", "O"))]
    assert sentences.notes == ["'none' is read as O"]


def test_words_of_a_script_without_spaces_are_joined_without(write):
    sentences = read_tags(write("a.conll", "\u5f20 B-PER\n\u4e09 I-PER\n\u5728 O\n"))
    assert sentences.examples[0].text == "\u5f20\u4e09\u5728"
    assert sentences.notes == ["1 sentences joined without spaces, as their script is written"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_usual_separator_is_recognised(write, separator, name, end):
    rows = [["id", "text", "label"], ["1", '"a, b; c"', "yes"], ["2", "d", " no "]]
    texts = read_texts(write(name, "\ufeff" + end.join(separator.join(row) for row in rows) + end))
    assert texts.examples == [TextExample("a, b; c", ("yes",)), TextExample("d", ("no",))]
    assert "columns not used: id" in texts.notes
    assert "1 labels had spaces around them" in texts.notes


def test_rows_without_any_text_are_left_out_and_counted(write):
    texts = read_texts(write("a.csv", "text,label\nx,y\n,\n\n , \nz,y\n"))
    assert len(texts.examples) == 2
    assert texts.notes == ["3 empty rows left out"]


def test_a_column_text_pair_makes_pairs(write):
    texts = read_texts(write("a.csv", "text,text_pair,label\na,b,yes\n"))
    assert texts.examples == [TextExample("a", ("yes",), "b")]
    texts = read_texts(write("b.csv", "q,a,label\nx,y,yes\n"), TextColumns("q", "label", "a"))
    assert texts.examples == [TextExample("x", ("yes",), "y")]


def test_jsonl_sentences_are_tokens_and_tags(write):
    path = write("a.jsonl", '{"tokens": ["Anna", "sings"], "ner_tags": ["B-PER", "O"]}')
    assert read_tags(path).examples == [TagExample(("Anna", "sings"), ("B-PER", "O"))]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\nx\n", "line 2: 1 columns where the first line names 2"),
        ("a.csv", "body,label\nx,y\n", "line 2: there is no column 'text', only 'body', 'label'. Name it with --text"),
        ("a.csv", "text,label\nx,y\n,y\n", "line 3: the text is empty"),
        ("a.csv", "text,label\nx, \n", "line 2: the label is empty"),
        ("a.csv", 'text,label\na,b\n"x,y\nc,d\n', "line 3: it is not CSV: a quote is opened here and never closed"),
        ("a.csv", 'text,label\n"x\ny" z,y\n', "line 2: it is not CSV: ',' expected after '\"' (seen in line 3)"),
        ("a.csv", b"text,label\nx,y\n\xff,y\n", "line 3: it is not UTF-8"),
        ("a.csv", b"text,label\nx,y\ncaf\xe9,y\n", "line 3: it is not UTF-8: byte 0xe9 at column 4, as in Latin-1"),
        ("a.csv", b"text,label\n\x93x\x94,y\n", "line 2: it is not UTF-8: byte 0x93 at column 1, as in Windows-1252"),
        (
            "a.csv",
            "text,label\n\u4e2d\u6587,y\n".encode("gbk"),
            "line 2: it is not UTF-8: byte 0xd6 at column 1, as in GBK",
        ),
        ("a.jsonl", '{"text": "x", "label": ' + "9" * 5000 + "}", "line 1: a number has too many digits"),
        (
            "a.jsonl",
            '{"label_names": ["a", "a"]}\n{"text": "x", "label": 1}',
            "line 1: label_names must be at least two",
        ),
        ("a.jsonl", '{"label_names": ["a", null]}\n{"text": "x", "label": 1}', "line 1: label_names must be at least"),
        ("a.csv", "text,label\ngr\u00f6\u00dfer,y\n".encode("latin-1"), "byte 0xf6 at column 3, as in Latin-1"),
        ("a.tsv", "\u4e2d\tO\n".encode("gbk"), "byte 0xd6 at column 1, as in GBK"),
        ("a.csv", "text,label\n".encode("utf-16"), "The file begins as UTF-16"),
        ("a.csv", "text,label,text\nx,y,z\n", "line 1: two columns are named 'text'"),
        ("a.csv", "text,text_pair,label\na,,y\n", "line 2: the text_pair is empty"),
        (
            "a.jsonl",
            '{"text": "x", "label": "y"}\n{"text": "x", "text_pair": "z", "label": "y"}',
            "line 2: there is a text_pair, and the first line has none",
        ),
        ("a.jsonl", "[" * 100_000, "line 1: its JSON is nested too deeply"),
        ("a.csv", "text,label\n", "holds no examples"),
        ("a.csv", "", "is empty. Its first line must name the columns"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text"', "line 2: it is not JSON"),
        ("a.jsonl", "[1]", "line 1: it is a JSON list"),
        ("a.jsonl", '{"text": "x", "label": null}', "line 1: the label is null"),
        ("a.jsonl", '{"text": 3, "label": "y"}', "line 1: the text is not a string"),
        (
            "a.jsonl",
            '{"text": "x", "label": "y"}\n{"text": "x", "label": ["y"]}',
            "line 2: the label is a list in some",
        ),
        ("a.jsonl", '{"text": "x\\ud83d", "label": "y"}', "line 1: a string has half of a surrogate pair"),
        ("a.jsonl", '{"text": "x", "text": "z", "label": "y"}', "line 1: an object has 'text' twice"),
        ("a.csv", "text,label\rx,y\r", "line 1: its lines end with a carriage return alone"),
        (
            "a.jsonl",
            '{"text": "x", "label": "y"}\r{"text": "z", "label": "y"}\r',
            "line 1: its lines end with a carriage",
        ),
        ("a.xlsx", "", "classification data is a .csv, .tsv or .jsonl file"),
    ],
)
def test_a_mistake_in_classification_data_is_named_with_its_line(write, name, content, said):
    with pytest.raises(ConfigurationError) as caught:
        read_texts(write(name, content))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", "Anna B-PER\nsings\n", "line 2: one column"),
        ("a.conll", "Anna B-PER\nOslo LOC\n", "line 2: 'LOC' is not a tag like the others (B-PER)"),
        ("a.conll", "Anna -PER\n", "line 1: '-PER' is not a tag"),
        ("a.conll", "Anna B-PER\nBen BI-PER\n", "line 2: 'BI-PER' is not a tag like the others (B-PER)"),
        ("a.conll", "New York B-LOC\nis O\n", "line 2: 2 columns, unlike the first line"),
        ("a.conll", "1 Anna B-PER\n2 sings O\n\n1 Oslo B-LOC\n", "line 1: the first column numbers the words"),
        ("a.conll", "Anna B-PER\rsings O\r", "line 1: its lines end with a carriage return alone"),
        ("a.conll", "\n\n", "holds no sentences"),
        ("a.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["O"]}', "line 1: 2 tokens but 1 ner_tags"),
        (
            "a.jsonl",
            '{"tokens": ["a", "b"], "ner_tags": [0, 1]}',
            "the tags are numbers. Name them in order with",
        ),
        ("a.jsonl", '{"label_names": ["O", "X"]}\n{"tokens": ["a"], "ner_tags": [2]}', "line 2: the label is 2, and 2"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": "O"}', "line 1: ner_tags is not a list of tags"),
        ("a.jsonl", '{"tokens": ["a"]}', "there is no column 'ner_tags', only 'tokens'. Name it with --label-column"),
    ],
)
def test_a_mistake_in_tagging_data_is_named_with_its_line(write, name, content, said):
    with pytest.raises(ConfigurationError) as caught:
        read_tags(write(name, content))
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"There is no data file .*gone\.csv"):
        read_texts(tmp_path / "gone.csv")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ConfigurationError, match=r"a\.csv is a folder"):
        read_texts(tmp_path / "a.csv")


examples = st.lists(
    st.builds(TextExample, st.text("abcd", min_size=1, max_size=3), st.sampled_from([("x",), ("y",), ("z",)])),
    min_size=60,
    max_size=120,
).filter(lambda rows: len({row.text for row in rows}) >= 20)


@given(examples, st.integers(0, 5))
def test_a_split_loses_nothing_and_no_text_is_in_two_parts(rows, seed):
    parts = split(rows, validation_share=0.1, test_share=0.2, seed=seed)
    assert Counter(parts.train + parts.validation + parts.test) == Counter(rows)
    train, validation, test = ({row.text for row in part} for part in (parts.train, parts.validation, parts.test))
    assert train and validation and test
    assert not (train & validation or train & test or validation & test)


def test_a_split_is_decided_by_its_seed_and_keeps_the_mix_of_labels():
    rows = [TextExample(f"text {i}", ("rare" if i % 10 == 0 else "common",)) for i in range(400)]
    first, again, other = (split(rows, validation_share=0.1, test_share=0.1, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.test != other.test
    for part, size in ((first.train, 320), (first.validation, 40), (first.test, 40)):
        assert len(part) == size
        assert sum(row.labels == ("rare",) for row in part) == size // 10


def test_a_label_that_occurs_once_is_trained_on():
    rows = [TextExample(f"text {i}", ("common",)) for i in range(50)] + [TextExample("odd", ("once",))]
    parts = split(rows, validation_share=0.1, test_share=0.1, seed=0)
    assert TextExample("odd", ("once",)) in parts.train


def test_a_split_keeps_the_mix_of_types_whatever_places_a_sentence_has():
    rows = [TagExample((f"a{i}",), ("S-LOC",)) for i in range(8)]
    rows += [TagExample((f"b{i}", "c"), ("B-LOC", "E-LOC")) for i in range(8)]
    alike = [TagExample((*row.words, "d"), ("B-LOC", "I-LOC", "E-LOC")[-len(row.words) - 1 :]) for row in rows]
    parts = [split(examples, validation_share=0.1, test_share=0.1, seed=0) for examples in (rows, alike)]
    first, second = ([example.words[0] for example in part.train + part.validation + part.test] for part in parts)
    assert first == second


def test_too_few_texts_are_refused():
    rows = [TextExample("same", ("x",))] * 50
    with pytest.raises(ConfigurationError, match="1 different texts are too few"):
        split(rows, validation_share=0.1, test_share=0.1, seed=0)


def test_examples_with_held_out_texts_are_left_out():
    def example(text: str, pair: str | None = None) -> TextExample:
        return TextExample(text, ("y",), pair)

    examples = [example("a"), example("b"), example("a", "b"), example("a", "c")]
    held_out = [TextExample("a", ("other",)), example("a", "c"), example("d")]
    assert without_texts_of(examples, held_out) == [example("b"), example("a", "b")]
