"""``POST /question-answering``: the parts of a text that answer a question, in the shapes of Hugging Face's API."""

from __future__ import annotations

from typing import Annotated

from fastapi import Response
from pydantic import Field
from typing_extensions import TypedDict

from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, StrictModel, one_error
from server.api.context import ContextDep
from server.api.encode.run import run
from server.api.http.dialect import SLUICE
from server.api.http.json_reply import json_reply
from server.sentences import Reader
from server.serving.question_answerer import AnswerOptions, Question, ServedQuestionAnswerer
from server.text.answers import Answer, AnswerRules

router = DialectRouter(SLUICE)

Count = Annotated[int, Field(ge=1)]


class QuestionBody(StrictModel):
    """A question and the text that holds its answer. Both must contain more than spaces."""

    question: str
    context: str


class QuestionAnsweringParameters(StrictModel):
    """Which answers come back, and how a long context is read."""

    top_k: Count | None = None
    """Return up to this many answers, the best first. Above 1 the response is a list. Default 1."""
    max_answer_len: Count | None = None
    """Maximum length of an answer in tokens. Default 15."""
    handle_impossible_answer: bool | None = None
    """Whether an empty answer, which says that the context has none, is one of the answers. Default false."""
    align_to_words: bool | None = None
    """Whether answers are whole words, in scripts that put spaces between words. Default true."""
    max_seq_len: Count | None = None
    """Maximum length of a window in tokens, with the question and special tokens. Default 384, or the model's limit if
    smaller."""
    doc_stride: Annotated[int, Field(ge=0)] | None = None
    """Tokens of the context that neighbouring windows share. Default 128, or half of max_seq_len if smaller."""
    max_question_len: Count | None = None
    """Cut a longer question to this many tokens. By default questions are never cut."""


class QuestionAnsweringRequest(StrictModel):
    """Body of ``POST /question-answering``."""

    inputs: Annotated[
        QuestionBody | Annotated[list[QuestionBody], STOP_AT_FIRST_ERROR, NOT_EMPTY],
        one_error("an object of question and context, or a list of these"),
    ]
    """A list must contain at least one question."""
    parameters: QuestionAnsweringParameters | None = None
    model: str | None = None
    """The name of a served model for question answering; without it the first one."""


class AnswerReply(TypedDict):
    """One answer, ``context[start:end]``; empty where the context has none."""

    score: float
    start: int
    end: int
    answer: str


AnswersReply = AnswerReply | list[AnswerReply] | list[AnswerReply | list[AnswerReply]]


@router.post("/question-answering", response_model=AnswersReply)
async def question_answering(body: QuestionAnsweringRequest, context: ContextDep) -> Response:
    """Find the part of ``context`` that answers ``question``.

    The response is one answer, or a list of up to ``top_k`` answers if ``top_k`` is above 1; for a list of inputs, a
    list of these. ``start`` and ``end`` count characters of the context. A context longer than the model is read in
    windows that overlap by ``doc_stride`` tokens.
    """
    served = context.registry.get(ServedQuestionAnswerer, body.model)
    is_one = isinstance(body.inputs, QuestionBody)
    inputs = [body.inputs] if isinstance(body.inputs, QuestionBody) else body.inputs
    questions = [Question(each.question, each.context) for each in inputs]
    parameters = body.parameters or QuestionAnsweringParameters()
    options = _options(parameters)
    results = await run(
        context,
        served,
        questions,
        lambda record: served.answer(questions, options, record),
        Reader(parameters=QuestionAnsweringParameters.model_fields),
    )
    replies = [_reply(answers, options.rules.top_k) for answers in results]
    return json_reply(replies[0] if is_one else replies)


def _options(parameters: QuestionAnsweringParameters) -> AnswerOptions:
    usual = AnswerRules()
    rules = AnswerRules(
        top_k=parameters.top_k or usual.top_k,
        max_tokens=parameters.max_answer_len or usual.max_tokens,
        whole_words=usual.whole_words if parameters.align_to_words is None else parameters.align_to_words,
        may_be_impossible=bool(parameters.handle_impossible_answer),
    )
    return AnswerOptions(
        rules=rules,
        max_seq_len=parameters.max_seq_len,
        doc_stride=parameters.doc_stride,
        max_question_len=parameters.max_question_len,
    )


def _reply(answers: list[Answer], top_k: int) -> AnswerReply | list[AnswerReply]:
    replies = [_answer(answer) for answer in answers]
    return replies if top_k > 1 else replies[0]


def _answer(answer: Answer) -> AnswerReply:
    return {"score": answer.score, "start": answer.start, "end": answer.end, "answer": answer.answer}
