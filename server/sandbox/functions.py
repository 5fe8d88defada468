"""The functions that run in the sandbox, by name. Each is pure: plain data in, plain data out, no files, no network.

A function refuses its arguments by a ValueError, whose message is whole sentences for the client.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

FUNCTIONS: dict[str, str] = {
    "check_chat": "server.sandbox.rendering",
    "check_grammar": "server.sandbox.grammars",
    "check_template": "server.sandbox.rendering",
    "render_chat": "server.sandbox.rendering",
    "render_template": "server.sandbox.rendering",
}
"""The module of each; imported at its first call, so that a process loads what it is used for."""


def find(name: str) -> Callable[..., Any]:
    """The function, which has the same name in its module."""
    function: Callable[..., Any] = getattr(import_module(FUNCTIONS[name]), name)
    return function
