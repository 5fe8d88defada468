"""Lists of models: of a server, and of a folder."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands.fake_server import fake_server
from tests.commands.processes import called
from tests.tiny_encoders import write_encoder
from tests.tiny_models import write_tiny_decoder


def test_a_folder_of_models_is_listed_with_what_each_is(tmp_path: Path):
    write_tiny_decoder(tmp_path / "chat", "llama")
    write_encoder(tmp_path / "mood", "bert", "classify")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(tmp_path / "chat")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "notes").mkdir()
    done = called("models", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows.keys() == {"name", "chat", "mood", "broken", "adapter"}
    assert all(part in rows["chat"] for part in ("generate", "LlamaForCausalLM", "float32", "KiB"))
    assert "classify" in rows["mood"]
    assert f"adapter of {tmp_path / 'chat'}" in rows["adapter"]
    assert "which transformers does not know" in rows["broken"]
    (one,) = json.loads(called("models", tmp_path / "mood", "--json").stdout)
    assert (one["task"], one["architecture"]) == ("classify", "BertForSequenceClassification")


def test_a_servers_models_are_listed():
    models = [
        {"name": "chat", "task": "generate", "state": "ready", "architecture": "Llama", "dtype": "bfloat16",
         "num_parameters": 135_000_000, "weight_bytes": 269_000_000, "executor": "fused", "device": "cpu"},
        {"name": "mood", "state": "starting"},
    ]  # fmt: skip
    with fake_server(models=models) as server:
        done = called("models", "--url", server.url)
        listed = json.loads(called("models", "--url", server.url, "--json").stdout)
    _, chat, mood = done.stdout.splitlines()
    assert " ".join(chat.split()) == "chat generate Llama bfloat16 135 M 257 MiB ready, fused on cpu"
    assert mood.split() == ["mood", "-", "-", "-", "-", "-", "starting"]
    assert [model["name"] for model in listed] == ["chat", "mood"]


def test_a_place_without_models_is_refused(tmp_path: Path):
    for words, message in (
        ([tmp_path], "has no model folders"),
        ([tmp_path / "no"], "is not a folder"),
        ([tmp_path, "--url", "http://x"], "are two places"),
    ):
        done = called("models", *words)
        assert done.returncode == 2
        assert message in done.stderr
