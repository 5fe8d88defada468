"""Adapters that come and go in a running engine: with room for a few, each request gets its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from server.config import ModelConfig
from server.engine.engine import DecoderEngine
from server.native import kernels
from server.protocol import AdapterState, Failed, Generate, LoadAdapter, SamplingParams, SharedAdapter, UnloadAdapter
from server.worker.__main__ import build
from tests.engine.driving import Outcome, run, step
from tests.fuzz.scale import SCALE
from tests.models.folders import edit
from tests.tiny_adapters import write_marker_adapter, write_tiny_adapter
from tests.tiny_models import write_tiny_decoder

torch.set_num_threads(1)

GIB = 1024**3
NUM_ADAPTERS, ROOM = 20 * SCALE, 2 * SCALE
NUM_REQUESTS = 60 * SCALE
FIRST_MARKER = 10
PROMPT = [5, 77, 130, 6, 240, 31, 9, 12, 300, 41, 8]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_decoder(tmp_path_factory.mktemp("base") / "base", "qwen3")


@pytest.fixture(scope="module")
def marker(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], LoadAdapter]:
    """The adapter that writes that token."""
    root = tmp_path_factory.mktemp("markers")

    def source(token_id: int) -> LoadAdapter:
        folder = root / str(token_id)
        if not folder.is_dir():
            write_marker_adapter(folder, base, token_id)
        return LoadAdapter(str(token_id), ModelConfig(name=folder.name, path=str(folder)))

    return source


def engine_of(base: Path, **settings: object) -> DecoderEngine:
    kernels.use("auto", 1)
    options = {"kv_cache_gib": 0.01, "dtype": "float32", "threads": 1, **settings}
    engine, _ = build(ModelConfig(name="base", path=str(base), **options))  # type: ignore[arg-type]
    assert isinstance(engine, DecoderEngine)
    return engine


def states_of(engine: DecoderEngine, command: LoadAdapter) -> list[AdapterState]:
    """What the engine says of an adapter, until there is nothing more."""
    engine.change_adapters(command)
    states: list[AdapterState] = []
    while engine.has_work:
        states += [reply for reply in engine.step() if isinstance(reply, AdapterState)]
    return states


def facts_of(engine: DecoderEngine, command: LoadAdapter) -> SharedAdapter:
    (facts,) = [state.facts for state in states_of(engine, command) if state.facts is not None]
    return facts


def asks(name: str, adapter: str, num_tokens: int = 6) -> Generate:
    return Generate(name, PROMPT, SamplingParams(max_new_tokens=num_tokens, ignore_eos=True), adapter=adapter)


def test_an_adapter_is_announced_before_it_is_read(base: Path, marker: Callable[[int], LoadAdapter]) -> None:
    states = states_of(engine_of(base), marker(FIRST_MARKER))
    assert [state.state for state in states] == ["loading", "resident"], states
    assert states[0].facts is None
    assert states[1].facts is not None and states[1].facts.num_bytes > 0


def test_with_room_for_a_tenth_each_request_gets_its_own_adapter(
    base: Path, marker: Callable[[int], LoadAdapter]
) -> None:
    size = facts_of(engine_of(base), marker(FIRST_MARKER)).num_bytes
    engine = engine_of(base, max_adapter_gib=(ROOM * size + 16) / GIB)
    tokens = range(FIRST_MARKER, FIRST_MARKER + NUM_ADAPTERS)
    for token in tokens:
        assert facts_of(engine, marker(token)).problem is None
    assert engine._adapters.num_bytes == ROOM * size
    chance = random.Random(5)
    drawn = chance.choices(tokens, [1 / (1 + i) for i in range(NUM_ADAPTERS)], k=NUM_REQUESTS)
    commands = [asks(f"{i} {token}", str(token), chance.randrange(1, 12)) for i, token in enumerate(drawn)]
    outcomes: dict[str, Outcome] = {}
    waiting = list(commands)
    while waiting or engine.has_work:
        for command in waiting[:3]:
            engine.add(command)
        del waiting[:3]
        step(engine, outcomes)
        assert engine._adapters.num_bytes <= ROOM * size
    for command in commands:
        assert outcomes[command.request_id].token_ids == [int(command.adapter)] * command.params.max_new_tokens


def test_an_adapter_in_use_is_not_given_up_and_others_wait_for_it(
    base: Path, marker: Callable[[int], LoadAdapter]
) -> None:
    first, second = marker(FIRST_MARKER), marker(FIRST_MARKER + 1)
    size = facts_of(engine_of(base), first).num_bytes
    # One token a step, so that the long request outlives the others.
    engine = engine_of(base, max_adapter_gib=(size + 16) / GIB, prompt_lookup="off")
    for source in (second, first):
        facts_of(engine, source)
    outcomes: dict[str, Outcome] = {}
    engine.add(asks("long", first.digest, 100))
    engine.add(asks("other", second.digest))
    engine.add(asks("base", "", 30))
    while not outcomes.get("base", Outcome()).is_final:
        step(engine, outcomes)
    # One without an adapter waits for none.
    assert not outcomes["long"].is_final and "other" not in outcomes
    # One that came later does not keep it in use.
    engine.add(asks("later", first.digest))
    while engine.has_work:
        step(engine, outcomes)
    assert outcomes["long"].token_ids == [FIRST_MARKER] * 100
    assert outcomes["later"].token_ids == [FIRST_MARKER] * 6
    assert outcomes["other"].token_ids == [FIRST_MARKER + 1] * 6


def test_an_adapter_that_is_unloaded_ends_no_request(base: Path, marker: Callable[[int], LoadAdapter]) -> None:
    engine, source = engine_of(base), marker(FIRST_MARKER)
    facts_of(engine, source)
    outcomes: dict[str, Outcome] = {}
    engine.add(asks("begun", source.digest, 40))
    step(engine, outcomes)
    engine.change_adapters(UnloadAdapter(source.digest))
    engine.add(asks("late", source.digest))
    while engine.has_work:
        step(engine, outcomes)
    assert outcomes["begun"].token_ids == [FIRST_MARKER] * 40
    assert outcomes["late"].failure == "internal_error"
    assert engine._adapters.num_bytes == 0


def test_a_known_adapter_is_read_when_a_request_names_it(base: Path, marker: Callable[[int], LoadAdapter]) -> None:
    engine, source = engine_of(base), marker(FIRST_MARKER)
    engine.change_adapters(LoadAdapter(source.digest, source.model, is_known=True))
    assert not engine.has_work
    assert run(engine, [asks("r", source.digest)])["r"].token_ids == [FIRST_MARKER] * 6


def test_a_request_ends_where_its_adapter_cannot_be_read_again(base: Path, tmp_path: Path) -> None:
    engine = engine_of(base)
    folder = write_marker_adapter(tmp_path / "lost", base, FIRST_MARKER)
    source = LoadAdapter("lost", ModelConfig(name="lost", path=str(folder)), is_known=True)
    engine.change_adapters(source)
    (folder / "adapter_model.safetensors").unlink()
    engine.add(asks("r", "lost"))
    replies = []
    while engine.has_work:
        replies += engine.step()
    (failed,) = [reply for reply in replies if isinstance(reply, Failed)]
    assert "has no adapter_model.safetensors" in failed.message


def test_an_adapter_that_could_not_be_read_is_tried_again(base: Path, tmp_path: Path) -> None:
    engine = engine_of(base)
    folder = write_marker_adapter(tmp_path / "back", base, FIRST_MARKER)
    source = LoadAdapter("back", ModelConfig(name="back", path=str(folder)), is_known=True)
    engine.change_adapters(source)
    (folder / "adapter_model.safetensors").rename(tmp_path / "away")
    engine.add(asks("gone", "back"))
    while not engine._adapters.problems:
        engine.step()
    engine.abort("gone")
    while engine.has_work:
        engine.step()
    (tmp_path / "away").rename(folder / "adapter_model.safetensors")
    assert run(engine, [asks("r", "back")])["r"].token_ids == [FIRST_MARKER] * 6


def test_an_adapter_larger_than_the_limit_is_refused(base: Path, marker: Callable[[int], LoadAdapter]) -> None:
    engine = engine_of(base, max_adapter_gib=100 / GIB)
    facts = facts_of(engine, marker(FIRST_MARKER))
    assert "max_adapter_gib allows 100" in str(facts.problem)
    assert not engine.has_work and marker(FIRST_MARKER).digest not in engine._adapters


def test_an_adapter_whose_scaled_matrices_are_not_finite_is_refused(base: Path, tmp_path: Path) -> None:
    """Those of queries alone, which attention hides in a short step."""
    folder = write_tiny_adapter(tmp_path / "vast", base, "lora", "qwen3")
    edit(folder, "adapter_config.json", lambda config: config.update(alpha_pattern={"q_proj": 1e300}))
    facts = facts_of(engine_of(base), LoadAdapter("vast", ModelConfig(name="vast", path=str(folder))))
    assert "self_attn.q_proj is not finite in float32" in str(facts.problem)


def test_cached_prompts_of_one_version_serve_no_other(base: Path, tmp_path: Path) -> None:
    """Two contents under one path, one after the other: keys and values differ, the prompt is the same."""
    kernels.use("auto", 1)
    prompt = PROMPT * 12
    versions, expected = [], []
    for seed in range(2):
        folder = write_tiny_adapter(tmp_path / "same", base, "lora", "qwen3", seed)
        versions.append(LoadAdapter(f"v{seed}", ModelConfig(name="same", path=str(folder))))
        alone = engine_of(base)
        facts_of(alone, versions[-1])
        command = Generate("r", prompt, SamplingParams(max_new_tokens=8, ignore_eos=True), adapter=f"v{seed}")
        expected.append(run(alone, [command])["r"].token_ids)
    assert expected[0] != expected[1]
    engine = engine_of(base)
    for seed in (0, 1):
        folder = write_tiny_adapter(tmp_path / "same", base, "lora", "qwen3", seed)
        facts_of(engine, versions[seed])
        for i in range(2):
            command = Generate(f"{seed} {i}", prompt, SamplingParams(max_new_tokens=8, ignore_eos=True),
                               adapter=f"v{seed}")  # fmt: skip
            outcome = run(engine, [command])[command.request_id]
            assert outcome.token_ids == expected[seed]
            assert (outcome.num_cached_tokens or 0) > 0 if i else outcome.num_cached_tokens == 0
