"""Compiles kernels for GPUs that are not here, as the host's code would start them, and reads what came out."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from server.cuda import kernels

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "float32": "*fp32",
    "int32": "*i32",
    "int64": "*i64",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """One call of `server.cuda.kernels.launch`."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Compiled:
    num_registers: int
    stack_bytes: int
    """Not 0 where registers did not suffice."""
    shared_bytes: int
    path: Path
    """The compiled kernel."""

    @cached_property
    def sass(self) -> str:
        """The instructions."""
        return _dumped("--dump-sass", self.path)


class Recorder:
    """Stands in for `launch`."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        assert all(side > 0 for side in grid), grid
        self.launches.append(Launch(kernel, grid, arguments, constants))


class Described(NamedTuple):
    """What a kernel is compiled for: Triton compiles another one where any of this differs."""

    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[int, ...]
    """Arguments that divide by 16, by their place."""


def described(launch: Launch) -> Described:
    names = launch.kernel.arg_names
    constants: dict[str, Any] = {name: value for name, value in launch.constants.items() if name not in OPTIONS}
    signature = dict.fromkeys(names, "constexpr")
    aligned = []
    for place, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if isinstance(value, Tensor):
            signature[name] = TYPES[str(value.dtype).removeprefix("torch.")]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not launch.kernel.params[place].do_not_specialize:
            constants[name] = 1
        else:
            signature[name] = "i32"
        if _is_aligned(launch.kernel.params[place], value):
            aligned.append(place)
    assert {name for name in names if signature[name] == "constexpr"} == constants.keys(), launch.name
    return Described(signature, constants, tuple(aligned))


def compiled(launch: Launch, capability: int, folder: Path) -> Compiled:
    """For compute capability ``capability``."""
    names = launch.kernel.arg_names
    signature, constants, aligned = described(launch)
    kernel = triton.compile(
        ASTSource(
            fn=launch.kernel,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={name: launch.constants[name] for name in OPTIONS if name in launch.constants} | kernels.OPTIONS,
    )
    path = folder / f"{kernel.hash}.cubin"
    path.write_bytes(kernel.asm["cubin"])
    usage = _dumped("--dump-resource-usage", path)
    return Compiled(
        num_registers=int(_found(r"REG:(\d+)", usage)),
        stack_bytes=int(_found(r"STACK:(\d+)", usage)) + int(_found(r"LOCAL:(\d+)", usage)),
        shared_bytes=kernel.metadata.shared,
        path=path,
    )


def _is_aligned(parameter: Any, value: Any) -> bool:
    """Whether it is compiled for values like this one that divide by 16."""
    if isinstance(value, Tensor):
        return value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment
    return isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize


def _dumped(what: str, path: Path) -> str:
    return subprocess.run([TOOLS / "cuobjdump", what, path], capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]
