"""Decoder layers compiled by Inductor: what lies between two products or around an attention becomes one kernel.

Layers are compiled one by one, so that all that are alike share what was compiled, and for any number of tokens. The
attention stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from server.modules.attention_calls import ATTENTION, attention
from server.out_of_memory import raise_if_memory

log = logging.getLogger("sluice.engine")

COMPILER_FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    KeyError,
    OSError,
    ImportError,
)
"""What is raised where there is no compiler, or one that does not know a layer."""


def compile_layers(module: PreTrainedModel, name: str, check: Callable[[], str | None]) -> bool:
    """Compile and check; leave the layers as they were where ``check`` fails or says what is wrong."""
    layers = _layers(module)
    if not layers:
        log.warning("model %s is not compiled: transformers does not say which of its parts are layers", name)
        return False
    log.info("model %s: compiling %d layers, which takes minutes on few cores", name, len(layers))
    AttentionInterface.register(ATTENTION, torch.compiler.disable(attention))  # type: ignore[no-untyped-call]
    for layer in layers:
        for part in layer.modules():
            if type(part).__module__.startswith("server."):
                # Our own products hold weights in a layout that Inductor does not know.
                part.forward = torch.compiler.disable(part.forward)  # type: ignore[no-untyped-call]
        layer.compile(dynamic=True)
    try:
        problem = check()
    except COMPILER_FAILURES as error:
        raise_if_memory(error)
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return True
    log.warning("model %s is not compiled: %s", name, problem)
    for layer in layers:
        layer._compiled_call_impl = None
    return False


def _layers(module: PreTrainedModel) -> list[nn.Module]:
    """Its repeated blocks, by the names that transformers gives them."""
    names = set(module._no_split_modules or ())
    return [part for part in module.modules() if type(part).__name__ in names]
