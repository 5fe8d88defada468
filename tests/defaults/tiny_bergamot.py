"""Small files in Marian's binary format."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.defaults.translator.bergamot import FLOAT32, INT8
from server.defaults.translator.teacher import DECODER_LAYERS, ENCODER_LAYERS, WIDTH

INNER, VOCABULARY = 64, 50
MULTIPLIER = 200.0


def write(
    path: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], *, version: int = 1, gap: int = 5
) -> None:
    """Tensors by name: type, shape and data."""
    parts = [struct.pack("<QQ", version, len(tensors))]
    parts += [
        struct.pack("<QQQQ", len(name) + 1, kind, len(shape), len(data))
        for name, (kind, shape, data) in tensors.items()
    ]
    parts += [name.encode() + b"\0" for name in tensors]
    parts += [struct.pack(f"<{len(shape)}i", *shape) for _, shape, _ in tensors.values()]
    parts += [struct.pack("<Q", gap), b"\0" * gap, *(data for _, _, data in tensors.values())]
    path.write_bytes(b"".join(parts))


def float32(values: NDArray[np.float32]) -> tuple[int, tuple[int, ...], bytes]:
    return FLOAT32, values.shape, values.astype("<f4").tobytes()


def int8(codes: NDArray[np.int8], *, transposed: bool = True) -> tuple[int, tuple[int, ...], bytes]:
    """8-bit codes ``[in, out]`` and the multiplier behind them; the tail is alignment."""
    laid = codes.T if transposed else codes
    return INT8, codes.shape, laid.tobytes() + struct.pack("<f", MULTIPLIER) + b"\0" * 8


def write_translator(path: Path) -> None:
    """A translator of the default ones' layout with random weights, a small vocabulary and small inner layers."""
    random = np.random.default_rng(5)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}

    def vector(name: str, width: int = WIDTH, *, mean: float = 0.0) -> None:
        tensors[name] = float32(random.normal(mean, 0.1, (1, width)).astype(np.float32))

    def matrix(name: str, rows: int = WIDTH, columns: int = WIDTH, *, transposed: bool = True) -> None:
        codes = random.integers(-20, 21, (rows, columns), dtype=np.int8)
        tensors[name] = int8(codes, transposed=transposed)
        vector(f"{name}_QuantMultA", 1)

    def norm(name: str) -> None:
        vector(name + "_scale", mean=1.0)
        vector(name + "_bias")

    def attention(name: str) -> None:
        for part in "qkvo":
            matrix(f"{name}_W{part}")
            vector(f"{name}_b{part}")
        norm(name + "_Wo_ln")

    def feed_forward(name: str) -> None:
        matrix(name + "_W1", WIDTH, INNER)
        vector(name + "_b1", INNER)
        matrix(name + "_W2", INNER, WIDTH)
        vector(name + "_b2")
        norm(name + "_ffn_ln")

    matrix("Wemb", VOCABULARY, WIDTH, transposed=False)
    vector("decoder_ff_logit_out_b", VOCABULARY)
    for layer in range(1, ENCODER_LAYERS + 1):
        attention(f"encoder_l{layer}_self")
        feed_forward(f"encoder_l{layer}_ffn")
    for layer in range(1, DECODER_LAYERS + 1):
        attention(f"decoder_l{layer}_context")
        feed_forward(f"decoder_l{layer}_ffn")
        cell = f"decoder_l{layer}_rnn"
        matrix(cell + "_W")
        matrix(cell + "_Wf")
        vector(cell + "_bf")
        norm(cell + "_ffn_ln")
    tensors["special:model.yml"] = (0x101, (4,), b"a: 1")
    write(path, tensors)
