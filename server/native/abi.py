"""The structs and numbers that Python and the kernels share, described once.

`python -m server.native.abi` writes the description as assertions to `src/abi_checks.h`: sources that lay a struct out
in another way, or that number a choice otherwise, do not compile. The digest there becomes a part of the compiled
kernels, by which the loader recognises kernels that were compiled for another description.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from server.number_types import WEIGHT_TYPES, CacheKind, WeightKind

INTEGER, REAL, ADDRESS = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

HEADER = Path(__file__).parent / "src" / "abi_checks.h"

PANEL = 48
"""Rows of a weight that lie together."""
BLOCK_SIZE = 32
"""Tokens of a block of the KV cache: two vectors of keys, and the one size that the kernel knows."""
MAX_HEAD_DIM = 256
BIAS_MARGIN = 16
"""Places on both sides of a table of biases that repeat its ends."""


class Layer(ctypes.Structure):
    """What stays the same of a layer's attention."""

    _fields_ = [
        ("pool", ADDRESS),
        ("num_heads", INTEGER),
        ("num_kv_heads", INTEGER),
        ("key_dim", INTEGER),
        ("value_dim", INTEGER),
        ("window", INTEGER),
        ("scaling", REAL),
        ("softcap", REAL),
        ("is_bfloat16", INTEGER),
        ("cache_kind", INTEGER),
        ("bias", ADDRESS),
        ("bias_width", INTEGER),
        ("bias_middle", INTEGER),
    ]


class Row(ctypes.Structure):
    """A sequence's new tokens, and where its block table begins in the step's.

    With ``visible`` they see that many keys of another sequence, and write none.
    """

    _fields_ = [
        ("start", INTEGER),
        ("count", INTEGER),
        ("computed", INTEGER),
        ("table", INTEGER),
        ("visible", INTEGER),
    ]


class Step(ctypes.Structure):
    """What is the same for all layers of a step."""

    _fields_ = [("rows", ADDRESS), ("num_rows", INTEGER), ("block_tables", ADDRESS), ("failed", ADDRESS)]


class Call(ctypes.Structure):
    """One layer of one step. Strides count values."""

    _fields_ = [
        ("query", ADDRESS),
        ("key", ADDRESS),
        ("value", ADDRESS),
        ("out", ADDRESS),
        ("query_head", INTEGER),
        ("query_token", INTEGER),
        ("key_head", INTEGER),
        ("key_token", INTEGER),
        ("value_head", INTEGER),
        ("value_token", INTEGER),
        ("positions", ADDRESS),
        ("cos", ADDRESS),
        ("sin", ADDRESS),
        ("num_rotated", INTEGER),
        ("query_norm", ADDRESS),
        ("key_norm", ADDRESS),
        ("eps", REAL),
        ("sinks", ADDRESS),
    ]


class Texts(ctypes.Structure):
    """Texts, and which of their tokens are queries."""

    _fields_ = [
        ("query_starts", ADDRESS),
        ("key_starts", ADDRESS),
        ("query_places", ADDRESS),
        ("num_texts", INTEGER),
    ]


class Fixed(ctypes.Structure):
    """What stays the same of a product; of a norm its weight, bias and width."""

    _fields_ = [
        ("kind", INTEGER),
        ("width", INTEGER),
        ("words", INTEGER),
        ("weight", ADDRESS),
        ("scale", ADDRESS),
        ("offset", ADDRESS),
        ("bias", ADDRESS),
        ("num_outputs", INTEGER),
        ("activation", INTEGER),
        ("is_gated", INTEGER),
    ]


class Delta(ctypes.Structure):
    """What an adapter changes of a product."""

    _fields_ = [
        ("a", ADDRESS),
        ("num_groups", INTEGER),
        ("b", ADDRESS),
        ("parts", ADDRESS),
        ("in_scale", ADDRESS),
        ("scale", ADDRESS),
        ("added", ADDRESS),
        ("whole", ADDRESS),
    ]


class RankPart(ctypes.Structure):
    """Words of A x that a panel of B multiplies, and where the panel begins."""

    _fields_ = [("start", INTEGER), ("first", INTEGER), ("count", INTEGER)]


class Run(ctypes.Structure):
    """Neighbouring rows of one adapter."""

    _fields_ = [("start", INTEGER), ("count", INTEGER), ("deltas", ADDRESS)]


class Link(ctypes.Structure):
    """One kernel of a chain. Places count buffers of the step, -1 for none."""

    _fields_ = [
        ("kind", INTEGER),
        ("source", INTEGER),
        ("residual", INTEGER),
        ("to", INTEGER),
        ("product", Fixed),
        ("number", INTEGER),
        ("eps", REAL),
        ("layer", ADDRESS),
        ("call", ADDRESS),
    ]


class LinkKind(IntEnum):
    """What a link of a chain computes."""

    rms_norm, layer_norm, linear, attention, cross_attention, encoder_attention = range(6)


class Activation(IntEnum):
    """What a product ends with."""

    none, silu, gelu, gelu_tanh, relu = range(5)


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "attention::Layer": Layer,
    "attention::Row": Row,
    "attention::Step": Step,
    "attention::Call": Call,
    "linear_kernels::Fixed": Fixed,
    "linear_kernels::Delta": Delta,
    "linear_kernels::RankPart": RankPart,
    "linear_kernels::Run": Run,
    "encoder::Texts": Texts,
    "chain::Link": Link,
}
ENUMS: dict[str, type[IntEnum]] = {
    "chain::Kind": LinkKind,
    "linear_kernels::WeightKind": WeightKind,
    "attention::CacheKind": CacheKind,
    "lanes::Activation": Activation,
}
CONSTANTS = {
    "linear_kernels::PANEL": PANEL,
    **{f"{name}::GROUP": each.group for name, each in WEIGHT_TYPES.items() if each.group},
    "attention::BLOCK": BLOCK_SIZE,
    "attention::MOST_DIM": MAX_HEAD_DIM,
    "BIAS_MARGIN": BIAS_MARGIN,
}

TRAITS = {ADDRESS: "is_address", REAL: "is_real", INTEGER: "is_integer"}


def header() -> str:
    """The text of `HEADER`."""
    return f'{HEAD}{_assertions()}\n\n#define ABI_DIGEST "{digest()}"\n'


def digest() -> str:
    """Differs where the description does: 16 hexadecimal digits."""
    return hashlib.sha256(_assertions().encode()).hexdigest()[:16]


def _assertions() -> str:
    return "\n".join((*_struct_lines(), *_enum_lines(), *_constant_lines()))


def _struct_lines() -> Iterator[str]:
    for name, struct in STRUCTS.items():
        yield f"static_assert(sizeof({name}) == {ctypes.sizeof(struct)});"
        for field, kind, *_ in struct._fields_:
            yield f"static_assert(offsetof({name}, {field}) == {getattr(struct, field).offset});"
            if kind in TRAITS:
                yield f"static_assert(abi::{TRAITS[kind]}<decltype({name}::{field})>);"


def _enum_lines() -> Iterator[str]:
    for name, enum in ENUMS.items():
        yield from (f"static_assert(static_cast<int64_t>({name}::{each.name}) == {each.value});" for each in enum)


def _constant_lines() -> Iterator[str]:
    yield from (f"static_assert(static_cast<int64_t>({name}) == {value});" for name, value in CONSTANTS.items())


HEAD = """// Written by `python -m server.native.abi`: what Python fills lies where the kernels read it. Do not edit.
#pragma once

#include "attention.h"
#include "chain.h"
#include "linear_adapted.h"

#include <cstddef>
#include <type_traits>

namespace abi {

template <class T> constexpr bool is_address = std::is_pointer_v<T> && sizeof(T) == 8;
template <class T> constexpr bool is_real = std::is_same_v<T, double>;
template <class T> constexpr bool is_integer = (std::is_integral_v<T> || std::is_enum_v<T>) && sizeof(T) == 8;

} // namespace abi

"""


if __name__ == "__main__":
    HEADER.write_text(header())
