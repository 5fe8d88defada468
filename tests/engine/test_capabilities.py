"""Executors read what an attention back end can do from its attributes, never from its class or its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import server
from server.engine.attention.backend import AttentionBackend
from server.engine.attention.native import NativeAttention
from server.engine.attention.torch_native import TorchNativeAttention
from server.engine.executors.fused import FusedRunner
from server.native import kernels
from tests.engine.test_chained import CHAINED, runner_of

KINDS = {"NativeAttention", "TorchNativeAttention", "PagedAttention", "FusedRunner", "GenericRunner", "CompatRunner"}
KINDS |= {"PaddedForward", "FlatForward"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    kernels.use("auto", 1)
    if not kernels.has("chain"):
        kernels.use("torch", 1)
        pytest.skip("no kernels for this processor that make a chain")
    yield
    kernels.use("torch", 1)


class Renamed(NativeAttention):
    """The same kernel under another name."""

    name = "renamed"


class Unchained(NativeAttention):
    """States that it is no kernel of a chain, and that rows affect one another."""

    can_chain = False
    is_row_invariant = False


def runner_with(kind: type[NativeAttention]) -> FusedRunner:
    runner = runner_of(CHAINED["biases"], torch.float32)
    backend = kind(runner.backend.specs, 8, 32, torch.float32, CPU)
    return FusedRunner(runner._decoder, backend, num_blocks=8, block_size=32, vocab_size=runner.vocab_size)


def test_a_back_end_under_another_name_is_chained_and_row_invariant() -> None:
    runner = runner_with(Renamed)
    assert runner.attention == "renamed"
    assert runner._chained is not None and runner.is_row_invariant


def test_a_back_end_that_states_no_capability_is_used_without_it() -> None:
    runner = runner_with(Unchained)
    assert runner._chained is None and not runner.is_row_invariant


def test_a_capability_that_is_not_stated_cannot_be_used() -> None:
    specs = runner_with(Renamed).backend.specs
    backend: AttentionBackend = TorchNativeAttention(specs, 8, 4, torch.float32, CPU)
    assert not (backend.can_chain or backend.can_record or backend.is_row_invariant)
    with pytest.raises(NotImplementedError, match="attention torch is no kernel of a chain"):
        backend.packed_call(0, 64, None, None)


def test_no_module_asks_for_the_class_of_a_back_end_an_executor_or_a_forward() -> None:
    found = []
    for path in Path(server.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                found += [f"{path.name}: {name}" for name in KINDS if name in ast.unparse(node.args[1])]
    assert found == []
