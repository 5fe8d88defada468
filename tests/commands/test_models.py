"""Lists of models: of a server, and of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
        ([tmp_path], "contains no model folders"),
        ([tmp_path / "no"], "is not a folder"),
        ([tmp_path, "--url", "http://x"], "name two places"),
    ):
        done = called("models", *words)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://a..b", "ftp://x", "http://"])
def test_what_is_no_address_is_refused_in_a_line(url: str):
    done = called("models", "--url", url)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sluice: {url} is not a server address such as") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("key", ["two-words metrics", "ключ-из-многих-букв-0123", "one-line\nX-Other: line"])
def test_what_is_no_key_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_API_KEY", key)
    done = called("models", "--url", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "single ASCII word" in done.stderr and key.split()[0] not in done.stderr


def test_a_key_may_have_the_end_of_its_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLUICE_API_KEY", "secret\n")
    with fake_server() as server:
        assert called("models", "--url", server.url).returncode == 0
    assert server.keys == ["Bearer secret"]
