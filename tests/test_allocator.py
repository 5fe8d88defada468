"""Memory of large bodies goes back to the system when they are freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server.api import run
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_PORT, ConfigurationError

SCRIPT = """
import ctypes

from server import allocator


class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]


libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo2.restype = Counts
if {returns}:
    allocator.return_large_blocks()
libc.free(libc.malloc(4 << 20))
before = libc.mallinfo2().hblks
libc.malloc(2 << 20)
print(libc.mallinfo2().hblks - before)
"""


def num_mappings(*, returns: bool) -> int:
    """Of a block of 2 MiB after one of 4 MiB was freed: 1 where it has a mapping of its own, else 0."""
    command = [sys.executable, "-c", SCRIPT.format(returns=returns)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if "mallinfo2" in found.stderr:
        pytest.skip("no glibc that counts mappings")
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


def test_a_large_block_is_returned_when_it_is_freed_whatever_was_freed_before() -> None:
    assert [num_mappings(returns=returns) for returns in (False, True)] == [0, 1]


def test_the_server_returns_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def bind(_host: str, _port: int) -> None:
        raise ConfigurationError("The port is taken.", exit_code=EXIT_PORT)

    monkeypatch.setattr(run.allocator, "return_large_blocks", lambda: calls.append("returned"))
    monkeypatch.setattr(run, "bind", bind)
    assert run.serve(ServeConfig(models=(ModelConfig(name="m", path="m"),))) == EXIT_PORT
    assert calls == ["returned"]
