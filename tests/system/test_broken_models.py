"""A real server over a folder that is broken ends at once with one sentence and the exit code of models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.errors import EXIT_MODEL
from tests.server_process import started_server


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def nest(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ' * 100_000)


@pytest.mark.parametrize("damage", [cut, nest], ids=["in the worker", "in the front"])
def test_a_broken_folder_ends_the_server_with_one_sentence(
    damage: Callable[[Path], None], tiny_llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "broken"))
    damage(folder)
    with started_server("--model", f"broken={folder}", "--threads", "1") as server:
        assert server.wait(120) == EXIT_MODEL
        assert "Traceback" not in server.logs()
        [said] = [line for line in server.logs().splitlines() if line and not line.startswith("{")]
        assert said.startswith("sluice: ")
        assert str(folder) in said
        assert '"ready"' not in server.logs()
        assert server.output() == ""
