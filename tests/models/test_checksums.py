"""A folder with a SHA256SUMS is loaded only as that says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.commands.planned import plan_or_problem
from server.config import ModelConfig
from tests.models.folders import read, refusal


@pytest.fixture
def signed(decoder: Path) -> Path:
    subprocess.run("sha256sum * > SHA256SUMS", shell=True, cwd=decoder, check=True)
    return decoder


def test_a_folder_that_is_as_its_manifest_says_is_loaded(signed: Path) -> None:
    assert read(signed).task == "generate"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_has_changed_is_named(signed: Path, name: str) -> None:
    content = bytearray((signed / name).read_bytes())
    content[-1] ^= 1
    (signed / name).write_bytes(content)
    message = refusal(signed)
    assert f"{name} is not the file that" in message or name == "config.json"
    assert plan_or_problem(ModelConfig(name="tiny", path=str(signed))) == message


def test_a_file_that_is_missing_or_was_added_is_named(signed: Path) -> None:
    (signed / "added.json").write_text("{}")
    assert "added.json is not in" in refusal(signed)
    (signed / "added.json").unlink()
    (signed / "generation_config.json").unlink(missing_ok=True)
    assert "generation_config.json is missing" in refusal(signed)


@pytest.mark.parametrize("content", ["", "abc  config.json\n", "\n"])
def test_a_manifest_that_is_not_one_is_refused(decoder: Path, content: str) -> None:
    (decoder / "SHA256SUMS").write_text(content)
    assert "SHA256SUMS" in refusal(decoder)
    (decoder / "SHA256SUMS").write_bytes(b"\xff")
    assert "SHA256SUMS" in refusal(decoder)


def test_a_manifest_of_an_adapters_base_counts(signed: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(signed), config).save_pretrained(tmp_path / "adapter")
    with (signed / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert "model.safetensors is not the file that" in refusal(tmp_path / "adapter")
