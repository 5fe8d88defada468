"""Tokens drawn by the kernel against those drawn by torch, and what must contain for each row alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.engine.draw_rules import CONTROLS
from server.engine.native_draw import can_draw
from server.engine.reductions import Scratch, largest, top_and_its_logprob
from server.engine.sampler import Sampled, Sampler
from server.engine.sequence import Sequence
from server.native import kernels
from tests.engine.driving import generate
from tests.native import variants

torch.set_num_threads(1)

OPTIONS: dict[str, list[Any]] = {
    "temperature": [0.05, 0.7, 1.0, 1.6],
    "top_k": [0, 0, 1, 5, 50, 300, 1500, 10**6],
    "top_p": [1.0, 1.0, 0.01, 0.5, 0.9, 0.999],
    "min_p": [0.0, 0.0, 0.02, 0.3, 1.0],
    "typical_p": [1.0, 1.0, 0.1, 0.6, 0.95],
    "top_n_sigma": [0.0, 0.0, 0.5, 2.5],
    "epsilon_cutoff": [0.0, 0.0, 0.0003, 0.02],
    "eta_cutoff": [0.0, 0.0, 0.0003, 0.02],
    "xtc_probability": [0.0, 0.5, 1.0],
    "xtc_threshold": [0.1, 0.02, 0.3],
}


def test_the_controls_have_the_kernels_order() -> None:
    source = (Path(kernels.__file__).parent / "src" / "sampling.h").read_text(encoding="utf-8")
    (columns,) = re.findall(r"enum Control : int \{(.*?)\}", source, re.DOTALL)
    assert [name.lower() for name in re.findall(r"\w+", columns)] == [*CONTROLS, "num_controls"]


@pytest.fixture(params=list(kernels.VARIANTS), autouse=True)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    variants.use(request.param, monkeypatch)


def sequence(**params: Any) -> Sequence:
    return Sequence(generate("r", [3, 5], [7, 2], max_new_tokens=400, **params), max_model_len=4096, block_size=32)


def random_sequences(num_rows: int, seed: int) -> list[Sequence]:
    """Each with about three rules."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(num_rows):
        asked = generator.choice(list(OPTIONS), size=generator.integers(5), replace=False)
        params = {option: OPTIONS[option][generator.integers(len(OPTIONS[option]))] for option in asked}
        rows.append(sequence(**params, do_sample=True, seed=1000 * seed + i))
    return rows


def logits_of(kind: str, num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2
    if kind == "tied":
        return (logits * 4).round() / 4
    if kind == "forbidden":
        logits[:, 1:] = logits[:, 1:].masked_fill(logits[:, :-1] > -1.0, -torch.inf)
    if kind == "steep":
        return logits * 10
    if kind == "flat":
        return logits / 1000
    return logits


@torch.inference_mode()
def sample(logits_SV: torch.Tensor, sequences: list[Sequence]) -> Sampled:
    return Sampler().sample(logits_SV.clone(), sequences)


@pytest.mark.parametrize("kind", ["random", "tied", "forbidden", "steep", "flat"])
@pytest.mark.parametrize("vocab_size", [17, 65, 1000, 2003, 9001])
def test_a_token_is_the_one_that_torch_draws(kind, vocab_size, monkeypatch):
    """Other sums move an edge by a rounding error: of so few rows none has its uniform number as near to one."""
    rows = random_sequences(60, seed=vocab_size)
    logits = logits_of(kind, len(rows), vocab_size)
    found = sample(logits, rows)
    monkeypatch.setattr(kernels._State, "module", None)
    expected = sample(logits, rows)
    assert found.is_finite == expected.is_finite == [True] * len(rows)
    differing = [row.params for i, row in enumerate(rows) if found.token_ids[i] != expected.token_ids[i]]
    if kind == "tied":  # of ties at the edge of a nucleus others may stay
        differing = [params for params in differing if params.top_p == 1.0]
    if kind == "flat":  # distances from the entropy are as small as the rounding of either
        differing = [params for params in differing if params.typical_p == 1.0]
    assert differing == []


def test_a_row_does_not_depend_on_its_batch_mates_or_on_threads():
    rows = random_sequences(40, seed=3)
    logits = logits_of("random", len(rows), 5003)
    together = sample(logits, rows)
    module = kernels.module()
    assert module is not None
    module.set_num_threads(1)
    for i, row in enumerate(rows):
        assert sample(logits[i : i + 1], [row]).token_ids == [together.token_ids[i]]


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("vocab_size", [5, 64, 1500])
@pytest.mark.parametrize("params", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 3, "top_p": 0.8}])
def test_a_row_that_is_not_finite_is_told_wherever_it_is_not(bad, vocab_size, params):
    rows = [sequence(seed=i, top_n_tokens=2, **params) for i in range(3)]
    logits = logits_of("random", 3, vocab_size)
    clean = sample(logits, rows)
    for place in (0, vocab_size // 2, vocab_size - 1):
        spoiled = logits.clone()
        spoiled[1, place] = bad
        found = sample(spoiled, rows)
        assert found.is_finite == [True, False, True]
        assert [found.token_ids[i] for i in (0, 2)] == [clean.token_ids[i] for i in (0, 2)]
    assert sample(torch.full((1, vocab_size), -torch.inf), rows[:1]).is_finite == [False]


@pytest.mark.parametrize("kind", ["random", "tied", "forbidden"])
@pytest.mark.parametrize(
    ("vocab_size", "wanted"), [(17, 17), (70, 3), (2003, 13), (9001, 13), (9001, 700), (5003, 5003)]
)
def test_the_largest_are_those_of_a_sort(kind, vocab_size, wanted):
    logits = logits_of(kind, 7, vocab_size)
    values, columns = largest(logits, wanted)
    assert torch.equal(values.sort(-1).values, logits.sort(-1).values[:, -wanted:])
    assert torch.equal(logits.gather(1, columns), values)
    assert (columns.diff(dim=1) > 0).all()


@pytest.mark.parametrize("vocab_size", [1, 63, 1025, 9001])
def test_the_most_likely_tokens_logprob_is_exact_to_a_rounding_step(vocab_size):
    for kind in ("random", "steep", "forbidden"):
        logits = logits_of(kind, 6, vocab_size)
        logits[:, 0] = 1.0
        tops, logprobs = top_and_its_logprob(logits, Scratch())
        assert torch.equal(tops, logits.amax(-1, keepdim=True))
        expected = logits.double().log_softmax(-1).amax(-1, keepdim=True)
        torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("params", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 7}])
def test_processed_logprobs_are_of_what_the_token_was_drawn_from(params):
    rows = [
        sequence(seed=i, logprobs=True, top_n_tokens=3, logprobs_mode="processed", temperature=0.7, **params)
        for i in range(4)
    ]
    logits = logits_of("random", 4, 2003)
    found = sample(logits, rows)
    scores = logits / 0.7 if params else logits
    if "top_k" in params:
        scores = scores.masked_fill(scores < scores.topk(7).values[:, -1:], -torch.inf)
    expected = scores.double().log_softmax(-1)
    for i, token_id in enumerate(found.token_ids):
        assert found.logprobs[i] == pytest.approx(expected[i, token_id].item(), abs=2e-6)
        assert [top.token_id for top in found.top_logprobs[i]] == expected[i].topk(3).indices.tolist()


def test_rows_that_the_kernel_cannot_read_are_drawn_by_torch():
    logits = logits_of("random", 300, 40).T
    assert not can_draw(logits)
    assert Sampler().sample(logits, [sequence()] * 40).token_ids == logits.argmax(-1).tolist()
