"""The description of what Python and the kernels share, and the sources that it is compiled with."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.native import abi, kernels, reference
from server.native.packing import ACTIVATIONS

SOURCES = abi.HEADER.parent


def compiled(folder: Path) -> subprocess.CompletedProcess[str]:
    """The headers with their assertions, checked by the compiler and not made into code."""
    compiler = shutil.which("g++") or shutil.which("c++")
    include = sysconfig.get_path("include")
    if compiler is None or not (Path(include) / "Python.h").exists():
        pytest.skip("no C++ compiler, or no headers of Python")
    options = ["-std=c++20", "-fopenmp", "-mavx2", "-mfma", "-mf16c", "-DPy_LIMITED_API=0x030B0000", f"-I{include}"]
    command = [compiler, "-fsyntax-only", *options, "-include", "python.h", "abi_checks.h"]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCES, tmp_path / "src"))


def test_the_assertions_are_those_of_the_description() -> None:
    assert abi.HEADER.read_text() == abi.header(), "run: python -m server.native.abi"


def test_every_set_of_kernels_is_compiled_with_the_assertions() -> None:
    assert '#include "abi_checks.h"' in (SOURCES / "module.cpp").read_text()


def test_every_field_of_every_struct_is_asserted() -> None:
    text = abi.header()
    for name, struct in abi.STRUCTS.items():
        assert re.findall(rf"offsetof\({name}, (\w+)\)", text) == [field for field, *_ in struct._fields_]


def test_the_sources_compile_with_the_assertions(sources: Path) -> None:
    found = compiled(sources)
    assert found.returncode == 0, found.stderr[-2000:]


CHANGES = {
    "a new field": ("chain.h", "  double eps;", "  int64_t inserted;\n  double eps;", ", eps)"),
    "other numbers of kinds": ("chain.h", "{ rms_norm, layer_norm,", "{ layer_norm, rms_norm,", "::rms_norm)"),
    "another type": ("attention_heads.h", "  double scaling;\n", "  int64_t scaling;\n", "Layer::scaling)"),
    "another order": ("attention_heads.h", "num_heads, num_kv_heads, key_dim", "num_kv_heads, num_heads, key_dim",
                      "Layer, num_heads)"),
    "other numbers of activations": ("lanes_math.h", "{ none, silu, gelu,", "{ none, gelu, silu,", "::silu)"),
}  # fmt: skip
"""What is changed in which file, and a part of the assertion that must fail."""


@pytest.fixture(scope="module")
def errors_of_changes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiler's output about sources with all changes."""
    sources = Path(shutil.copytree(SOURCES, tmp_path_factory.mktemp("changed") / "src"))
    for file, before, after, _ in CHANGES.values():
        text = (sources / file).read_text()
        assert text.count(before) == 1
        (sources / file).write_text(text.replace(before, after))
    found = compiled(sources)
    assert found.returncode != 0
    return found.stderr


@pytest.mark.parametrize("change", CHANGES)
def test_a_struct_or_a_choice_that_is_laid_out_otherwise_does_not_compile(change: str, errors_of_changes: str) -> None:
    failed = re.findall(r"static assertion failed.*\n.*static_assert\((.*)\);", errors_of_changes)
    assert any(CHANGES[change][-1] in assertion for assertion in failed)


def test_a_struct_that_is_laid_out_otherwise_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(ctypes.Structure):
        _fields_ = [*abi.Row._fields_, ("inserted", abi.INTEGER)]

    before = abi.digest()
    monkeypatch.setitem(abi.STRUCTS, "attention::Row", Wider)
    assert abi.digest() != before


@pytest.mark.parametrize("compiled_for", [None, "0123456789abcdef"])
def test_kernels_compiled_for_another_description_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiled_for: str | None
) -> None:
    """Those of an older version have no digest at all."""
    old = SimpleNamespace() if compiled_for is None else SimpleNamespace(abi_digest=compiled_for)
    monkeypatch.setattr(kernels, "import_module", lambda _name: old)
    monkeypatch.setattr(kernels, "VARIANTS", {"_avx2": ()})
    monkeypatch.setattr(kernels, "AUTOMATIC", ("_avx2",))
    with pytest.raises(ImportError, match="compiled for another version of Sluice; install Sluice again"):
        kernels.use("avx2", 1)
    assert kernels.use("auto", 1) == "torch"
    assert "the avx2 kernels are not used: they were compiled for another version" in caplog.text


def test_every_activation_of_the_reference_has_a_number() -> None:
    assert ACTIVATIONS.keys() - {None} == reference.ACTIVATIONS.keys()
