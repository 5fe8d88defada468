"""A step's launches on CUDA, counted over tensors without values: every operation that is no view is one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from server.cuda import kernels
from server.engine import batch_inputs
from server.engine.attention.cuda_triton import TritonAttention
from server.engine.batch_inputs import Row
from server.engine.executors.fused.runner import FusedRunner
from server.engine.executors.generic import probe
from server.modules import products
from server.modules.attention_calls import ATTENTION, set_attention
from server.modules.recognise import recognise
from tests.cuda.installed import needs_triton
from tests.engine.test_cuda_traced import faked
from tests.fake_cuda import DEVICE, fake_cuda
from tests.tiny_models import VOCAB_SIZE, tiny_decoder

pytestmark = needs_triton

torch.set_num_threads(1)

MOST_IN_A_LAYER = 10
MOST_BESIDE_LAYERS = 10
"""Embedding, the last norm, the head, and the tensors of the step."""
MOST_COPIES = 3
"""To the device."""
NO_LAUNCH = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "select", "slice", "split", "chunk",
    "split_with_sizes", "unbind", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "device", "lift_fresh",
    "empty", "empty_like", "new_empty", "empty_strided",
}  # fmt: skip


class Counted(TorchDispatchMode):
    """Operators with a tensor on the device, and Triton's launches."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.num_copies = 0

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        assert all(side > 0 for side in grid)
        assert all(argument.device == DEVICE for argument in arguments if isinstance(argument, Tensor))
        self.launches[kernel.__name__] += 1

    def __torch_dispatch__(self, operator: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        result = operator(*given, **(named or {}))
        name = operator._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((given, named, result)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if devices == {"cpu", "cuda"} and name in ("_to_copy", "copy_"):
            self.num_copies += 1
        elif "cuda" in devices and name not in NO_LAUNCH:
            self.launches[name] += 1
        return result


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    from server.cuda import attention, place, rows

    counted = Counted()
    for module in (attention, place, rows):
        monkeypatch.setattr(module, "launch", counted.launch)
    monkeypatch.setattr(kernels, "serve_rows", lambda _device: True)
    return counted


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
def test_a_step_of_single_tokens_has_at_most_ten_launches_a_layer_and_three_copies(
    family: str, counted: Counted
) -> None:
    module = tiny_decoder(family)
    set_attention(module, ATTENTION)
    layout = recognise(module, probe(module), [2048])
    rows = [Row(key=i, token_ids=[9], num_computed=100 + 90 * i, block_table=range(64)) for i in range(16)]
    with fake_cuda() as fake:
        layout = faked(layout, fake)
        layers = tuple(products.pack_layer(layer) for layer in layout.layers)
        decoder: Any = dataclasses.replace(layout, layers=layers, head=products.pack(layout.head))  # type: ignore[arg-type]
        backend = TritonAttention(layout.specs, 64, 32, torch.float32, DEVICE)
        runner = FusedRunner(decoder, backend, num_blocks=64, block_size=32, vocab_size=VOCAB_SIZE)
        with counted:
            inputs = batch_inputs.build(rows, 32, DEVICE)
            backend.begin(inputs)
            assert runner.compute(inputs).shape == (16, VOCAB_SIZE)
    most = MOST_IN_A_LAYER * len(layers) + MOST_BESIDE_LAYERS
    assert counted.launches.total() <= most, counted.launches
    assert counted.num_copies <= MOST_COPIES
