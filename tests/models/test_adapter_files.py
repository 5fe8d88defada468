"""What of a PEFT folder cannot be shared is named: every tensor is of use, and every layer has its tensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from server.models import adapter_files
from server.models.adapter import read_adapter
from server.models.adapter_files import Targets, read_changes
from server.models.lora import PREFIX
from server.models.module import read_module
from server.modules.adapted import NotShared
from tests.models.folders import edit
from tests.tiny_adapters import change_tensors, write_tiny_adapter
from tests.tiny_models import write_tiny_decoder

FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_decoder(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def written(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_adapter(tmp_path_factory.mktemp("adapter"), base, "lora", "llama")


@pytest.fixture
def adapter(written: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(written, tmp_path / "adapter"))


def targets_of(base: Path) -> Targets:
    return Targets(read_module(base, "generate", None, torch.float32, with_weights=False))


def changes(folder: Path, base: Path) -> dict[str, Any]:
    return read_changes(targets_of(base), read_adapter(folder, str(base)))


def problem(folder: Path, base: Path) -> str:
    with pytest.raises(NotShared) as error:
        changes(folder, base)
    return str(error.value)


def test_reads_a_change_for_each_layer_that_the_config_names(adapter: Path, base: Path) -> None:
    found = changes(adapter, base)
    assert len(found) == 2 * 7
    change = found["model.layers.1.mlp.down_proj"]
    assert (change.a_RK.shape, change.b_NR.shape) == ((4, 80), (48, 4))


def test_a_plain_adapter_is_read_without_peft_and_as_peft_would_read_it(
    adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_peft = adapter_files._targets_by_peft
    skeleton = read_module(base, "generate", None, torch.float32, with_weights=False)
    expected, _ = by_peft(skeleton, read_adapter(adapter, str(base)), may_save=False)
    found: list[Any] = []
    monkeypatch.setattr(adapter_files, "_lora", lambda _name, target, _tensors: found.append(target))
    monkeypatch.setattr(adapter_files, "_targets_by_peft", None)
    with pytest.raises(NotShared):
        read_changes(Targets(skeleton), read_adapter(adapter, str(base)))
    assert found == [expected[name] for name in sorted(expected)]


def test_names_a_missing_tensor(adapter: Path, base: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors.pop(f"{FIRST}.lora_B.weight"))
    assert problem(adapter, base) == "it lacks model.layers.0.self_attn.q_proj.lora_B.weight"


def test_names_a_tensor_that_nothing_uses(adapter: Path, base: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors.update({"base_model.model.extra": torch.ones(1)}))
    assert problem(adapter, base).startswith("it holds extra, which is no change of a linear layer")


def test_names_a_layer_that_the_config_does_not_target(adapter: Path, base: Path) -> None:
    edit(adapter, "adapter_config.json", lambda config: config["target_modules"].remove("q_proj"))
    assert "it holds model.layers.0.self_attn.q_proj.lora_A.weight" in problem(adapter, base)


def test_names_numbers_that_are_not_finite(adapter: Path, base: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors[f"{FIRST}.lora_A.weight"].fill_(float("nan")))
    assert problem(adapter, base) == "model.layers.0.self_attn.q_proj.lora_A.weight is not finite"


def test_names_a_tensor_that_is_there_with_and_without_the_prefix(adapter: Path, base: Path) -> None:
    name = f"{FIRST}.lora_A.weight"
    change_tensors(adapter, lambda tensors: tensors.update({name.removeprefix(PREFIX): torch.ones(4, 48)}))
    assert "with and without the prefix base_model.model." in problem(adapter, base)


def test_names_a_type_that_no_adapter_has(adapter: Path, base: Path) -> None:
    name = f"{FIRST}.lora_A.weight"
    change_tensors(adapter, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    assert problem(adapter, base) == f"{name} is of type int8"


def test_names_shapes_of_another_base(adapter: Path, base: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors.update({f"{FIRST}.lora_A.weight": torch.ones(4, 32)}))
    assert "its matrices for model.layers.0.self_attn.q_proj have the shapes [4, 32] and [48, 4]" in problem(
        adapter, base
    )


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("modules_to_save", ["lm_head"], "it lacks lm_head.weight"),
        ("modules_to_save", ["embed_tokens"], "it lacks model.embed_tokens.weight"),
        ("modules_to_save", ["norm"], "it brings model.layers.0.input_layernorm whole, which is no linear layer"),
        ("init_lora_weights", "pissa", "init_lora_weights is pissa, which changes the base's weights"),
        ("target_parameters", ["mlp.gate_proj.weight"], "its config sets target_parameters"),
        ("a_field_of_tomorrow", 3, "its config sets a_field_of_tomorrow"),
        ("target_modules", ["nothing_here"], "PEFT refuses it"),
    ],
)
def test_names_a_field_that_cannot_be_shared(adapter: Path, base: Path, field: str, value: Any, told: str) -> None:
    edit(adapter, "adapter_config.json", lambda config: config.update({field: value}))
    assert told in problem(adapter, base)


def test_names_a_missing_tensor_of_the_embedding(adapter: Path, base: Path) -> None:
    edit(adapter, "adapter_config.json", lambda config: config["target_modules"].append("embed_tokens"))
    assert problem(adapter, base) == "it lacks model.embed_tokens.lora_embedding_A"


def test_peft_is_asked_once_for_adapters_with_equal_configs(
    adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    find = adapter_files._targets
    monkeypatch.setattr(adapter_files, "_targets", lambda *given, **options: asked.append(1) or find(*given, **options))
    targets = targets_of(base)
    first = read_changes(targets, read_adapter(adapter, str(base)))
    edit(adapter, "adapter_config.json", lambda config: config.update(base_model_name_or_path="elsewhere"))
    change_tensors(adapter, lambda tensors: tensors[f"{FIRST}.lora_A.weight"].add_(1))
    second = read_changes(targets, read_adapter(adapter, str(base)))
    assert len(asked) == 1 and first.keys() == second.keys()
    name = FIRST.removeprefix("base_model.model.")
    assert first[name].a_RK is not None and second[name].a_RK is not None
    assert not torch.equal(first[name].a_RK, second[name].a_RK)
    edit(adapter, "adapter_config.json", lambda config: config.update(lora_alpha=config["lora_alpha"] * 2))
    doubled = read_changes(targets, read_adapter(adapter, str(base)))
    assert len(asked) == 2
    assert torch.equal(doubled[name].b_NR, 2 * second[name].b_NR)
