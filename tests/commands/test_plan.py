"""What is told before anything is loaded is what comes when it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.commands import room
from server.commands.room import require_room
from server.config import ModelConfig, ServeConfig
from server.errors import ConfigurationError
from server.models.weights import read_weights
from tests.commands.processes import called
from tests.server_process import running_server


def test_a_plan_has_the_numbers_that_the_server_tells_once_it_has_loaded(tiny_llama: Path, tiny_tagger: Path):
    flags = [f"chat={tiny_llama}", "--model", f"names={tiny_tagger}", "--kv-cache-gib", "0.02", "--dtype", "bfloat16"]
    plan = json.loads(called("plan", *flags, "--json").stdout)
    with running_server(*flags, "--threads", "1") as server:
        info = {model["name"]: model for model in json.loads(server.get("/info")[1])["models"]}
    assert plan["problems"] == {}
    assert [model["name"] for model in plan["models"]] == ["chat", "names"]
    same = ("task", "architecture", "device", "dtype", "num_parameters")
    for model in plan["models"]:
        real = info[model["name"]]
        assert {name: model[name] for name in same} == {name: real[name] for name in same}
        # Packed for the kernels, rows are padded: of a model this small that is up to a fifth.
        assert model["weight_bytes"] == pytest.approx(real["weight_bytes"], rel=0.2)
        assert model["max_model_len"] == real.get("max_total_tokens", real["max_input_tokens"])
    chat = plan["models"][0]
    assert chat["max_batch_tokens"] == info["chat"]["max_batch_tokens"]
    # The rows that kernels read beyond the last block are the engine's own.
    assert chat["cache"]["num_bytes"] == pytest.approx(info["chat"]["kv_cache_bytes"], rel=0.05)


def test_serve_with_plan_tells_the_same_and_loads_nothing(tiny_llama: Path):
    told = called("serve", "--plan", tiny_llama)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[:-1] == called("plan", tiny_llama).stdout.splitlines()[:-1]
    for part in ("weights", "KV cache", "limits", "memory: about"):
        assert part in told.stdout


def test_a_model_that_cannot_be_served_says_why_and_the_others_are_planned(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    done = called("plan", tiny_llama, tmp_path / "empty")
    assert done.returncode == 4
    assert "LlamaForCausalLM" in done.stdout
    assert "empty  cannot be served: " in done.stdout
    assert "has no config.json" in done.stdout


def config(path: Path, **fields: Any) -> ServeConfig:
    return ServeConfig(models=(ModelConfig(name="chat", path=str(path), device="cpu", **fields),))


def test_weights_that_cannot_fit_are_refused_with_the_numbers(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    num_parameters = read_weights(tiny_llama).num_parameters
    monkeypatch.setattr(room.machine, "free_bytes", lambda: num_parameters * 3)
    with pytest.raises(
        ConfigurationError, match=r"need at least \d+\.\d KiB of memory and \d+\.\d KiB is free"
    ) as error:
        require_room(config(tiny_llama, dtype="float32"))
    assert error.value.exit_code == 4
    require_room(config(tiny_llama, dtype="bfloat16"))
    monkeypatch.setattr(room.machine, "free_bytes", lambda: num_parameters * 3 // 2)
    with pytest.raises(ConfigurationError, match="set quantize to int8 or int4"):
        require_room(config(tiny_llama, dtype="bfloat16"))
    require_room(config(tiny_llama, quantize="int8"))


def test_of_an_adapter_its_base_counts(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_llama)}))
    (model,) = config(tmp_path).models
    assert room.least_bytes(model) == 2 * read_weights(tiny_llama).num_parameters


def test_headers_of_safetensors_tell_the_weights(tiny_llama: Path):
    weights = read_weights(tiny_llama)
    assert weights.dtype == "float32"
    assert weights.num_bytes == 4 * weights.num_parameters
    assert weights.num_bytes < (tiny_llama / "model.safetensors").stat().st_size


def test_weights_in_several_files_are_added_up_and_a_missing_one_is_named(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    index = {"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_weights(tmp_path) == read_weights(tiny_llama)
    index["weight_map"]["z"] = "b.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match=r"b\.safetensors is missing"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\x09" + b"\x00" * 7])
def test_a_file_that_is_not_safetensors_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_weights(tmp_path)


def test_a_file_that_is_cut_short_is_refused(tiny_llama: Path, tmp_path: Path):
    whole = (tiny_llama / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="is cut short"):
        read_weights(tmp_path)
