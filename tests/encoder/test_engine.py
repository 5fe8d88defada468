"""The encoder engine: batches that do not change scores, bounded waiting, and commands that never harm the others."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from server.encoder import engine as engine_module
from server.encoder.batching import CHEAP_PADDING, FlatRequests, PaddedRequests, WaitingRequests
from server.encoder.build import Wishes
from server.encoder.engine import EncoderEngine
from server.protocol import Encode, Failed, Generate, MaskQuery, SamplingParams, Scores, Stats
from server.token_budget import TokenBudget
from tests.encoder_app import engine_of
from tests.tiny_encoders import FAMILIES, MASK_ID, tiny_encoder

TASKS = ("classify", "ner", "fill-mask", "question-answering")


@cache
def module_of(family: str, task: Any) -> PreTrainedModel:
    return tiny_encoder(family, task)


def random_commands(task: str, lengths: list[int], seed: int = 0) -> list[Encode]:
    generator = np.random.default_rng(seed)
    commands = []
    for number, length in enumerate(lengths):
        token_ids = [2, *generator.integers(5, 180, length - 2).tolist(), 3]
        token_ids[1] = MASK_ID
        mask = MaskQuery([1], top_k=4) if task == "fill-mask" else None
        commands.append(Encode(str(number), token_ids, [0] * length, mask))
    return commands


def drain(engine: EncoderEngine) -> tuple[dict[str, Scores | Failed], list[Stats]]:
    """All answers by request, and the steps' statistics."""
    answers: dict[str, Scores | Failed] = {}
    steps = []
    while engine.has_work:
        *replies, stats = engine.step()
        assert isinstance(stats, Stats)
        steps.append(stats)
        for reply in replies:
            assert isinstance(reply, Scores | Failed) and reply.request_id not in answers
            answers[reply.request_id] = reply
    return answers, steps


def values(answer: Scores | Failed) -> np.ndarray:
    assert isinstance(answer, Scores), answer
    return np.frombuffer(answer.data, "<f4").reshape(answer.shape)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_who_shares_the_batch(family: str, task: Any) -> None:
    commands = random_commands(task, [3, 40, 5, 31, 17, 38, 3, 64])
    together = engine_of(module_of(family, task), task, max_batch_tokens=100_000)
    for command in commands:
        together.add(command)
    answers, steps = drain(together)
    assert max(stats.batch_size for stats in steps) > 2
    one_by_one = engine_of(module_of(family, task), task)
    for command in commands:
        one_by_one.add(command)
        expected = drain(one_by_one)[0][command.request_id]
        np.testing.assert_allclose(values(answers[command.request_id]), values(expected), atol=2e-5)
        assert answers[command.request_id].candidate_ids == expected.candidate_ids


@pytest.mark.parametrize(("executor", "padding"), [("compat", 2), ("generic", 0), ("fused", 0)])
def test_every_number_of_a_step_is_counted(executor: str, padding: int) -> None:
    engine = engine_of(module_of("bert", "classify"), "classify", wishes=Wishes(executor=executor))
    for command in random_commands("classify", [10, 12]):
        engine.add(command)
    *_, stats = engine.step()
    assert (stats.batch_size, stats.batch_tokens, stats.prompt_tokens, stats.padded_tokens) == (2, 22, 22, padding)
    assert stats.started == ["0", "1"] and stats.num_waiting == 0
    assert 0 < stats.forward_s <= stats.step_s
    assert not engine.has_work


def test_a_short_text_waits_for_one_step_behind_a_hundred_windows() -> None:
    engine = engine_of(module_of("bert", "ner"), "ner", max_batch_tokens=128)
    windows = random_commands("ner", [64] * 100)
    for command in windows:
        engine.add(command)
    engine.step()
    engine.add(Encode("short", [2, 7, 3]))
    steps = 0
    while "short" not in {reply.request_id for reply in engine.step()[:-1]}:
        steps += 1
    assert steps <= 1


@pytest.mark.parametrize("kind", [FlatRequests, PaddedRequests])
def test_a_long_text_is_not_starved_by_short_ones_that_keep_coming(kind: type[WaitingRequests]) -> None:
    waiting = kind(max_batch_tokens=64)
    waiting.add(Encode("long", list(range(64))))
    for number in range(1000):
        waiting.add(Encode(f"short {number}", [1, 2, 3]))
        if "long" in {command.request_id for command in waiting.take()}:
            break
    assert number <= 2


@pytest.mark.parametrize("kind", [FlatRequests, PaddedRequests])
def test_the_oldest_request_is_taken_by_every_second_step(kind: type[WaitingRequests]) -> None:
    generator = np.random.default_rng(3)
    waiting = kind(max_batch_tokens=200)
    arrived: dict[str, tuple[int, int]] = {}
    for step in range(400):
        for number in range(int(generator.integers(0, 4)) if step < 300 else 0):
            request_id = f"{step}.{number}"
            arrived[request_id] = (step, len(waiting))
            waiting.add(Encode(request_id, [1] * int(generator.integers(1, 120))))
        for command in waiting.take() if waiting else []:
            since, ahead = arrived.pop(command.request_id)
            assert step - since <= 2 * ahead + 2
    assert not arrived and not waiting


@pytest.mark.parametrize("kind", [FlatRequests, PaddedRequests])
def test_a_callers_text_does_not_wait_for_all_of_anothers(kind: type[WaitingRequests]) -> None:
    waiting = kind(max_batch_tokens=64)
    for number in range(500):
        waiting.add(Encode(f"flood {number}", [1] * 30, caller="flood"))
    waiting.take()
    waiting.add(Encode("other", [1] * 30, caller="other"))
    steps = [[command.request_id for command in waiting.take()] for _ in range(3)]
    assert any("other" in step for step in steps)


def test_nothing_is_remembered_of_callers_whose_texts_are_done() -> None:
    waiting = FlatRequests(max_batch_tokens=64)
    for number in range(2000):
        waiting.add(Encode(str(number), [1] * 10, caller=str(number)))
        waiting.take()
    assert len(waiting._ends) < 200
    assert len(waiting._by_turn) < 200


def test_a_padded_batch_stays_within_the_budget_and_holds_little_padding() -> None:
    generator = np.random.default_rng(5)
    waiting = PaddedRequests(max_batch_tokens=256)
    for number in range(200):
        waiting.add(Encode(str(number), [1] * int(generator.integers(1, 200))))
    while waiting:
        lengths = [len(command.token_ids) for command in waiting.take()]
        places = max(lengths) * len(lengths)
        assert places <= 256 or len(lengths) == 1
        assert places - sum(lengths) <= max(places / 4, CHEAP_PADDING)


def test_without_padding_half_a_batch_is_the_oldest_and_the_rest_the_shortest() -> None:
    waiting = FlatRequests(max_batch_tokens=256)
    lengths = dict(enumerate(np.random.default_rng(5).integers(1, 100, 200).tolist()))
    for number, length in lengths.items():
        waiting.add(Encode(str(number), [1] * length))
    while waiting:
        taken = [int(command.request_id) for command in waiting.take()]
        assert sum(lengths[number] for number in taken) <= 256
        expected: list[int] = []
        for order, limit in ((sorted(lengths), 128), (sorted(lengths, key=lambda number: lengths[number]), 256)):
            for number in [number for number in order if number not in expected]:
                if expected and sum(lengths[each] for each in [*expected, number]) > limit:
                    break
                expected.append(number)
        assert taken == expected
        for number in taken:
            del lengths[number]
    assert not lengths


def test_what_was_aborted_is_never_taken_and_leaves_no_trace() -> None:
    waiting = FlatRequests(max_batch_tokens=64)
    for number in range(1000):
        waiting.add(Encode(str(number), [1] * (1 + number % 9)))
        waiting.abort(str(number))
    assert not waiting and len(waiting._by_length) <= 64
    waiting.add(Encode("0", [1]))
    assert [command.request_id for command in waiting.take()] == ["0"]


def test_a_request_longer_than_the_budget_runs_alone() -> None:
    engine = engine_of(module_of("bert", "ner"), "ner", max_batch_tokens=16)
    for command in random_commands("ner", [64, 64, 3]):
        engine.add(command)
    answers, steps = drain(engine)
    assert sorted(answers) == ["0", "1", "2"] and len(steps) == 3


def test_an_aborted_request_is_never_computed_and_never_answered() -> None:
    engine = engine_of(module_of("bert", "classify"), "classify")
    for command in random_commands("classify", [9, 9, 9]):
        engine.add(command)
    engine.abort("1")
    engine.abort("unknown")
    answers, [stats] = drain(engine)
    assert sorted(answers) == stats.started == ["0", "2"]
    engine.add(Encode("bad", []))
    engine.abort("bad")
    assert not engine.has_work


BAD = {
    "no tokens": ("classify", Encode("x", [])),
    "too long": ("classify", Encode("x", [5] * 65)),
    "negative id": ("classify", Encode("x", [2, -1, 3])),
    "id beyond the vocabulary": ("classify", Encode("x", [2, 2**31, 3])),
    "types of another length": ("classify", Encode("x", [2, 3], [0])),
    "unknown type": ("classify", Encode("x", [2, 3], [0, 2])),
    "generation": ("classify", Generate("x", [2], SamplingParams(max_new_tokens=1))),
    "mask query for a classifier": ("classify", Encode("x", [2, 3], mask=MaskQuery([1], 1))),
    "no mask query": ("fill-mask", Encode("x", [2, 4, 3])),
    "mask outside": ("fill-mask", Encode("x", [2, 4, 3], mask=MaskQuery([3], 1))),
    "no positions": ("fill-mask", Encode("x", [2, 4, 3], mask=MaskQuery([], 1))),
    "top_k beyond the vocabulary": ("fill-mask", Encode("x", [2, 4, 3], mask=MaskQuery([1], 10**6))),
    "target beyond the vocabulary": ("fill-mask", Encode("x", [2, 4, 3], mask=MaskQuery([1], 1, [10**6]))),
    "no targets": ("fill-mask", Encode("x", [2, 4, 3], mask=MaskQuery([1], 1, []))),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_command_that_cannot_be_run_fails_alone(problem: str) -> None:
    task, command = BAD[problem]
    engine = engine_of(module_of("bert", task), task)
    [good] = random_commands(task, [9])
    engine.add(command)
    engine.add(good)
    answers, _ = drain(engine)
    assert isinstance(answers["x"], Failed) and answers["x"].code == "internal_error"
    assert isinstance(answers["0"], Scores)


@pytest.mark.parametrize("task", TASKS)
def test_output_that_is_not_finite_fails_that_request_and_leaves_its_batch_mates_as_they_are(task: Any) -> None:
    module = tiny_encoder("bert", task)
    good, bad = random_commands(task, [9, 9])
    bad.token_ids[5] = 100
    good.token_ids[5] = 101
    before = engine_of(module, task)
    before.add(good)
    expected = drain(before)[0]["0"]
    # A layer after the embeddings: a masked language model's output weights are its embeddings.
    module.base_model.embeddings.register_forward_hook(
        lambda _module, _args, kwargs, output: output.masked_fill((kwargs["input_ids"] == 100).unsqueeze(-1), math.nan),
        with_kwargs=True,
    )
    engine = engine_of(module, task)
    engine.add(good)
    engine.add(bad)
    answers, [stats] = drain(engine)
    assert stats.batch_size == 2
    assert isinstance(answers["1"], Failed) and answers["1"].code == "numerical_error"
    np.testing.assert_allclose(values(answers["0"]), values(expected), atol=1e-5)


def test_token_types_reach_a_model_that_tells_them_apart_and_no_other() -> None:
    for family, matters in (("bert", True), ("distilbert", False), ("roberta", False)):
        answers = []
        for types in ([0, 0, 0, 0], [0, 0, 1, 1]):
            engine = engine_of(module_of(family, "classify"), "classify")
            engine.add(Encode("x", [2, 9, 11, 3], types))
            answers.append(values(drain(engine)[0]["x"]))
        assert np.allclose(*answers) is not matters


def test_several_mask_queries_of_different_shape_share_a_step() -> None:
    engine = engine_of(module_of("bert", "fill-mask"), "fill-mask")
    queries = [MaskQuery([1, 3], 2), MaskQuery([2], 5, [7, 9, 11]), MaskQuery([1, 2, 3], 1)]
    for number, query in enumerate(queries):
        engine.add(Encode(str(number), [2, 4, 4, 4, 3], mask=query))
    answers, [stats] = drain(engine)
    assert stats.batch_size == 3
    assert [answers[key].shape for key in "012"] == [(2, 2), (1, 3), (3, 1)]
    assert set(answers["1"].candidate_ids[0]) == {7, 9, 11}
    logits = module_of("bert", "fill-mask")(torch.tensor([[2, 4, 4, 4, 3]])).logits[0].softmax(-1)
    best, ids = logits[[1, 3]].topk(2)
    np.testing.assert_allclose(values(answers["0"]), best.detach().numpy(), atol=1e-5)
    assert answers["0"].candidate_ids == ids.tolist()


def test_a_pooled_decoder_without_a_pad_token_runs_one_text_a_step() -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3,
        pad_token_id=None,
    )  # fmt: skip
    engine = engine_of(LlamaForSequenceClassification(config), "classify")
    for command in random_commands("classify", [9, 9]):
        engine.add(command)
    answers, steps = drain(engine)
    assert [stats.batch_size for stats in steps] == [1, 1] and values(answers["0"]).shape == (3,)


def test_a_learned_budget_cuts_steps_by_measured_speed_and_scores_stay_the_same(monkeypatch) -> None:
    commands = random_commands("classify", [16] * 3 + [40] * 60)
    fixed = engine_of(module_of("bert", "classify"), "classify", max_batch_tokens=100_000)
    for command in commands:
        fixed.add(command)
    expected, _ = drain(fixed)
    for token_s, most, least in ((1e-5, 4096, 1024), (1e-3, 256, 128), (1e-2, 64, 1)):
        budget = TokenBudget(first=256, usual=1024, most=4096, step_s=0.25)
        engine = engine_of(module_of("bert", "classify"), "classify", token_budget=budget, max_batch_tokens=4096)
        monkeypatch.setattr(engine_module, "time", SimpleNamespace(perf_counter=Clock(engine, 0.01, token_s)))
        engine.learn(commands)
        for command in commands:
            engine.add(command)
        answers, steps = drain(engine)
        sizes = [stats.batch_tokens for stats in steps]
        assert least <= max(sizes) <= most
        assert steps[-1].token_budget == budget.num_tokens
        for request_id, answer in expected.items():
            np.testing.assert_allclose(values(answers[request_id]), values(answer), atol=2e-5)


class Clock:
    """Time passes for what a step has taken, and for nothing else."""

    def __init__(self, engine: EncoderEngine, fixed_s: float, token_s: float) -> None:
        self._now = 0.0
        forward = engine._forward
        logits = forward.logits

        def timed(batch: list[Encode]) -> Any:
            self._now += fixed_s + token_s * sum(len(command.token_ids) for command in batch)
            return logits(batch)

        forward.logits = timed  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self._now
