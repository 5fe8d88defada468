"""Every module of the package imports, and the examples in its docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import server

SPECS = {
    module.name: module.module_finder.find_spec(module.name)
    for module in pkgutil.walk_packages(server.__path__, "server.")
    # Compiled kernels have no examples, and import only where the processor runs them.
    if not module.name.startswith("server.native._")
}
WITH_EXAMPLES = [name for name, spec in SPECS.items() if ">>> " in (spec.loader.get_source(name) or "")]


def test_every_module_imports() -> None:
    for name in SPECS:
        importlib.import_module(name)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_docstrings_give_what_they_say(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
