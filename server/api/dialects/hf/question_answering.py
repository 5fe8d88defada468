"""``POST /question-answering``: the parts of a text that answer a question, in the shapes of Hugging Face's API.

Models of T5's kind have no head for it: they write their answers.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Response
from pydantic import Field
from typing_extensions import TypedDict

from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, StrictModel, one_error
from server.api.context import Context, ContextDep
from server.api.encode.run import run
from server.api.http.dialect import SLUICE
from server.api.http.json_reply import json_reply
from server.errors import UnsupportedParameter
from server.sentences import Reader
from server.serving.generator import ServedGenerator
from server.serving.question_answerer import AnswerOptions, Question, ServedQuestionAnswerer
from server.serving.written_answers import AnswerWriter, WrittenAnswer
from server.text.answers import AnswerRules

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
    """Maximum length of an answer in tokens. Default 15; of a model that writes, its own default."""
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
    template: str | None = None
    """The name of a template with the variables question and context, for an encoder-decoder model that shall be asked
    in other words."""
    model: str | None = None
    """The name of a served model for question answering or of T5's kind; without it the first one for question
    answering, or else the first of T5's kind. With template the name of any encoder-decoder model."""


class AnswerReply(TypedDict):
    """One answer, ``context[start:end]``; empty where the context has none.

    ``start`` and ``end`` are null where a model wrote an answer that the context does not contain.
    """

    score: float
    start: int | None
    end: int | None
    answer: str


AnswersReply = AnswerReply | list[AnswerReply] | list[AnswerReply | list[AnswerReply]]

READER = Reader({"max_new_tokens": "parameters.max_answer_len"}, parameters=QuestionAnsweringParameters.model_fields)
OF_WINDOWS = ("max_seq_len", "doc_stride", "max_question_len")


@router.post("/question-answering", response_model=AnswersReply)
async def question_answering(body: QuestionAnsweringRequest, context: ContextDep) -> Response:
    """Find the part of ``context`` that answers ``question``, or let a model of T5's kind write the answer.

    The response is one answer, or a list of up to ``top_k`` answers if ``top_k`` is above 1; for a list of inputs, a
    list of these. ``start`` and ``end`` count characters of the context. A context longer than the model is read in
    windows that overlap by ``doc_stride`` tokens; a model that writes refuses it.
    """
    is_one = isinstance(body.inputs, QuestionBody)
    inputs = [body.inputs] if isinstance(body.inputs, QuestionBody) else body.inputs
    questions = [Question(each.question, each.context) for each in inputs]
    parameters = body.parameters or QuestionAnsweringParameters()
    context.record.reader = READER
    if body.template is None:
        served = context.registry.answerer(body.model)
    else:
        served = context.registry.encoder_decoders(body.model)[0]
    if isinstance(served, ServedGenerator):
        results = await _written(context, served, questions, parameters, body.template)
    else:
        results = await _found(context, served, questions, parameters)
    replies = [answers if (parameters.top_k or 1) > 1 else answers[0] for answers in results]
    return json_reply(replies[0] if is_one else replies)


async def _found(
    context: Context,
    served: ServedQuestionAnswerer,
    questions: list[Question],
    parameters: QuestionAnsweringParameters,
) -> list[list[AnswerReply]]:
    options = _options(parameters)
    results = await run(context, served, questions, lambda record: served.answer(questions, options, record))
    return [
        [{"score": found.score, "start": found.start, "end": found.end, "answer": found.answer} for found in answers]
        for answers in results
    ]


async def _written(
    context: Context,
    served: ServedGenerator,
    questions: list[Question],
    parameters: QuestionAnsweringParameters,
    template: str | None,
) -> list[list[AnswerReply]]:
    for name in OF_WINDOWS:
        if getattr(parameters, name) is not None:
            raise UnsupportedParameter(name, "this model writes its answers and reads a context as a whole")
    if parameters.handle_impossible_answer:
        raise UnsupportedParameter("handle_impossible_answer", "this model writes its answers, also empty ones")
    if parameters.align_to_words is False:
        raise UnsupportedParameter("align_to_words", "this model writes its answers")
    record = context.record
    record.task, record.model, record.num_inputs = served.ready.task, served.name, len(questions)
    writer = AnswerWriter(served, template, top_k=parameters.top_k or 1, max_tokens=parameters.max_answer_len)
    await context.until_disconnect(writer.prepare(questions))
    results = await context.until_disconnect(writer.answers(record))
    return [[_written_reply(answer) for answer in answers] for answers in results]


def _written_reply(answer: WrittenAnswer) -> AnswerReply:
    start, end = answer.place or (None, None)
    return {"score": answer.score, "start": start, "end": end, "answer": answer.answer}


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
