"""A BERT encoder's weights out of an ONNX file with 4-bit matrices, exactly: no rounding beyond the file's own.

Dimension key
    N  output features     K  input features     G  groups of ``block_size`` input features
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_ZERO_POINT = 8
"""What a 4-bit matrix without a zero-point input subtracts, by the operator's definition."""


def state_dict(path: Path) -> dict[str, NDArray[np.float32]]:
    """The float32 tensors under their PyTorch names."""
    graph = onnx.load(str(path)).graph
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, value in initializers.items():
        if name.endswith("_quantized"):
            base = name.removesuffix("_quantized")
            shifted = value.astype(np.float32) - np.float32(initializers[base + "_zero_point"])
            tensors[base] = shifted * np.float32(initializers[base + "_scale"])
        elif re.match(r"(bert|classifier)\.", name) and not name.endswith(("_scale", "_zero_point")):
            tensors[name] = value.astype(np.float32)
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            # "/bert/encoder/layer.0/attention/self/query/MatMul_Q4"
            name = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".") + ".weight"
            tensors[name] = _matrix(node, initializers)
    return tensors


def _matrix(node: Any, initializers: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    if len(node.input) > 3:
        raise ValueError(f"{node.name} has zero points or an order of its own, which this reader does not know")
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("bits", 4) != 4:
        raise ValueError(f"{node.name} has {attributes['bits']}-bit weights: this reader knows 4")
    N, K = attributes["N"], attributes["K"]
    packed = initializers[node.input[1]]
    scales_NG = initializers[node.input[2]].reshape(N, -1).astype(np.float32)
    # The low four bits come first.
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(N, scales_NG.shape[1], -1)
    weights = (nibbles.astype(np.float32) - _ZERO_POINT) * scales_NG[..., None]
    return np.ascontiguousarray(weights.reshape(N, -1)[:, :K])
