"""A fingerprint names what computes an answer: every change of it shows, and a restart does not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from server.config import ModelConfig
from server.serving.origin import origin_of
from tests.api.scripted import ready

WEIGHTS = b"weights " * 4096


def model(folder: Path, weights: bytes = WEIGHTS, **settings: str | int) -> ModelConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    return ModelConfig(name="tiny", path=str(folder), **settings)  # type: ignore[arg-type]


def test_a_fingerprint_stays_the_same_in_another_folder_and_after_a_restart(tmp_path: Path) -> None:
    first = origin_of(model(tmp_path / "a"), ready(load_s=1.0, num_blocks=10))
    again = origin_of(model(tmp_path / "b"), ready(load_s=2.0, num_blocks=20))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint.startswith("fp_")


def test_a_fingerprint_changes_with_weights_files_and_settings(tmp_path: Path) -> None:
    described = ready()
    template = msgspec.structs.replace(described.tokenizer, chat_template="{{ messages }}")
    origins = [
        origin_of(model(tmp_path / "a"), described),
        origin_of(model(tmp_path / "b", WEIGHTS[:-1] + b"x"), described),
        origin_of(model(tmp_path / "c", WEIGHTS + b"x"), described),
        origin_of(model(tmp_path / "d", quantize="int8"), described),
        origin_of(model(tmp_path / "e"), ready(dtype="bfloat16")),
        origin_of(model(tmp_path / "f"), ready(tokenizer=template)),
    ]
    assert len({origin.fingerprint for origin in origins}) == len(origins)


def test_an_adapters_fingerprint_changes_with_its_base(tmp_path: Path) -> None:
    model(tmp_path / "base")
    adapter = model(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "../base"}')
    before = origin_of(adapter, ready())
    model(tmp_path / "base", WEIGHTS[::-1])
    after = origin_of(adapter, ready())
    assert before.parent == after.parent == "base" and before.fingerprint != after.fingerprint
