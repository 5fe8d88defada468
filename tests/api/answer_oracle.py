"""Answers as the question answering pipeline of transformers 4 finds them; transformers 5 no longer has it.

Its postprocessing, window by window in float32, over a model and a tokenizer of transformers. Four rules differ: an
answer that several windows give has the best of their scores, not the sum, which can be above 1; there are no spaces
at the ends of an answer; marks on its last character are part of it; and a word goes on where a window ends inside it.

Two rules of the server are not here: an answer that starts at a mark starts at the character below it, and one of
spaces alone is none.
"""

from __future__ import annotations

import copy
import unicodedata
from typing import Any

import numpy as np
import torch


def answers(
    model: Any,
    tokenizer: Any,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    doc_stride: int | None = None,
    max_answer_len: int = 15,
    max_seq_len: int | None = None,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:
    max_seq_len = max_seq_len or min(tokenizer.model_max_length, 384)
    doc_stride = min(max_seq_len // 2, 128) if doc_stride is None else doc_stride
    # A copy: a call leaves its truncation behind.
    encoded = copy.deepcopy(tokenizer)(
        question,
        context,
        truncation="only_second",
        max_length=max_seq_len,
        stride=doc_stride,
        return_overflowing_tokens=True,
    )
    words = copy.deepcopy(tokenizer)(context, add_special_tokens=False).encodings[0]
    found: list[dict[str, Any]] = []
    least_null = 1_000_000.0
    for encoding in encoded.encodings:
        start_C, end_C = logits(model, tokenizer, encoding)
        p_mask = np.array([sequence != 1 for sequence in encoding.sequence_ids])
        p_mask[np.array(encoding.ids) == tokenizer.cls_token_id] = False
        start_C, end_C = (softmax(np.where(p_mask, np.float32(-10_000), values)) for values in (start_C, end_C))
        if handle_impossible_answer:
            least_null = min(least_null, float(start_C[0] * end_C[0]))
        start_C[0] = end_C[0] = 0
        num_spans = top_k * 2 + 10 if align_to_words else top_k
        here: list[dict[str, Any]] = []
        for first, last, score in spans(start_C, end_C, num_spans, max_answer_len, p_mask):
            start, end = stripped(context, *place(encoding, words, first, last, align_to_words))
            known = next((each for each in here if each["answer"].lower() == context[start:end].lower()), None)
            if known:
                known["score"] += score
            else:
                here.append({"score": score, "start": start, "end": end, "answer": context[start:end]})
        for answer in here:
            known = next((each for each in found if each["answer"].lower() == answer["answer"].lower()), None)
            if known is None:
                found.append(answer)
            elif answer["score"] > known["score"]:
                known.update(answer)
    if handle_impossible_answer:
        found.append({"score": least_null, "start": 0, "end": 0, "answer": ""})
    return sorted(found, key=lambda answer: -answer["score"])[:top_k]


@torch.inference_mode()
def logits(model: Any, tokenizer: Any, encoding: Any) -> tuple[Any, Any]:
    inputs = {"input_ids": torch.tensor([encoding.ids])}
    if "token_type_ids" in tokenizer.model_input_names:
        inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
    output = model(**inputs)
    return output.start_logits[0].numpy(), output.end_logits[0].numpy()


def softmax(values: Any) -> Any:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def spans(start_C: Any, end_C: Any, count: int, max_answer_len: int, p_mask: Any) -> list[tuple[int, int, float]]:
    scores_CC = np.tril(np.triu(np.outer(start_C, end_C)), max_answer_len - 1)
    order = np.argsort(-scores_CC.ravel())[:count]
    firsts, lasts = np.unravel_index(order, scores_CC.shape)
    pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
    # The pipeline also gives spans that end before they start, with a score of 0, where too few others are left.
    return [(i, j, float(scores_CC[i, j])) for i, j in pairs if i <= j and not p_mask[i] and not p_mask[j] and i > 0]


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    answer = text[start:end]
    start, end = end - len(answer.lstrip()), start + len(answer.rstrip())
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return start, end


def place(encoding: Any, words: Any, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    numbers = (encoding.token_to_word(first), encoding.token_to_word(last))
    if align_to_words and None not in numbers:
        return words.word_to_chars(numbers[0])[0], words.word_to_chars(numbers[1])[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]
