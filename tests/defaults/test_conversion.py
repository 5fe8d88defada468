"""What a converted model holds: the very weights and the very tokenizer of the file that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from server.defaults.install import BY_HAND, install
from server.defaults.onnx_weights import state_dict
from tests.defaults.conftest import Build, contents
from tests.defaults.tiny_gguf import TEMPLATE, write_gguf


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
