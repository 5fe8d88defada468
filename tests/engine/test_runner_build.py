"""How a runner is chosen, checked, sized and traced for a device that is not here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, MambaConfig, PreTrainedModel

from server import machine
from server.config import ModelConfig
from server.engine import memory, selfcheck
from server.engine.attention import spans, torch_native
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.batch_inputs import Row
from server.engine.executors import build_runner
from server.engine.executors.compat import CompatRunner
from server.engine.executors.generic import probe
from server.errors import EXIT_MODEL, ConfigurationError
from server.models.packed_linear import pack_linears
from tests import fake_cuda
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

torch.set_num_threads(1)


def config(**settings: object) -> ModelConfig:
    fields = {"name": "tiny", "path": "unused", "kv_cache_gib": 0.01, **settings}
    return ModelConfig(**fields)  # type: ignore[arg-type]


def test_a_wrong_attention_fails_the_check_and_the_model_runs_in_compat(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = TorchNativeAttention.attend

    def wrong(self: TorchNativeAttention, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        return right(self, layer, *tensors) * (1.01 if layer else 1.0)

    monkeypatch.setattr(TorchNativeAttention, "attend", wrong)
    assert build_runner(tiny_decoder("llama"), config(), 64).name == "compat"
    assert "logits differ by" in caplog.text
    with pytest.raises(ConfigurationError, match="cannot run in the generic executor: logits differ") as error:
        build_runner(tiny_decoder("llama"), config(executor="generic"), 64)
    assert error.value.exit_code == EXIT_MODEL


@pytest.mark.parametrize("forgotten", ["window", "softcap"])
def test_the_check_notices_a_forgotten_window_and_a_forgotten_softcap(
    monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """Both change nothing on short or tame inputs: the check must reach where they matter."""
    import dataclasses

    from server.engine.executors import build

    def forgetful(module: object) -> list[object]:
        return [dataclasses.replace(spec, **{forgotten: None}) for spec in probe(module)]  # type: ignore[arg-type]

    monkeypatch.setattr(build, "probe", forgetful)
    assert build_runner(tiny_decoder("gemma2"), config(), 128).name == "compat"


def test_packing_that_changes_results_is_caught_by_the_check() -> None:
    def spoil(module: torch.nn.Module) -> None:
        module.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)  # type: ignore[union-attr]

    with pytest.raises(ConfigurationError, match="does not give its own logits"):
        build_runner(tiny_decoder("llama"), config(executor="compat"), 64, pack=spoil)
    with pytest.raises(ConfigurationError, match="cannot run in the generic executor: logits differ"):
        build_runner(tiny_decoder("llama"), config(executor="generic"), 64, pack=spoil)


@pytest.mark.parametrize("pack", [None, pack_linears])
def test_a_recurrent_model_runs_in_compat(pack: Callable[[PreTrainedModel], Any] | None) -> None:
    settings = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    module = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    assert build_runner(module, config(), 64, pack=pack).name == "compat"


def test_a_model_whose_attentions_differ_is_served_with_the_one_of_the_check() -> None:
    settings = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    runner = build_runner(module, config(), 64)
    assert (runner.name, runner.attention) == ("compat", "eager")


def test_compat_holds_nothing_for_a_sequence_that_was_released() -> None:
    runner = build_runner(tiny_decoder("bloom"), config(), 64)
    assert isinstance(runner, CompatRunner)
    with torch.inference_mode():
        rows = [Row(key=key, token_ids=[5, 6], num_computed=0, block_table=[key]) for key in (1, 2)]
        assert runner.forward(rows).shape == (2, VOCAB_SIZE)
    assert runner.num_held == 2
    runner.release(1)
    runner.release(2)
    runner.release(99)
    assert runner.num_held == 0
    assert runner.cache_bytes() == 0


def test_the_executor_can_be_set() -> None:
    assert build_runner(tiny_decoder("llama"), config(executor="compat"), 64).name == "compat"
    assert build_runner(tiny_decoder("llama"), config(executor="generic"), 64).name == "generic"
    assert build_runner(tiny_decoder("llama"), config(executor="fused"), 64).name == "fused"
    with pytest.raises(ConfigurationError, match="cannot run in the fused executor: its forward takes no position_ids"):
        build_runner(tiny_decoder("bloom"), config(executor="fused"), 64)
    with pytest.raises(ConfigurationError, match="takes no position_ids"):
        build_runner(tiny_decoder("bloom"), config(executor="generic"), 64)


def test_long_and_short_sequences_are_attended_in_groups_without_changing_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = build_runner(tiny_decoder("llama"), config(block_size=4), 256)
    lengths = (3, 200, 9, 120, 4)
    tables = [list(range(i * 60, i * 60 + 60)) for i in range(len(lengths))]

    def run() -> torch.Tensor:
        with torch.inference_mode():
            for i, length in enumerate(lengths):
                runner.forward([Row(key=i, token_ids=range(length), num_computed=0, block_table=tables[i])])
            return runner.forward(
                [
                    Row(key=i, token_ids=[7], num_computed=length, block_table=tables[i])
                    for i, length in enumerate(lengths)
                ]
            )

    grouped = run()
    monkeypatch.setattr(spans, "MIN_SAVED_BLOCKS", 10**9)
    together = run()
    monkeypatch.setattr(torch_native, "MAX_GATHER_BYTES", 1)
    apart = run()
    torch.testing.assert_close(grouped, together, rtol=0, atol=1e-4)
    torch.testing.assert_close(grouped, apart, rtol=0, atol=1e-4)


@pytest.fixture
def cuda_in_name() -> Iterator[None]:
    with fake_cuda.cuda_in_name():
        yield


def test_the_cache_never_exceeds_what_can_run_and_holds_at_least_one_sequence() -> None:
    block_bytes = 1024 * 1024
    blocks = memory.num_blocks(config(kv_cache_gib=4, max_running=2), block_bytes, 100)
    assert blocks == 2 * 4
    with pytest.raises(ConfigurationError, match=r"one sequence of 4096 tokens.*0\.12 GiB and 0\.06 GiB are given"):
        memory.num_blocks(config(kv_cache_gib=1 / 16, max_model_len=4096), block_bytes, 4096)


def test_a_control_groups_limit_counts_as_the_machines_memory(tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "slice" / "service"
    group.mkdir(parents=True)
    for folder, limit, usage in ((group, "max", 10), (group.parent, "1000", 400)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text("anon 300\ninactive_file 50\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/slice/service\n")
    assert machine._cgroup_available(tmp_path / "cgroup", membership) == 1000 - 400 + 50


def test_without_a_limit_the_control_group_says_nothing(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    assert machine._cgroup_available(tmp_path, membership) is None


def test_the_check_exceeds_a_window_unless_it_is_huge() -> None:
    assert max(selfcheck.sequence_lengths(4096, 100)) > 100
    assert max(selfcheck.sequence_lengths(4096, 4096)) < 100
    assert max(selfcheck.sequence_lengths(16, 8)) == 16
