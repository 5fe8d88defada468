"""`sluice convert`: weights in torch's own files become safetensors, and nothing in such a file is run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from server.config import ModelConfig
from server.errors import EXIT_CONFIG, EXIT_IO, EXIT_MODEL, ConfigurationError
from server.models import convert
from server.models.loader import load
from server.text.tokenizer import Tokenizer
from tests.commands.processes import called
from tests.full_disk import largest_file
from tests.tiny_encoder_decoders import tiny_encoder_decoder
from tests.tiny_models import tiny_decoder, tiny_tokenizer
from tests.tiny_sentencepiece import train, write_json, write_marian

torch.set_num_threads(1)


def marian() -> PreTrainedModel:
    """All four of its embeddings are one tensor."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return MarianMTModel(MarianConfig(vocab_size=600, pad_token_id=59, decoder_start_token_id=59, **sizes, **heads))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=600, d_model=16, num_layers=1, d_kv=8, d_ff=8, num_heads=2))


def write(folder: Path, module: PreTrainedModel, dtype: torch.dtype = torch.float32, is_zip: bool = True) -> Path:
    """As transformers wrote folders before safetensors."""
    folder.mkdir()
    module.to(dtype).config.architectures = [type(module).__name__]
    module.config.save_pretrained(folder)
    (folder / "source.spm").write_bytes(b"pieces")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    torch.save(module.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    return folder


def refused(folder: Path, out: Path, exit_code: int = EXIT_MODEL) -> str:
    """The one sentence that it ends with. Nothing is left."""
    before = sorted(out.parent.iterdir())
    done = called("convert", folder, out)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith("sluice: ") and done.stderr.count("\n") == 1
    assert sorted(out.parent.iterdir()) == before
    return done.stderr


@pytest.mark.parametrize("make", [marian, t5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_converts_every_tensor_and_its_type(
    make: Callable[[], PreTrainedModel], dtype: torch.dtype, is_zip: bool, tmp_path: Path
) -> None:
    module = make()
    folder = write(tmp_path / "model", module, dtype, is_zip)
    done = called("convert", folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", use_safetensors=True, dtype="auto")
    expected = module.state_dict()
    assert found.state_dict().keys() == expected.keys()
    # transformers computes some of T5's products in float32, whatever the file has.
    assert all(torch.equal(tensor.to(dtype), expected[name]) for name, tensor in found.state_dict().items())
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


def test_writes_tied_weights_once(tmp_path: Path) -> None:
    module = marian()
    called("convert", write(tmp_path / "model", module), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name, tensor in written.items() if tensor.shape == (600, 16)] == ["model.shared.weight"]


def test_writes_weights_that_share_memory_and_are_not_tied(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": table, "b": table, "c": table[1:], "d": table.T}
    torch.save(tensors, folder / "pytorch_model.bin")
    assert called("convert", folder, tmp_path / "out").returncode == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def in_shards(folder: Path, module: PreTrainedModel) -> Path:
    """Its weights are in two files. Tied ones are in both."""
    (folder / "pytorch_model.bin").unlink()
    tensors = list(module.state_dict().items())
    places = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(dict(part), folder / name)
        places |= dict.fromkeys(dict(part), name)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": 1}, "weight_map": places})
    return folder


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("family", ["marian", "marian, two vocabularies", "m2m_100", "mbart", "bart", "t5"])
def test_a_converted_model_has_the_logits_of_the_first(family: str, is_sharded: bool, tmp_path: Path) -> None:
    module = tiny_encoder_decoder(family)
    folder = write(tmp_path / "model", module)
    if is_sharded:
        in_shards(folder, module)
    done = called("convert", folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", use_safetensors=True)
    ids = {"input_ids": torch.tensor([[5, 9, 7, 1]]), "decoder_input_ids": torch.tensor([[2, 8, 6]])}
    assert torch.equal(found(**ids).logits, module(**ids).logits)


def test_converts_shards(tmp_path: Path) -> None:
    module = t5()
    folder = in_shards(write(tmp_path / "model", module), module)
    assert called("convert", folder, tmp_path / "out").returncode == 0
    found = T5ForConditionalGeneration.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_serves_what_it_converted_and_refuses_what_it_did_not(tmp_path: Path) -> None:
    module = tiny_decoder("llama")
    folder = write(tmp_path / "model", module)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigurationError) as caught:
        load(ModelConfig(name="tiny", path=str(folder)))
    assert str(caught.value).endswith(f" sluice convert {folder} OUT converts it to safetensors.")
    assert called("convert", folder, tmp_path / "out").returncode == 0
    loaded = load(ModelConfig(name="tiny", path=str(tmp_path / "out"), dtype="float32"))
    expected = module.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.module.state_dict().items())


def test_converts_a_folder_of_opus_mt_which_then_reads_texts(tmp_path: Path) -> None:
    """Theirs were written before torch 1.6 and name no class of tokenizer."""
    module = marian()
    folder = write(tmp_path / "model", module, is_zip=False)
    config = (folder / "config.json").read_text()
    write_marian(folder, train("unigram"), train("unigram", vocab_size=200), [])
    (folder / "config.json").write_text(config)
    write_json(folder / "tokenizer_config.json", {"source_lang": "en", "target_lang": "fr"})
    assert called("convert", folder, tmp_path / "out").returncode == 0
    loaded = load(ModelConfig(name="tiny", path=str(tmp_path / "out"), dtype="float32"))
    assert torch.equal(loaded.module.lm_head.weight, module.lm_head.weight)
    assert "\u2581pas" in Tokenizer(loaded.tokenizer).encode("The river runs past").tokens
    assert loaded.languages is not None and loaded.languages.default_target == "fr"


def test_converts_an_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    torch.save({"lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.bin")
    assert called("convert", folder, tmp_path / "out").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip


def test_copies_what_serving_reads_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    for name in ("tf_model.h5", "modeling_own.py", "training_args.bin", ".gitattributes", "notes.md"):
        (folder / name).write_text("x")
    called("convert", folder, tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["1_Pooling/config.json", "config.json", "model.safetensors", "notes.md", "source.spm"]


class Malicious:
    """Pickled, it is a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_never_runs_code_of_a_pickle(is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = write(tmp_path / "model", t5())
    content = {"shared.weight": torch.ones(2), "x": Malicious(tmp_path / "made")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    message = refused(folder, tmp_path / "out")
    assert "asks for posix.mkdir, which could run code, so it was not read." in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not weights at all" * 50, "is not a file of weights"),
        (b"PK\x03\x04 cut short", "cannot be read"),
        ([torch.ones(2)], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
        ({"state_dict": {"a": torch.ones(2)}}, "holds state_dict, a dict and not a tensor"),
        ({"a": torch.ones(2).to_sparse()}, "holds a, a tensor that is not dense"),
        ({3: torch.ones(2)}, "names a tensor 3"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "holds a, a tensor of complex numbers"),
        ({"a": torch.zeros(1).expand(10**13)}, "holds a, a tensor of 40000000000000 bytes, and the file has "),
        ({f"a{n}": table for n, table in enumerate([torch.zeros(40_000)] * 50)}, "over 16 times the bytes of the file"),
    ],
)
def test_refuses_a_file_that_is_not_weights(content: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    path = folder / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert message in refused(folder, tmp_path / "out")


@pytest.mark.parametrize("other", ["adapter_model.bin", "pytorch_model.bin.index.json"])
def test_refuses_a_folder_with_two_sets_of_weights(other: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    (folder / other).write_text("x")
    assert f"has both pytorch_model.bin and {other}" in refused(folder, tmp_path / "out")


@pytest.mark.parametrize("is_zip", [True, False])
def test_refuses_weights_that_are_cut_short(is_zip: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5(), is_zip=is_zip)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-40])
    assert "cannot be read" in refused(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["../secret.bin", "absent.bin", "config.json", 3])
def test_refuses_an_index_that_names_anything_but_shards(name: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    (folder / "pytorch_model.bin").rename(tmp_path / "secret.bin")
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": {"a": name}})
    refused(folder, tmp_path / "out")


def test_refuses_folders_that_need_no_conversion_or_have_nothing_to_convert(tmp_path: Path) -> None:
    assert "There is no folder" in refused(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "has no pytorch_model.bin" in refused(tmp_path / "empty", tmp_path / "out")
    folder = write(tmp_path / "model", t5())
    (folder / "model.safetensors").write_text("x")
    assert "in safetensors already" in refused(folder, tmp_path / "out")


def test_refuses_a_place_that_is_taken_or_inside_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    assert "already exists" in refused(folder, tmp_path / "taken", EXIT_CONFIG)
    assert "already exists" in refused(folder, tmp_path / "taken" / "file", EXIT_CONFIG)
    assert "Choose an OUT outside" in refused(folder, folder / "out", EXIT_CONFIG)
    done = called("convert", folder, tmp_path / "taken" / "file" / "out")
    assert done.returncode == EXIT_IO
    assert "cannot be written: not a directory. No files were left behind." in done.stderr


def test_refuses_a_folder_that_differs_from_its_manifest(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  pytorch_model.bin\n")
    assert "SHA256SUMS" in refused(folder, tmp_path / "out")


@pytest.mark.parametrize("num_bytes", [100, 10_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(num_bytes: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    with largest_file(num_bytes):
        message = refused(folder, tmp_path / "out", EXIT_IO)
    assert f"{tmp_path / 'out'} cannot be written: " in message
    assert called("convert", folder, tmp_path / "out").returncode == 0


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model", t5())

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "save_file", interrupted)
    done = called("convert", folder, tmp_path / "out")
    assert (done.returncode, done.stderr) == (130, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_sigterm_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model", t5())
    monkeypatch.setattr(convert, "save_file", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert called("convert", folder, tmp_path / "out").returncode == 128 + signal.SIGTERM
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_never_removes_a_folder_of_the_user(tmp_path: Path) -> None:
    folder = write(tmp_path / ".out.unfinished", t5())
    before = sorted(path.name for path in folder.iterdir())
    assert called("convert", folder, tmp_path / "out").returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "out"]


def test_others_may_read_the_folder_as_the_umask_says(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", t5())
    assert called("convert", folder, tmp_path / "out").returncode == 0
    assert (tmp_path / "out").stat().st_mode == folder.stat().st_mode
