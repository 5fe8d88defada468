"""Stop strings, banned phrases and grammars in beam search: what they do to a candidate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from server.engine.processors.base import LogitsProcessor as Rule
from server.protocol import SamplingParams
from tests.engine.beam_driving import Run, drive, search, transformers_search
from tests.engine.pieces import Pieces
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

LETTERS = Pieces(
    [bytes([97 + i % 26]) + (b"" if i < 60 else bytes([97 + i // 13 % 26])) for i in range(VOCAB_SIZE - 1)]
)
"""Tokens of one and of two letters."""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.set_num_threads(1)
    return tiny_decoder(request.param)


def text_of(token_ids: list[int]) -> str:
    return b"".join(map(LETTERS.token_bytes, token_ids)).decode()


class Contains(StoppingCriteria):
    """Any of the strings in the output, not in the prompt."""

    def __init__(self, strings: tuple[str, ...], num_prompt_tokens: int) -> None:
        self.strings = strings
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = [text_of(row[self.num_prompt_tokens :].tolist()) for row in input_ids]
        return torch.tensor([any(string in text for string in self.strings) for text in texts])


class Never(LogitsProcessor):
    """Every token with which the output would contain one of the strings, in any case."""

    def __init__(self, strings: tuple[str, ...], num_prompt_tokens: int) -> None:
        self.strings = [string.lower() for string in strings]
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, row_ids in enumerate(input_ids):
            before = text_of(row_ids[self.num_prompt_tokens :].tolist())
            for token_id in range(VOCAB_SIZE):
                if any(string in before + text_of([token_id]) for string in self.strings):
                    scores[row, token_id] = -torch.inf
        return scores


@pytest.mark.parametrize("stop_strings", [("a", "q"), ("xy", "e", "r"), ("tt", "mma", "s", "b")])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_a_candidate_with_a_stop_string_ends_as_by_transformers_stopping_criteria(module, stop_strings, num_beams):
    num_stopped = 0
    for seed, early_stopping in enumerate([False, True, "never"] * 2):
        prompt_ids = [11 + seed, 90, 41 + 7 * seed]
        options: dict[str, Any] = {
            "num_beams": num_beams,
            "num_return_sequences": num_beams,
            "early_stopping": early_stopping,
            "max_new_tokens": 12,
        }
        run = search(
            module, prompt_ids, LETTERS, stop_strings=stop_strings, end_token_ids=(11,), logprobs=True, **options
        )
        criteria = StoppingCriteriaList([Contains(stop_strings, len(prompt_ids))])
        expected = transformers_search(module, prompt_ids, eos=[11], criteria=criteria, **options)
        assert run.outputs == expected.outputs
        assert run.scores == pytest.approx(expected.scores, abs=1e-4)
        for hypothesis in run.results:
            text = text_of(hypothesis.token_ids.tolist())
            is_stopped = any(string in text for string in stop_strings) or hypothesis.token_ids[-1] == 11
            assert hypothesis.finish_reason == ("stop" if is_stopped else "length")
            assert text_of(run.streamed) == text[: len(text_of(run.streamed))]
            num_stopped += is_stopped
    assert num_stopped > 3


@pytest.mark.parametrize("phrases", [("A", "q"), ("XY", "e", "ko"), ("e", "t", "a", "o", "n", "i", "s")])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_a_banned_phrase_is_no_candidate_as_if_its_logits_were_minus_infinity(module, phrases, num_beams):
    for seed in range(3):
        prompt_ids = [11 + seed, 90, 41 + 7 * seed]
        options: dict[str, Any] = {"num_beams": num_beams, "num_return_sequences": num_beams, "max_new_tokens": 9}
        run = search(module, prompt_ids, LETTERS, banned_phrases=phrases, end_token_ids=(11,), **options)
        rule = LogitsProcessorList([Never(phrases, len(prompt_ids))])
        expected = transformers_search(module, prompt_ids, eos=[11], processors=rule, **options)
        assert run.outputs == expected.outputs
        assert run.scores == pytest.approx(expected.scores, abs=1e-4)


def test_drawn_beams_have_no_banned_phrase(module):
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 15, "do_sample": True}
    free = [search(module, [5, 6], seed=seed, temperature=2.0, **options) for seed in range(4)]
    assert any("e" in text_of(output) for run in free for output in run.outputs)
    banned = [
        search(module, [5, 6], LETTERS, seed=seed, temperature=2.0, banned_phrases=("E", "zz"), **options)
        for seed in range(4)
    ]
    for output in (output for run in banned for output in run.outputs):
        assert len(output) == 15
        assert "e" not in text_of(output)
        assert "zz" not in text_of(output)


def test_where_every_continuation_is_banned_the_rows_are_answered_as_they_are():
    pieces = Pieces([b"a", b"b"])
    params = SamplingParams(
        num_beams=2, num_return_sequences=2, max_new_tokens=9, banned_phrases=("ab", "aa", "ba", "bb")
    )

    def forward(rows: list[list[int]]) -> Tensor:
        return torch.tensor([[-torch.inf, 1.0, 0.0]] * len(rows))

    run = drive([Run([1], params, pieces)], forward)[0]
    assert run.outputs == [[1], [2]]
    assert [hypothesis.finish_reason for hypothesis in run.results] == ["banned_phrase"] * 2
    assert run.scores == pytest.approx(torch.tensor([1.0, 0.0]).log_softmax(-1).tolist())


class EndsAfterThree(Rule):
    """As a grammar that is complete after three tokens of any kind."""

    def __init__(self, num_tokens: int = 0) -> None:
        self.num_tokens = num_tokens

    @classmethod
    def for_sequence(cls, start: Any) -> None:
        return None

    def accept(self, token_id: int) -> None:
        self.num_tokens += 1
        self.ends_sequence = self.num_tokens == 3

    def ends_with(self, token_id: int) -> bool:
        return self.num_tokens == 2

    @classmethod
    def apply(cls, logits_SV: Tensor, rows: list[int], processors: list[Any]) -> None:
        """Changes nothing."""


def test_a_candidate_that_completes_a_grammar_ends_with_stop():
    run = Run([1], SamplingParams(num_beams=2, num_return_sequences=2, max_new_tokens=9))
    run.rows[0].processors = (EndsAfterThree(),)
    drive([run], lambda rows: torch.arange(5.0).expand(len(rows), -1))
    assert [len(output) for output in run.outputs] == [3, 3]
    assert [hypothesis.finish_reason for hypothesis in run.results] == ["stop", "stop"]
