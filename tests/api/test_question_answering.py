"""``/question-answering`` gives the answers of transformers' pipeline, as parts of the text that was sent."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from tokenizers import normalizers

from server.serving import question_answerer
from server.text import answers
from tests.api import answer_oracle
from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import FAMILIES, TEXTS, tiny_encoder, tiny_tokenizer

BEST_SPANS = answers.best_spans
QUESTION = "Who lives in Chicago?"
DOCUMENT = " ".join(TEXTS[:2] * 5)
SPACED = [TEXTS[0], TEXTS[1], TEXTS[3]]
WORDS = "\u0e41\u0e21\u0e27 cafe\u0301 nai\u0308ve \u202e\u05d0\u05d1\u05d2\u202c x\u0301\u0301 "


@cache
def worker(family: str = "bert") -> EngineWorker:
    return tiny_worker("answers", family, "question-answering")


@cache
def model(family: str) -> Any:
    return tiny_encoder(family, "question-answering")


def asked(context: Any, question: str = QUESTION) -> Any:
    return [{"question": question, "context": each} for each in context] if isinstance(context, list) else {
        "question": question, "context": context
    }  # fmt: skip


def post(
    served: EngineWorker,
    inputs: Any,
    *,
    status: int = 200,
    settings: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Any:
    body = {"inputs": inputs, "parameters": parameters}
    response = client_of(served, **(settings or {})).post("/question-answering", json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def expected(family: str, context: str, **parameters: Any) -> list[dict[str, Any]]:
    return answer_oracle.answers(model(family), tiny_tokenizer(FAMILIES[family][0]), QUESTION, context, **parameters)


def assert_same(actual: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [answer["score"] for answer in actual] == pytest.approx([answer["score"] for answer in wanted], abs=1e-5)
    keys = ("answer", "start", "end")
    assert [[answer[key] for key in keys] for answer in actual] == [[answer[key] for key in keys] for answer in wanted]


@pytest.mark.parametrize("align_to_words", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_pipelines_answers_in_one_batch(family: str, align_to_words: bool) -> None:
    parameters = {"top_k": 5, "handle_impossible_answer": True, "align_to_words": align_to_words}
    for context, actual in zip(SPACED, post(worker(family), asked(SPACED), **parameters), strict=True):
        assert_same(actual, expected(family, context, **parameters))


@pytest.mark.parametrize("context", [TEXTS[2], TEXTS[4], TEXTS[5], TEXTS[7]])
def test_texts_of_other_scripts_get_the_pipelines_answers(context: str) -> None:
    assert_same(post(worker(), asked(context), top_k=4), expected("bert", context, top_k=4))


@pytest.mark.parametrize(
    "parameters", [{}, {"doc_stride": 0}, {"doc_stride": 20}, {"max_seq_len": 40, "doc_stride": 9}]
)
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_long_context_is_read_in_the_pipelines_windows(family: str, parameters: dict[str, Any]) -> None:
    parameters = {"top_k": 6, "handle_impossible_answer": True, **parameters}
    num_before = len(worker(family).batch_sizes)
    assert_same(post(worker(family), asked(DOCUMENT), **parameters), expected(family, DOCUMENT, **parameters))
    assert sum(worker(family).batch_sizes[num_before:]) > 3


@pytest.mark.parametrize("max_answer_len", [1, 2, 40])
def test_an_answer_has_at_most_max_answer_len_tokens(max_answer_len: int) -> None:
    parameters = {"max_answer_len": max_answer_len, "top_k": 3, "align_to_words": False}
    assert_same(post(worker(), asked(TEXTS[0]), **parameters), expected("bert", TEXTS[0], **parameters))


def test_one_answer_is_an_object_and_several_are_a_list() -> None:
    one, several = post(worker(), asked(TEXTS[0])), post(worker(), asked(TEXTS[0]), top_k=2)
    assert set(one) == {"score", "start", "end", "answer"}
    assert len(several) == 2 and several[0]["score"] >= several[1]["score"]
    assert all(set(answer) == set(one) for answer in several)
    assert post(worker(), asked([TEXTS[0]])) == [one]
    assert post(worker(), asked([TEXTS[0]]), top_k=2) == [several]


def test_a_short_context_has_as_many_answers_as_it_has_spans() -> None:
    assert [answer["answer"] for answer in post(worker(), asked("x"), top_k=9)] == ["x"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("align_to_words", [True, False])
def test_answers_are_parts_of_the_text_without_loose_spaces_or_marks(family: str, align_to_words: bool) -> None:
    contexts = [*TEXTS, WORDS, f"  {WORDS * 3}\n"]
    for context, found in zip(
        contexts, post(worker(family), asked(contexts), top_k=9, align_to_words=align_to_words), strict=True
    ):
        assert found
        for answer in found:
            text = context[answer["start"] : answer["end"]]
            assert text == answer["answer"] == text.strip() != ""
            assert not unicodedata.category(text[0]).startswith("M")
            assert not unicodedata.category(context[answer["end"] : answer["end"] + 1] or "x").startswith("M")


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_an_answer_in_a_script_without_spaces_is_not_widened_to_the_whole_sentence(family: str) -> None:
    context = TEXTS[2]
    found = post(worker(family), asked(context), top_k=5)
    assert len(found) == 5 and sum(answer["answer"] == context for answer in found) <= 1


def test_a_question_is_cut_only_where_max_question_len_says_so() -> None:
    start = "who lives in chicago"
    long = f"{start} and sings near the old stone bridge"
    num_tokens = len(tiny_tokenizer("wordpiece").tokenize(start))
    cut = post(worker(), asked(TEXTS[0], long), max_question_len=num_tokens)
    assert cut == pytest.approx(post(worker(), asked(TEXTS[0], start)))
    assert cut != post(worker(), asked(TEXTS[0], long)) == post(worker(), asked(TEXTS[0], long), max_question_len=99)


def test_questions_of_one_request_share_batches() -> None:
    num_before = len(worker().batch_sizes)
    post(worker(), asked(TEXTS[:4]))
    assert worker().batch_sizes[num_before:] == [4]


@pytest.mark.parametrize(
    ("inputs", "parameters", "param"),
    [
        (asked(""), {}, "inputs.context"),
        (asked(" \n"), {}, "inputs.context"),
        (asked("x", " "), {}, "inputs.question"),
        (asked([]), {}, "inputs"),
        ("Who?", {}, "inputs"),
        ({"question": "Who?"}, {}, "inputs"),
        ({**asked("x"), "id": 1}, {}, "inputs"),
        (asked("x"), {"top_k": 0}, "parameters.top_k"),
        (asked("x"), {"top_k": 32_769}, "parameters.top_k"),
        (asked(["x", "x"]), {"top_k": 16_385}, "parameters.top_k"),
        (asked("x"), {"top_k": True}, "parameters.top_k"),
        (asked("x"), {"max_answer_len": 0}, "parameters.max_answer_len"),
        (asked("x"), {"max_question_len": 0}, "parameters.max_question_len"),
        (asked("x"), {"max_seq_len": 65}, "parameters.max_seq_len"),
        (asked("x"), {"doc_stride": -1}, "parameters.doc_stride"),
        (asked("x"), {"doc_stride": 64}, "parameters.doc_stride"),
        (asked("x"), {"handle_impossible_answer": "yes"}, "parameters.handle_impossible_answer"),
        (asked("x"), {"align_to_word": True}, "parameters.align_to_word"),
        (asked("x", "bob " * 70), {}, "inputs.question"),
        (asked("x"), {"max_seq_len": 6}, "inputs.question"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(inputs: Any, parameters: dict[str, Any], param: str) -> None:
    assert post(worker(), inputs, status=422, **parameters)["param"] == param


def test_a_context_whose_tokens_are_all_spaces_is_refused() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("metaspace"))
    # As ALBERT's and XLNet's: accents go, and spaces stay.
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    blank = EngineWorker("answers", "question-answering", model("xlm-roberta"), tokenizer)
    error = post(blank, asked(" \u0301"), status=422)
    assert error["param"] == "inputs.context"
    assert "must have at least one token that is more than spaces" in error["message"]


def test_a_stride_that_is_too_large_is_refused_with_its_limit() -> None:
    message = post(worker(), asked("x", "who?"), status=422, doc_stride=60)["message"]
    assert message == "doc_stride is 60: it must be 0 to 56, less than the 57 tokens of the context in a window."


def test_more_answers_than_a_response_holds_are_refused_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_answerer, "MAX_ANSWERS", 8)
    num_before = len(worker().batch_sizes)
    error = post(worker(), asked(["x", "y"]), status=422, top_k=5)
    assert error["message"].startswith("top_k is 5: it must be from 1 to 4 for 2 windows and ")
    assert len(worker().batch_sizes) == num_before


def test_every_window_counts_towards_the_answers_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[int] = []
    monkeypatch.setattr(answers, "best_spans", lambda *a, **k: windows.append(k["num_spans"]) or BEST_SPANS(*a, **k))
    post(worker(), asked(DOCUMENT))
    num_windows = len(windows)
    assert num_windows > 3
    monkeypatch.setattr(question_answerer, "MAX_ANSWERS", 4 * num_windows)
    error = post(worker(), asked(DOCUMENT), status=422, top_k=5)
    wanted = f"top_k is 5: it must be from 1 to 4 for {num_windows} windows and answers of up to 15 tokens."
    assert error["message"] == wanted
    windows.clear()
    assert len(post(worker(), asked(DOCUMENT), top_k=4)) == 4
    assert windows == [18] * num_windows


def test_long_answers_leave_room_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_answerer, "MAX_ANSWER_TOKENS", 40)
    context = "Alice met Bob in Chicago and New York City"
    assert len(post(worker(), asked(context), top_k=8, max_answer_len=5)) == 8
    assert post(worker(), asked(context), status=422, top_k=9, max_answer_len=5)["param"] == "parameters.top_k"
    assert post(worker(), asked(context), max_answer_len=1_000_000)["answer"]


def test_windows_that_are_together_too_long_are_refused_before_the_model_runs() -> None:
    settings = {"max_queued_tokens": 400}
    assert post(worker(), asked(DOCUMENT), settings=settings, doc_stride=2)
    num_before = len(worker().batch_sizes)
    error = post(worker(), asked(DOCUMENT), status=422, settings=settings, doc_stride=50)
    assert error["code"] == "context_length_exceeded" and "doc_stride" in error["message"]
    assert len(worker().batch_sizes) == num_before


def test_info_tells_the_limits() -> None:
    [described] = client_of(worker()).get("/info").json()["models"]
    assert described["task"] == "question-answering"
    assert described["default_max_seq_len"] == 64 and described["default_doc_stride"] == 32
