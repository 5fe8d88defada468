"""Where every token that could come next has begun a banned phrase, the output is cut there and says so."""

from __future__ import annotations

from typing import Any

import pytest

from server.protocol import Generate, Output
from tests.engine.driving import generate, make_engine, run
from tests.engine.fake_runner import FakeRunner
from tests.engine.test_rewinds import LETTERS

A, B, C = 0, 1, 2
PROMPT = [9, 9, 9]


def served(*commands: Generate, **limits: Any) -> dict[str, Any]:
    engine = make_engine(FakeRunner(), **{"vocabulary": LETTERS, **limits})
    return run(engine, commands)


def test_an_output_ends_where_its_bans_leave_no_token() -> None:
    pairs = ("aa", "ab", "ba", "bb")
    outcome = served(generate("r", PROMPT, allowed_token_ids=(A, B), banned_phrases=pairs))["r"]
    assert (outcome.token_ids, outcome.finish_reason, outcome.failure) == ([], "banned_phrase", None)
    assert outcome.num_rewinds == 2


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
def test_what_comes_before_that_place_is_kept(logprobs: bool, deterministic: bool) -> None:
    command = generate(
        "r", PROMPT, allowed_token_ids=(A,), forced_bos_token_id=C, banned_phrases=("aa",), logprobs=logprobs
    )
    whole = served(command, generate("s", PROMPT, max_new_tokens=20), deterministic=deterministic)["r"]
    assert (whole.token_ids, whole.finish_reason, whole.num_rewinds) == ([C], "banned_phrase", 1)
    resumed = Generate("r", PROMPT, command.params, [Output([C])])
    rest = served(resumed, deterministic=deterministic)["r"]
    assert (rest.token_ids, rest.finish_reason, rest.num_rewinds) == ([], "banned_phrase", 1)


def test_other_samples_of_the_request_go_on() -> None:
    params: dict[str, Any] = {
        "banned_phrases": ("aa", "ab"),
        "allowed_token_ids": (A, B),
        "num_return_sequences": 4,
        "do_sample": True,
        "max_new_tokens": 6,
        "begin_suppress_tokens": (B,),
        "seed": 3,
    }
    outcomes = served(
        generate("cut", PROMPT, **params), generate("r", PROMPT, **{**params, "begin_suppress_tokens": ()})
    )
    assert [outcomes[name].finish_reason for name in ("cut", "cut#1", "cut#2", "cut#3")] == ["banned_phrase"] * 4
    assert [outcomes[name].token_ids for name in ("r", "r#1", "r#2", "r#3")] == [
        [B] * 5 + [outcomes[name].token_ids[-1]] for name in ("r", "r#1", "r#2", "r#3")
    ]


def test_rules_that_leave_no_token_without_a_ban_fail_the_request() -> None:
    params: dict[str, Any] = {"allowed_token_ids": (A,), "suppress_tokens": (A,), "banned_phrases": ("zz",)}
    assert served(generate("r", PROMPT, **params))["r"].failure == "no_token_left"


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_nothing_may_follow_ends_no_other(seed: int, renormalize: bool, do_sample: bool) -> None:
    dead_end = tuple(((A, token_id), -float("inf")) for token_id in (A, B, C))
    command = generate(
        "r",
        [seed, 9, 9],
        num_beams=3,
        num_return_sequences=2,
        do_sample=do_sample,
        seed=seed,
        renormalize_logits=renormalize,
        allowed_token_ids=(A, B, C),
        sequence_bias=dead_end,
    )
    outcomes = served(command)
    for name in ("r", "r#1"):
        assert (outcomes[name].finish_reason, outcomes[name].failure) == ("length", None)
        assert len(outcomes[name].token_ids) == 8
        assert A not in outcomes[name].token_ids[:-1]
