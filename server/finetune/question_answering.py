"""Training a model to find the answers to questions, in windows as the server reads them.

Dimension key
    N  windows
    T  tokens of the longest
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray

from server.errors import ConfigurationError
from server.finetune.options import Options
from server.finetune.parts import Part
from server.finetune.questions import QuestionExample, read_questions
from server.finetune.scores import answer_scores
from server.finetune.tasks import TrainedTask
from server.tasks import QUESTION_ANSWERING
from server.text.answers import AnswerRules, find_answers
from server.text.question_windows import USUAL_SEQ_LEN, QuestionEncoding, question_encoding, usual_stride
from server.text.windows import strided_windows


@dataclass(frozen=True)
class QuestionWindow:
    """One window of an example; ids, types and mask as in ``tokenizers.Encoding``."""

    tokens: QuestionEncoding
    window: range

    @property
    def ids(self) -> list[int]:
        return self.tokens.cut(self.tokens.encoding.ids, self.window)

    @property
    def type_ids(self) -> list[int]:
        return self.tokens.cut(self.tokens.encoding.type_ids, self.window)

    @property
    def attention_mask(self) -> list[int]:
        return [1] * (self.tokens.num_frame_tokens + len(self.window))


class AnswerQuestions(TrainedTask):
    """The start and the end of an answer in a context; the first token stands for no answer.

    What is scored are the answers that the server would give.
    """

    task = QUESTION_ANSWERING
    best_score = "f1"
    pipeline_tag = "question-answering"
    metrics = ("f1", "exact_match")
    default_max_length = USUAL_SEQ_LEN
    length_note = "Texts were read in windows of {max_length} tokens."

    def __init__(self, options: Options) -> None:
        self.options = options
        self.labels: list[str] = []

    def read(self, path: Path) -> tuple[list[QuestionExample], list[str]]:
        return read_questions(path)

    def set_labels(self, examples: Iterable[QuestionExample]) -> None:
        answered = [bool(example.answers) for example in examples]
        if not any(answered):
            raise ConfigurationError("No question in --data has an answer.")
        self.has_impossible = not all(answered)

    def encodings(
        self,
        examples: Sequence[Any],
        tokenizer: Any,
        max_length: int,
        part: str,  # noqa: ARG002
    ) -> list[tuple[Any, Any]]:
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        if tokenizer.padding_side != "right":
            raise ConfigurationError(
                f"The base's tokenizer pads on the {tokenizer.padding_side}. Questions need one that pads on the right."
            )
        encodings = backend.encode_batch([(each.question, each.context) for each in examples])
        found: list[tuple[Any, Any]] = []
        for example, encoding in zip(examples, encodings, strict=True):
            tokens = question_encoding(encoding, question_first=True)
            if not tokens.begins_with_special:
                raise ConfigurationError(
                    "The base's tokenizer does not begin a text with a special token, which would stand for no answer."
                )
            capacity = max_length - tokens.num_frame_tokens
            has_words = tokens.has_words(example.context)
            if capacity < 1 or not has_words:
                problem = "leaves no room for its context" if has_words else "has a context without tokens of words"
                raise ConfigurationError(
                    f"The question {example.question[:64]!r} {problem}. "
                    f"Windows have {max_length} tokens: shorten or remove it, or set --max-length."
                )
            if example.answers and not _touched(example, tokens):
                answer = example.answers[0][0][:64]
                raise ConfigurationError(f"The answer {answer!r} has no tokens in the base's vocabulary.")
            windows = strided_windows(len(tokens.content), capacity, usual_stride(max_length, capacity))
            found += [(example, QuestionWindow(tokens, window)) for window in windows]
        return found

    def labelled(self, example: QuestionExample, encoding: QuestionWindow) -> dict[str, Any]:
        start, end = answer_positions(example, encoding)
        return {"start_positions": start, "end_positions": end}

    def body(self) -> dict[str, Any]:
        parameters = {"parameters": {"handle_impossible_answer": True}} if self.has_impossible else {}
        return {"inputs": {"question": "...", "context": "..."}, **parameters}

    def config_fields(self) -> dict[str, Any]:
        return {"num_labels": self.task.num_outputs}

    def collator(self, tokenizer: Any) -> Any:
        return transformers.DataCollatorWithPadding(tokenizer)

    def scores(self, part: Part, logits: NDArray[np.float32], label_ids: Any) -> dict[str, float]:  # noqa: ARG002
        """``logits`` is ``[2, N, T]``: of the start and of the end."""
        rows: dict[int, list[int]] = defaultdict(list)
        for row, example in enumerate(part.examples):
            rows[id(example)].append(row)
        examples = {id(example): example for example in part.examples}
        found = [self._answer(part, examples[key], logits[:, places], places) for key, places in rows.items()]
        return answer_scores([[text for text, _ in examples[key].answers] for key in rows], found)

    def _answer(
        self, part: Part, example: QuestionExample, logits_2NT: NDArray[np.float32], rows: Sequence[int]
    ) -> str:
        windows: list[QuestionWindow] = [part.encodings[row] for row in rows]
        read = [each.tokens.logits(each.window, logits_2NT[:, place].T) for place, each in enumerate(windows)]
        context = windows[0].tokens.context(example.context)
        [best] = find_answers(context, read, AnswerRules(may_be_impossible=self.has_impossible))
        return best.answer


def answer_positions(example: QuestionExample, window: QuestionWindow) -> tuple[int, int]:
    """Places in the window of the first answer's first and last token; 0 and 0 where it is not all in the window."""
    if not example.answers:
        return 0, 0
    touched = _touched(example, window.tokens)
    if touched[0] < window.window.start or touched[-1] >= window.window.stop:
        return 0, 0
    lead = len(window.tokens.before) - window.window.start
    return lead + touched[0], lead + touched[-1]


def _touched(example: QuestionExample, tokens: QuestionEncoding) -> list[int]:
    """The context's tokens, counted from its start, that have characters of the first answer."""
    text, start = example.answers[0]
    offsets = tokens.encoding.offsets[tokens.content.start : tokens.content.stop]
    return [
        place
        for place, (first, stop) in enumerate(offsets)
        if first < stop and stop > start and first < start + len(text)
    ]
