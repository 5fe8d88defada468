"""Every family through the runner, against transformers on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor

from server.config import ModelConfig
from server.engine.batch_inputs import Row
from server.engine.executors import build_runner
from server.engine.model_runner import ModelRunner
from server.models.packed_linear import pack_linears
from server.native import kernels
from tests.tiny_models import FAMILIES, SLIDING_WINDOW, VOCAB_SIZE, tiny_decoder

BLOCK_SIZE = 4
"""Small, so that a few tokens span blocks."""
MAX_MODEL_LEN = 96
NUM_NEW = 10
PROMPT_LENGTHS = (1, 7, 23, 2 * SLIDING_WINDOW + 15)

torch.set_num_threads(1)


def config(family: str, **settings: object) -> ModelConfig:
    fields = {"block_size": BLOCK_SIZE, "kv_cache_gib": 0.01, "max_running": 8, **settings}
    return ModelConfig(name=family, path="unused", **fields)  # type: ignore[arg-type]


def runner_of(family: str, dtype: torch.dtype = torch.float32, **settings: object) -> ModelRunner:
    return build_runner(tiny_decoder(family).to(dtype), config(family, **settings), MAX_MODEL_LEN, pack=pack_linears)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 380, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@dataclass
class Driven:
    """A sequence of the smallest possible driver."""

    key: int
    ids: list[int]
    table: list[int]
    num_computed: int = 0
    logits: list[Tensor] = field(default_factory=list)


class Driver:
    """Gives out blocks in a scattered order and steps sequences greedily; no scheduler, no sampler."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.free = [block for offset in (0, 1, 2) for block in range(offset, runner.num_blocks, 3)]
        self.keys: Iterator[int] = iter(range(1000))

    def add(self, prompt: list[int], shared: Driven | None = None, num_shared_blocks: int = 0) -> Driven:
        table = list(shared.table[:num_shared_blocks]) if shared else []
        block_size = self.runner.block_size
        blocks_needed = -(-(len(prompt) + NUM_NEW) // block_size)
        table += [self.free.pop() for _ in range(blocks_needed - len(table))]
        computed = num_shared_blocks * block_size
        return Driven(key=next(self.keys), ids=list(prompt), table=table, num_computed=computed)

    @torch.inference_mode()
    def step(self, sequences: list[Driven], chunk: int) -> None:
        rows = []
        for seq in sequences:
            new = seq.ids[seq.num_computed : seq.num_computed + chunk]
            rows.append(
                Row(
                    key=seq.key,
                    token_ids=new,
                    num_computed=seq.num_computed,
                    block_table=seq.table[: -(-(seq.num_computed + len(new)) // self.runner.block_size)],
                )
            )
        logits = self.runner.forward(rows)
        for seq, row, last in zip(sequences, rows, logits, strict=True):
            seq.num_computed += len(row.token_ids)
            if seq.num_computed == len(seq.ids):
                seq.logits.append(last)
                seq.ids.append(int(last.argmax()))

    def run(self, sequences: list[Driven], chunk: int = 1000) -> None:
        """Until each has `NUM_NEW` tokens; finished ones leave the batch."""
        while running := [seq for seq in sequences if len(seq.logits) < NUM_NEW]:
            self.step(running, chunk)
        for seq in sequences:
            self.runner.release(seq.key)


CASES = [(family, "compat" if family == "bloom" else "fused") for family in FAMILIES]
CASES += [(family, "generic") for family in ("llama", "mistral", "gpt2", "gemma2", "gemma3_text", "opt")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    family, executor = request.param
    return family, executor


@pytest.fixture(scope="module")
def family(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def runner(case: tuple[str, str]) -> ModelRunner:
    family, executor = case
    return runner_of(family, executor=executor if executor == "generic" else "auto")


@pytest.fixture
def expected(family: str) -> list[tuple[list[int], Tensor]]:
    return generated(family)


@cache
def generated(family: str) -> list[tuple[list[int], Tensor]]:
    """transformers.generate: each prompt's tokens, and the logits that chose them."""
    module = tiny_decoder(family)
    if family == "gemma2":
        # By itself transformers below 5.21 takes an attention without the softcap.
        module.set_attn_implementation("eager")
    results = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_NEW,
                min_new_tokens=None,
                eos_token_id=None,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        results.append((output.sequences[0].tolist(), torch.cat(output.logits)))
    return results


def assert_equal(sequences: list[Driven], expected: list[tuple[list[int], Tensor]]) -> None:
    for seq, (ids, logits) in zip(sequences, expected, strict=True):
        ours = torch.stack(seq.logits)
        spread = float(logits.max() - logits.min())
        assert ours.dtype == torch.float32
        assert float((ours - logits).abs().max()) < 1e-4 * spread
        assert seq.ids == ids


def test_every_family_but_bloom_runs_in_the_fused_executor(case: tuple[str, str], runner: ModelRunner) -> None:
    family, executor = case
    assert runner.name == executor
    assert runner.can_reuse_blocks == (family != "bloom")
    assert runner.vocab_size == VOCAB_SIZE


def test_greedy_tokens_and_logits_equal_generate_alone(
    runner: ModelRunner, expected: list[tuple[list[int], Tensor]]
) -> None:
    for prompt, result in zip(prompts(), expected, strict=True):
        driver = Driver(runner)
        seq = driver.add(prompt)
        driver.run([seq])
        assert_equal([seq], [result])


def test_batch_mates_change_nothing(runner: ModelRunner, expected: list[tuple[list[int], Tensor]]) -> None:
    driver = Driver(runner)
    sequences = [driver.add(prompt) for prompt in prompts()]
    driver.run(sequences)
    assert_equal(sequences, expected)


@pytest.mark.parametrize("chunk", [2, 5])
def test_a_prompt_in_chunks_gives_the_same_tokens(
    runner: ModelRunner, expected: list[tuple[list[int], Tensor]], chunk: int
) -> None:
    driver = Driver(runner)
    sequences = [driver.add(prompt) for prompt in prompts()]
    driver.run(sequences, chunk=chunk)
    assert_equal(sequences, expected)


def test_a_late_arrival_is_prefilled_beside_decoding_sequences(
    runner: ModelRunner, expected: list[tuple[list[int], Tensor]]
) -> None:
    driver = Driver(runner)
    first, second, third, late = (driver.add(prompt) for prompt in prompts())
    driver.step([second, third, first], chunk=1000)
    driver.step([third, second, first], chunk=1000)
    driver.run([first, late, second, third])
    assert_equal([first, second, third, late], expected)


def test_shared_blocks_serve_a_second_sequence_with_the_same_beginning(
    runner: ModelRunner, expected: list[tuple[list[int], Tensor]]
) -> None:
    if not runner.can_reuse_blocks:
        pytest.skip("this executor shares no blocks")
    driver = Driver(runner)
    owner = driver.add(prompts()[3])
    driver.run([owner])
    guest = driver.add(prompts()[3], shared=owner, num_shared_blocks=5)
    driver.run([guest])
    assert_equal([guest], [expected[3]])


def test_a_copied_block_serves_like_its_source_and_apart_from_it(
    runner: ModelRunner, expected: list[tuple[list[int], Tensor]]
) -> None:
    if not runner.can_reuse_blocks:
        pytest.skip("this executor copies no blocks")
    driver = Driver(runner)
    owner, guest = driver.add(prompts()[2]), driver.add(prompts()[2])
    driver.step([owner], chunk=22)
    with torch.inference_mode():
        runner.copy_blocks(list(zip(owner.table, guest.table, strict=True)))
        runner.clear_blocks(owner.table)
    guest.num_computed = 22
    driver.run([guest])
    assert_equal([guest], [expected[2]])


@pytest.mark.parametrize("chunk", [5, 1000])
@pytest.mark.parametrize("family", ["qwen3", "gemma", "gemma2", "gemma3_text"])
def test_the_native_kernel_gives_the_same_tokens(family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels._State, "module", None)
    if kernels.use("auto", num_threads=1) == "torch":
        pytest.skip("there are no kernels for this processor")
    runner = runner_of(family, block_size=32)
    assert runner.attention == "native"
    driver = Driver(runner)
    sequences = [driver.add(prompt) for prompt in prompts()]
    driver.run(sequences, chunk=chunk)
    assert_equal(sequences, generated(family))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3", "bloom"])
def test_bfloat16_follows_the_plain_model(family: str) -> None:
    runner = runner_of(family, torch.bfloat16)
    assert runner.name == ("compat" if family == "bloom" else "fused")
    driver = Driver(runner)
    sequences = [driver.add(prompt) for prompt in prompts()]
    driver.run(sequences, chunk=9)
    plain = tiny_decoder(family).to(torch.bfloat16)
    for seq in sequences:
        with torch.inference_mode():
            logits = plain(torch.tensor([seq.ids[:-1]])).logits[0, -NUM_NEW:].float()
        ours = torch.stack(seq.logits)
        assert torch.cosine_similarity(ours, logits, dim=1).min() > 0.99


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_whoever_computes_a_token_that_is_not_finite_is_told_in_the_same_step(family: str, chunk: int) -> None:
    module = tiny_decoder(family)
    poisoned = 5
    runner = build_runner(module, config(family), MAX_MODEL_LEN)
    with torch.no_grad():
        module.get_input_embeddings().weight[poisoned] = float("nan")
    driver = Driver(runner)
    # Followed by more tokens than mistral's window holds, and in the second chunk: behind blocks of the cache.
    prompt = [9, 10, 11, 12, poisoned, *range(20, 45)]
    bad, good = driver.add(prompt), driver.add(prompts()[0])
    rows = [
        Row(key=seq.key, token_ids=seq.ids[start:stop], num_computed=start, block_table=seq.table)
        for seq, start, stop in ((bad, 3, 3 + chunk), (good, 0, len(good.ids)))
    ]
    with torch.inference_mode():
        runner.forward([Row(key=bad.key, token_ids=prompt[:3], num_computed=0, block_table=bad.table)])
        is_finite = runner.forward(rows).isfinite().all(-1)
    assert is_finite.tolist() == [False, True]


def test_what_a_broken_sequence_leaves_in_a_block_cannot_reach_the_next_owner() -> None:
    """A masked place enters the product as zero times its value: a value that is not finite would spread."""
    poisoned = 5
    runner = build_runner(tiny_decoder("llama"), config("llama"), MAX_MODEL_LEN)
    clean = Driver(runner)
    alone = clean.add(prompts()[0])
    clean.run([alone])
    module = tiny_decoder("llama")
    broken = build_runner(module, config("llama"), MAX_MODEL_LEN)
    with torch.no_grad():
        module.get_input_embeddings().weight[poisoned] = float("nan")
    driver = Driver(broken)
    bad = driver.add([poisoned] * 12)
    driver.step([bad], chunk=1000)
    assert bad.logits[0].isnan().all()
    reusing = Driven(key=50, ids=list(prompts()[0]), table=bad.table)
    driver.run([reusing])
    assert reusing.ids == alone.ids
    assert torch.stack(reusing.logits).isfinite().all()
