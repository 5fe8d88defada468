"""``/question-answering`` by models that write: what they read, what they are asked for, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient

from server.protocol import Generate, Tokens
from server.serving.options.table import MAX_OUTPUTS
from tests.api.scripted import END_ID, MAX_MODEL_LEN, TOKENIZER, Script, ScriptedWorker, Step
from tests.api.shell import listening
from tests.api.translators import MANY, client_of, serving, translator
from tests.encoder_app import tiny_worker

INPUTS = {"question": "Who?", "context": "Ann met Bob."}


def writes(*texts: str) -> Script:
    """Each output is one of the texts; each token has the log-probability -0.5."""

    def script(command: Generate) -> Iterator[Step]:
        for number in range(command.params.num_return_sequences):
            for id_ in TOKENIZER.encode(texts[number]).ids:
                yield Tokens(command.request_id, [id_], None, [-0.5], index=number)
            yield Tokens(command.request_id, [END_ID], "stop", [-0.5], index=number)

    return script


def answerer(*texts: str, **facts: Any) -> ScriptedWorker:
    return translator("writer", None, writes(*texts), can_answer=True, **facts)


def post(client: TestClient, status: int = 200, **body: Any) -> Any:
    response = client.post("/question-answering", json={"inputs": INPUTS, **body})
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def probability(text: str) -> float:
    return math.exp(-0.5 * (len(TOKENIZER.encode(text).ids) + 1))


def test_the_model_reads_question_and_context_and_its_answer_is_found_in_the_context():
    worker = answerer(" Bob ")
    answer = post(client_of(worker))
    assert TOKENIZER.decode(worker.commands[0].source_ids) == "question: Who? context: Ann met Bob."
    score = pytest.approx(probability(" Bob "))
    assert answer == {"score": score, "start": 8, "end": 11, "answer": "Bob"}


def test_an_answer_that_is_not_in_the_context_has_no_place():
    for text in ("Carol", ""):
        answer = post(client_of(answerer(text)))
        assert (answer["answer"], answer["start"], answer["end"]) == (text, None, None)


@pytest.mark.parametrize(
    ("text", "context", "start"),
    [
        ("he", "the man said he left", 13),
        ("7", "17 of 7.", 6),
        ("京", "東京 に", 1),
        ("$5", "US$5", 2),
        (".*", "a .*", 2),
    ],
)
def test_the_place_of_an_answer_is_one_of_whole_words_if_possible(text: str, context: str, start: int):
    answer = post(client_of(answerer(text)), inputs={"question": "Who?", "context": context})
    assert (answer["answer"], answer["start"], answer["end"]) == (text, start, start + len(text))


def test_several_answers_are_hypotheses_without_repetitions_the_likeliest_first():
    worker = answerer("Ann and Bob", "Bob", " Bob ")
    answers = post(client_of(worker), parameters={"top_k": 3, "max_answer_len": 9, "align_to_words": True})
    assert [answer["answer"] for answer in answers] == ["Bob", "Ann and Bob"]
    assert answers[0]["score"] == pytest.approx(probability("Bob")) and answers[0]["score"] > answers[1]["score"]
    params = worker.commands[0].params
    assert (params.num_beams, params.num_return_sequences, params.max_new_tokens) == (3, 3, 9)


@pytest.mark.parametrize(("usual", "asked"), [(4, 4), (65, 2)])
def test_several_answers_come_from_the_models_beams_where_so_many_can_run(usual: int, asked: int):
    worker = answerer("Ann", "Bob", generation_config={"num_beams": usual})
    assert len(post(client_of(worker), parameters={"top_k": 2})) == 2
    assert worker.commands[0].params.num_beams == asked


def test_a_list_of_questions_gets_a_list_of_answers():
    assert [answer["answer"] for answer in post(client_of(answerer("Bob")), inputs=[INPUTS, INPUTS])] == ["Bob"] * 2


def test_an_answer_is_never_drawn():
    worker = answerer("Bob", generation_config={"do_sample": True, "temperature": 2.0})
    post(client_of(worker))
    assert not worker.commands[0].params.do_sample


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"doc_stride": 1}, "reads a context as a whole"),
        ({"max_seq_len": 100}, "reads a context as a whole"),
        ({"max_question_len": 5}, "reads a context as a whole"),
        ({"handle_impossible_answer": True}, "writes its answers"),
        ({"align_to_words": False}, "writes its answers"),
        ({"top_k": MAX_OUTPUTS + 1}, f"from 1 to {MAX_OUTPUTS}"),
        ({"max_answer_len": MAX_MODEL_LEN + 1}, f"at most {MAX_MODEL_LEN - 1}"),
    ],
)
def test_parameters_that_it_cannot_honour_are_refused_by_name(parameters: dict[str, Any], said: str):
    error = post(client_of(answerer("Bob")), 422, parameters=parameters)
    (name,) = parameters
    assert error["param"] == f"parameters.{name}"
    assert said in error["message"]


def test_neutral_parameters_are_taken():
    neutral = {"handle_impossible_answer": False, "align_to_words": True, "top_k": 1}
    assert post(client_of(answerer("Bob")), parameters=neutral)["answer"] == "Bob"


def test_a_context_that_is_too_long_is_refused_with_numbers():
    error = post(client_of(answerer("Bob")), 422, inputs={**INPUTS, "context": "Ann met Bob. " * 500})
    assert error["code"] == "context_length_exceeded" and str(MAX_MODEL_LEN) in error["message"]
    assert "Shorten the context" in error["message"] and "truncate" not in error["message"]


@pytest.mark.parametrize("name", INPUTS)
def test_a_blank_question_or_context_is_refused(name: str):
    error = post(client_of(answerer("Bob")), 422, inputs={**INPUTS, name: " \n"})
    assert error["param"] == f"inputs.{name}"


def test_a_model_with_a_head_comes_first_and_others_are_found_by_name():
    extractive = tiny_worker("answers", "bert", "question-answering")
    client = client_of(answerer("Carol"), extractive)
    assert post(client)["answer"] != "Carol"
    assert post(client, model="writer")["answer"] == "Carol"


def test_a_translator_answers_no_questions():
    client = client_of(translator("many", MANY))
    assert post(client, 404)["code"] == post(client, 404, model="many")["code"] == "model_not_found"


def test_hugging_faces_client_reads_both_shapes():
    with listening(client_of(answerer("Bob", "Carol")).app) as port:
        client = InferenceClient(f"http://127.0.0.1:{port}/question-answering")
        answer = client.question_answering(**INPUTS)
        answers = client.question_answering(**INPUTS, top_k=2, max_answer_len=5)
    assert (answer.answer, answer.start, answer.end) == ("Bob", 8, 11)
    assert {(each.answer, each.start) for each in answers} == {("Bob", 8), ("Carol", None)}


def test_a_template_asks_any_encoder_decoder_in_its_own_words(tmp_path: Path):
    text = "{{ context }} / {{ question }}"
    variables = "[variables.question]\n[variables.context]\n"
    (tmp_path / "squad.toml").write_text(f'task = "generate"\ntext = "{text}"\n{variables}')
    worker = translator("many", MANY, writes("Bob"))
    with serving(worker, templates=str(tmp_path)) as client:
        assert [answer["answer"] for answer in post(client, template="squad", inputs=[INPUTS] * 2)] == ["Bob", "Bob"]
        assert TOKENIZER.decode(worker.commands[0].source_ids) == "Ann met Bob. / Who?"
        assert post(client, 404, template="nothing")["code"] == "template_not_found"
