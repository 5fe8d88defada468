"""Which model a body of OpenAI's routes means."""

from __future__ import annotations

from server.serving.registry import Registry

MEAN_THE_DEFAULT = frozenset({"", "dummy", "tgi"})
"""What clients send that must send something: Hugging Face's the words, others nothing."""


def model_name(registry: Registry, task: str, name: str | None) -> str | None:
    """The name for `Registry.get`: None, which is the task's default, where the client means no model of its own.

    A model that really has such a name is meant by it. Adapters are models by name.
    """
    if name in MEAN_THE_DEFAULT and name not in registry.names_by_task().get(task, []):
        return None
    return name
