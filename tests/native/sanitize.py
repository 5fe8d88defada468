"""`python tests/native/sanitize.py [pytest arguments]`: the kernels' tests with AddressSanitizer and UBSan.

Builds the kernels anew beside a copy of the code, in a temporary folder, and runs their random trials there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
VARIANTS = ("_avx2", "_avx512", "_tiles")
TESTS = (
    "tests/native/test_linear_trials.py",
    "tests/native/test_linear.py",
    "tests/native/test_elementwise.py",
    "tests/engine/test_attention_trials.py",
    "tests/engine/test_int8_cache.py",
    "tests/engine/test_sources.py",
    "tests/encoder/test_attention.py",
    "tests/engine/test_native_draw.py",
)
FLAGS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
# A process with sanitizers needs more memory.
LEFT_OUT = "tests/native/test_linear.py::test_a_thread_that_ends_leaves_nothing_behind"


def build(variant: str, into: Path) -> None:
    """As setuptools does from pyproject.toml, with the sanitizers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = project["tool"]["setuptools"]["ext-modules"]
    [module] = [each for each in modules if each["name"] == f"server.native.{variant}"]
    flags = [flag for flag in module["extra-compile-args"] if flag not in ("-O1", "-O3", "-g0")]
    macros = [f"-D{name}={value}" for name, value in module["define-macros"]]
    include = f"-I{sysconfig.get_path('include')}"
    sources = [str(ROOT / source) for source in module["sources"]]
    out = str(into / f"{variant}.abi3.so")
    subprocess.run(["g++", *flags, *FLAGS, *macros, include, "-fPIC", "-shared", *sources, "-o", out], check=True)


def library(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for folder in ("server", "tests"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for variant in VARIANTS:
            build(variant, copy / "server" / "native")
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(map(library, ("libasan.so", "libubsan.so"))),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        tests = [*TESTS, "-q", "--deselect", LEFT_OUT, "-p", "no:cacheprovider", "--timeout", "3600"]
        tests += ["--capture=sys", *arguments]  # a sanitizer writes its report to the file descriptor
        return subprocess.run(
            [sys.executable, "-m", "pytest", *tests], cwd=copy, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
