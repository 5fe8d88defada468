"""Data for question answering is read as people have it, and its answers become places in windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers, pre_tokenizers, processors

from server.errors import ConfigurationError
from server.finetune.options import Options
from server.finetune.question_answering import AnswerQuestions
from server.finetune.questions import QuestionExample, read_questions
from server.finetune.scores import answer_scores
from server.finetune.splitting import split
from server.models.tokenizer_files import load_tokenizer
from tests.finetune.bases import squad, write_base

Write = Callable[[str, Any], Path]
CONTEXT = "\U0001f600 Anna lives in Bern"
ANNA = {"question": "Who?", "context": CONTEXT, "answers": {"text": ["Anna"], "answer_start": [2]}}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def asked(**fields: Any) -> dict[str, Any]:
    return {"id": "1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 2}], **fields}


def trained(path: Path, **options: Any) -> AnswerQuestions:
    return AnswerQuestions(Options(task="qa", model="base", data=str(path), out="out", **options))


def test_squad_1_squad_2_and_json_lines_are_read_alike(write: Write) -> None:
    anna = QuestionExample("Who?", CONTEXT, (("Anna", 2),))
    nobody = QuestionExample("Where?", CONTEXT, ())
    flat = {**ANNA, "answers": [{"text": "Anna", "answer_start": 2}]}
    for path in (
        write("1.json", squad([(CONTEXT, [asked()])])),
        write("a.jsonl", json.dumps(ANNA)),
        write("b.jsonl", json.dumps(flat)),
    ):
        assert read_questions(path) == ([anna], [])
    second = asked(question="Where?", answers=[], is_impossible=True, plausible_answers=[])
    impossible = json.dumps({**ANNA, "question": "Where?", "answers": {"text": [], "answer_start": []}})
    for path in (
        write("2.json", squad([(CONTEXT, [asked(is_impossible=False), second])])),
        write("c.jsonl", f"{json.dumps(ANNA)}\n{impossible}\n"),
    ):
        assert read_questions(path) == ([anna, nobody], ["1 without an answer in their text"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "question,context\n", "a .json file like SQuAD's"),
        ("a.jsonl", {**ANNA, "answers": {"text": ["Anna"], "answer_start": [3]}}, "line 1: the answer 'Anna' does not"),
        ("a.jsonl", {**ANNA, "answers": {"text": ["Anna"], "answer_start": ["2"]}}, "answer_start is '2'"),
        ("a.jsonl", {**ANNA, "answers": {"text": ["Anna"], "answer_start": []}}, "1 texts and 0 starts"),
        ("a.jsonl", {**ANNA, "answers": {"text": [""], "answer_start": [0]}}, "an answer is not a string with words"),
        ("a.jsonl", {**ANNA, "context": " "}, "the context is not a string with words"),
        ("a.jsonl", {"question": "Who?", "context": CONTEXT}, "line 1: answers is missing"),
        ("a.json", squad([(CONTEXT, [asked(is_impossible=True)])]), "paragraph 1, question 1: is_impossible is true"),
        ("a.json", squad([(CONTEXT, [asked(answers=[], is_impossible=False)])]), "is_impossible is false"),
        ("a.json", {"data": [{"title": "x"}]}, "article 1: paragraphs is missing"),
        ("a.json", {"data": []}, "holds no questions"),
        ("a.json", {"data": None}, "data must be a list"),
        ("a.jsonl", {**ANNA, "answers": None}, "line 1: answers must be a list"),
        ("a.jsonl", {**ANNA, "answers": {"text": None, "answer_start": []}}, "line 1: text must be a list"),
        ("a.json", squad([(CONTEXT, [asked(is_impossible="false")])]), "question 1: is_impossible is 'false'. It must"),
        ("a.jsonl", {**ANNA, "answers": [], "is_impossible": 1}, "line 1: is_impossible is 1. It must"),
        ("a.jsonl", {**ANNA, "is_impossible": 0}, "line 1: is_impossible is 0. It must"),
        ("a.json", squad([("\ud83d Anna", [asked()])]), "question 1: the context has half of a surrogate pair"),
        ("a.json", squad([(CONTEXT, [asked(question="\ud83d")])]), "question 1: the question has half of a surrogate"),
        ("a.json", '{\n  "data": [\n    {"title": "x",}\n  ]\n}\n', "a.json, line 3: it is not JSON ("),
        ("a.json", '{\n  "data": [\n', "a.json, line 2: it is not JSON (Expecting value at column 12)."),
        ("a.json", "[\n{}\n]\n", "a.json: data is missing. Write an object like SQuAD's, or one object a line."),
        pytest.param("a.json", '{\n"data": ' + "9" * 5000 + "}", "a.json: a number has too many digits.", id="digits"),
        pytest.param("a.json", '{\n"data": ' + "[" * 100_000, "a.json: its JSON is nested too deeply.", id="deep"),
        ("a.json", json.dumps(ANNA) + "\n{", "a.json, line 2: it is not JSON"),
    ],
)
def test_mistakes_are_refused_with_their_place(write: Write, name: str, content: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_questions(write(name, content))
    assert words in str(refused.value)


def test_data_without_any_answer_is_refused(write: Write) -> None:
    path = write("a.jsonl", {**ANNA, "answers": []})
    task = trained(path)
    with pytest.raises(ConfigurationError, match="No question in --data has an answer"):
        task.set_labels(task.read(path)[0])


@pytest.mark.parametrize("option", ["text_column", "label_column", "text_pair_column", "label_names"])
def test_options_of_other_tasks_are_refused_by_name(write: Write, option: str) -> None:
    with pytest.raises(ConfigurationError, match="--" + option.replace("_", "-")):
        trained(write("a.jsonl", ANNA), **{option: "x"})


def test_the_answer_is_found_in_every_window_that_holds_it_and_nowhere_else(write: Write, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_base(tmp_path / "base"))
    context = " ".join(["the film was a story"] * 8 + ["Anna Ben lives in Bern"] + ["quite today"] * 8)
    example = QuestionExample("Ben", context, (("Anna Ben", context.index("Anna")),))
    task = trained(write("a.jsonl", ANNA))
    windows = [window for _, window in task.encodings([example], tokenizer, 24, "train")]
    assert len(windows) > 4
    found = 0
    for window in windows:
        labels = task.labelled(example, window)
        tokens = [tokenizer.convert_ids_to_tokens(token) for token in window.ids]
        assert len(tokens) <= 24 and tokens[:3] == ["[CLS]", "Ben", "[SEP]"] and tokens[-1] == "[SEP]"
        holds = "Anna" in tokens and tokens[tokens.index("Anna") + 1] == "Ben"
        place = tokens.index("Anna") if holds else 0
        assert labels == {"start_positions": place, "end_positions": place + 1 if holds else 0}
        found += holds
    assert found >= 2


def test_a_question_that_fills_the_window_is_refused(write: Write, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_base(tmp_path / "base"))
    example = QuestionExample("Ben " * 30, "Anna", (("Anna", 0),))
    with pytest.raises(ConfigurationError, match="leaves no room for its context"):
        trained(write("a.jsonl", ANNA)).encodings([example], tokenizer, 24, "train")


def test_a_context_whose_tokens_are_all_spaces_is_refused(write: Write, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_base(tmp_path / "base"))
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(ConfigurationError, match="has a context without tokens of words"):
        trained(write("a.jsonl", ANNA)).encodings([QuestionExample("Ben", " \u0301", ())], tokenizer, 24, "train")


def test_a_tokenizer_that_pads_on_the_left_is_refused(write: Write, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_base(tmp_path / "base"))
    tokenizer.padding_side = "left"
    with pytest.raises(ConfigurationError, match="pads on the left"):
        trained(write("a.jsonl", ANNA)).encodings([QuestionExample("Ben", "Anna", ())], tokenizer, 24, "train")


@pytest.mark.parametrize("pair", ["$A [SEP] $B [SEP]", "$A $B"])
def test_a_tokenizer_without_a_token_for_no_answer_is_refused(write: Write, tmp_path: Path, pair: str) -> None:
    tokenizer = load_tokenizer(write_base(tmp_path / "base"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=pair.replace("$B", "$B:1"), special_tokens=[("[SEP]", 3)]
    )
    with pytest.raises(ConfigurationError, match="does not begin a text with a special token"):
        trained(write("a.jsonl", ANNA)).encodings([QuestionExample("Ben", "Anna", ())], tokenizer, 24, "train")


def test_all_questions_about_one_text_are_in_one_part() -> None:
    examples = [
        QuestionExample(f"{number}?", f"text {number % 12}", (("text", 0),) if number % 3 else ())
        for number in range(60)
    ]
    parts = split(examples, validation_share=0.2, test_share=0.2, seed=1)
    texts = [{example.context for example in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 12


@pytest.mark.parametrize(
    ("true", "predicted", "f1", "exact"),
    [
        (["the Rhine"], "Rhine.", 1, 1),
        (["in Bern", "Bern city"], "bern", 2 / 3, 0),
        (["Bern"], "", 0, 0),
        ([], "", 1, 1),
        ([], "Bern", 0, 0),
        (["a b c d"], "b c x", 2 * (2 / 3) * (2 / 3) / (4 / 3), 0),
    ],
)
def test_scores_are_squads(true: list[str], predicted: str, f1: float, exact: float) -> None:
    scores = answer_scores([true], [predicted])
    assert scores == {"f1": pytest.approx(f1), "exact_match": exact}
