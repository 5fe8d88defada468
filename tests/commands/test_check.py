"""The doctor: what is fine, what is not, and what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from server.commands import findings
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_MODEL
from tests.commands.processes import called, run
from tests.tiny_models import tiny_tokenizer, write_tiny_decoder


def test_a_machine_and_models_that_are_fine(tiny_llama: Path, tiny_tagger: Path):
    done = run("check", tiny_llama, tiny_tagger, "--port", "0")
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout
    for part in ("Python 3", "torch 2", "kernels: ", "threads: ", "free", "port 0 is free", "chat template too"):
        assert part in done.stdout


def test_what_is_in_the_way_is_told_at_once_and_the_exit_code_is_that_of_serve(tmp_path: Path):
    write_tiny_decoder(tmp_path / "mute", "llama")
    tokenizer = tiny_tokenizer()
    template, tokenizer.chat_template = tokenizer.chat_template, None
    (tmp_path / "mute" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "mute")
    tokenizer.chat_template = template
    write_tiny_decoder(tmp_path / "broken", "llama")
    (tmp_path / "broken" / "model.safetensors").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = called("check", tmp_path / "mute", tmp_path / "broken", "--port", str(port))
    lines = done.stdout.splitlines()
    assert f"fail  127.0.0.1 port {port} cannot be used: the port is in use." in done.stdout
    assert any(line.startswith("note  model mute:") and "no chat template" in line for line in lines)
    assert any(line.startswith("fail") and "broken has no model.safetensors" in line for line in lines)
    assert done.returncode == 3


def test_with_wrong_settings_the_machine_is_looked_at():
    done = called("check", "--json", "--dtype", "int4")
    findings = json.loads(done.stdout)
    assert done.returncode == 2
    assert [finding["text"] for finding in findings if finding["kind"] == "fail"] == [
        "--dtype is 'int4': it must be one of auto, float32, bfloat16, float16."
    ]
    assert any(finding["text"].startswith("kernels: ") for finding in findings)


def test_kernels_that_this_processor_does_not_run_are_a_failure(monkeypatch: pytest.MonkeyPatch):
    without = torch.cpu.get_capabilities() | {"amx_tile": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: without)
    config = ServeConfig(models=(ModelConfig(name="chat", path="models/chat", kernels="amx"),))
    [failure] = [finding for finding in findings._kernels(config) if finding.kind == "fail"]
    assert failure.text.startswith("kernels: chat asks for amx ones: this processor lacks ")
    assert "amx_tile" in failure.text and failure.exit_code == EXIT_MODEL
