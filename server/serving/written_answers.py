"""Answers that an encoder-decoder model writes to questions about texts: asked in T5's words, or by a template."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import InvalidParameter
from server.length_errors import BatchTooLarge
from server.sentences import sentence
from server.serving.generation import Generation
from server.serving.generator import ServedGenerator
from server.serving.hypotheses import best, max_hypotheses
from server.serving.options.table import GenerateOptions
from server.serving.output_text import OutputText
from server.serving.prompts import PromptSource
from server.serving.question_answerer import Question
from server.serving.record import RequestRecord
from server.text.languages import Direction
from server.text.sentence_split import is_blank

WORDS = "question: {question} context: {context}"
"""What T5's kind was trained to read for SQuAD."""
ADVICE = sentence("Shorten the context: it is not read in windows by this model.")
AS_WRITTEN = Direction(source=None, target=None)


@dataclass(frozen=True)
class WrittenAnswer:
    """One answer, which need not stand in the context."""

    answer: str
    score: float
    """The probability that the model writes it."""
    place: tuple[int, int] | None
    """Where it first stands in the context, as whole words if it does anywhere."""


class AnswerWriter:
    """One request for answers."""

    def __init__(self, served: ServedGenerator, template: str | None, *, top_k: int, max_tokens: int | None) -> None:
        """Raises `InvalidParameter` for more answers than one request may have."""
        if top_k > (limit := max_hypotheses(served)):
            raise InvalidParameter("top_k", top_k, f"must be from 1 to {limit}, for each one is a beam")
        self._served = served
        self._template = template
        self._options = GenerateOptions(
            do_sample=False, details=True, max_new_tokens=max_tokens, **best(top_k, served, {})
        )
        self._generations: list[Generation] = []
        self._contexts: list[str] = []

    async def prepare(self, questions: Sequence[Question]) -> None:
        """Make the generations. All that can be refused is refused here."""
        for question in questions:
            for name, text in question._asdict().items():
                if is_blank(text):
                    raise InvalidParameter(f"inputs.{name}", text, "must contain more than spaces")
        if len(questions) > (limit := self._served.config.max_batch_inputs):
            raise BatchTooLarge(len(questions), limit)
        prompts = [
            prompt
            for source in self._sources(questions)
            for prompt in await self._served.prepare(source, self._options)
        ]
        self._generations = [self._served.start(prompt) for prompt in prompts]
        self._contexts = [question.context for question in questions]

    def _sources(self, questions: Sequence[Question]) -> list[PromptSource]:
        if self._template is None:
            texts = [WORDS.format(**question._asdict()) for question in questions]
            return [PromptSource(texts=texts, direction=AS_WRITTEN, advice=ADVICE)]
        return [
            PromptSource(template=self._template, variables=question._asdict(), advice=ADVICE) for question in questions
        ]

    async def answers(self, record: RequestRecord) -> list[list[WrittenAnswer]]:
        """For each question its answers, the best first."""
        await self._served.generate(self._generations, record)
        return [
            _answers(generation.answers, context)
            for generation, context in zip(self._generations, self._contexts, strict=True)
        ]


def _answers(outputs: Sequence[OutputText], context: str) -> list[WrittenAnswer]:
    """Of outputs that differ only in their tokens, or in spaces around the text, the likeliest."""
    found: dict[str, WrittenAnswer] = {}
    for output in outputs:
        text, score = output.text.strip(), math.exp(output.sum_logprobs)
        if text not in found or score > found[text].score:
            found[text] = WrittenAnswer(text, score, _place(text, context))
    return sorted(found.values(), key=lambda answer: -answer.score)


def _place(text: str, context: str) -> tuple[int, int] | None:
    part = re.escape(text)
    found = re.search(rf"(?<!\w){part}(?!\w)", context) or re.search(part, context)
    return found.span() if found and text else None
