"""A module that changes itself while it runs is put back as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from server.module_state import ModuleState


class Attention(nn.Module):
    pass


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mode = "sparse"
        self.longest = 300
        self.lengths = [1, 2]
        self.tables = {"short": 1}
        self.attention = Attention()
        self.config = SimpleNamespace(mode="sparse", rope={"kind": "plain"})
        self.register_buffer("frequencies", torch.ones(2))
        self.cache = torch.zeros(2)


def set_mode(model: Any) -> None:
    model.mode = "full"


def set_cache(model: Any) -> None:
    model.cache = torch.ones(2)


def swap_attention(model: Any) -> None:
    model.attention = Attention()


def replace_buffer(model: Any) -> None:
    model.register_buffer("frequencies", torch.zeros(2))


def write_into_buffer(model: Any) -> None:
    model.frequencies.mul_(3)


def add_attribute(model: Any) -> None:
    model.seen = True


def delete_attribute(model: Any) -> None:
    del model.mode


def append(model: Any) -> None:
    model.lengths.append(3)


def set_entry(model: Any) -> None:
    model.tables["short"] = 2


def set_config(model: Any) -> None:
    model.config.mode = "full"


def set_nested_config(model: Any) -> None:
    model.config.rope["kind"] = "dynamic"


CHANGES = {
    set_mode: "mode",
    set_cache: "cache",
    swap_attention: "attention",
    replace_buffer: "frequencies",
    write_into_buffer: "frequencies",
    add_attribute: "seen",
    delete_attribute: "mode",
    append: "lengths",
    set_entry: "short",
    set_config: "config.mode",
    set_nested_config: "rope.kind",
}


def facts(model: Any) -> dict[str, Any]:
    return {
        "attributes": sorted(name for name in vars(model)),
        "mode": model.mode,
        "lengths": list(model.lengths),
        "tables": dict(model.tables),
        "attention": id(model.attention),
        "config": (model.config.mode, dict(model.config.rope)),
        "frequencies": model.frequencies.tolist(),
        "cache": model.cache.tolist(),
    }


@pytest.mark.parametrize("change", CHANGES)
def test_every_kind_of_change_is_undone_and_named(change: Any) -> None:
    model = Model()
    before = facts(model)
    state = ModuleState(model)
    for _ in range(2):
        with torch.inference_mode():
            change(model)
        assert [name for name in state.restore() if name.endswith(CHANGES[change])]
        assert facts(model) == before
        assert state.restore() == []


def test_a_value_that_is_equal_is_no_change() -> None:
    model = Model()
    state = ModuleState(model)
    model.longest = int("300")
    model.cache = torch.zeros(2)
    assert state.restore() == []


def test_hooks_are_left_alone() -> None:
    model = Model()
    state = ModuleState(model)
    model.register_forward_hook(lambda *_: None)
    assert state.restore() == []
    assert len(model._forward_hooks) == 1
