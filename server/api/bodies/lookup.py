"""Which model the name in a body means."""

from __future__ import annotations

from server.serving.registry import Registry, Served

MEAN_THE_DEFAULT = frozenset({"", "dummy", "tgi"})
"""What clients send that must send something: Hugging Face's the words, others nothing."""


def model_name(registry: Registry, kind: type[Served], name: str | None) -> str | None:
    """The name for `Registry.get`: None, which is the default, where the client means no model of its own.

    A model that really has such a name is meant by it. Adapters are models by name.
    """
    if name in MEAN_THE_DEFAULT and name not in registry.names(kind):
        return None
    return name
