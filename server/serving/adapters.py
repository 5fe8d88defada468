"""Served models that are adapters in the worker of their base: their names and versions, and what is true of them."""

from __future__ import annotations

import msgspec

from server.adapter_errors import AdapterVersionNotFound
from server.client.worker_client import WorkerClient
from server.protocol import Ready, SharedAdapter

LEAST_DIGITS = 8
"""Of a digest that names a version."""
MARK = "@"
"""Between an adapter's name and its version."""


def ready_of(name: str, client: WorkerClient) -> Ready | None:
    """What the worker said of the model of the settings that has this name.

    None before it is loaded, or if its base's worker cannot serve it.
    """
    ready = client.ready
    if ready is None or client.model.name == name:
        return ready
    facts = next((each for each in ready.adapters if each.name == name), None)
    return None if facts is None or facts.problem is not None else shared_ready(ready, facts)


def shared_ready(ready: Ready, facts: SharedAdapter) -> Ready:
    """Of an adapter, whose base's worker said ``ready``."""
    return msgspec.structs.replace(
        ready,
        task=facts.task,
        architecture=facts.architecture,
        tokenizer=facts.tokenizer or ready.tokenizer,
        max_model_len=facts.max_model_len - facts.num_virtual_tokens,
        labels=facts.labels,
        problem_type=facts.problem_type,
        embedding=facts.embedding,
        generation_config=facts.generation_config,
        attribution=facts.attribution,
        num_parameters=ready.num_parameters + facts.num_parameters,
        adapters=[facts],
    )


def split_version(name: str) -> tuple[str, str | None]:
    """
    >>> split_version("mood@0a1b2c3d"), split_version("mood")
    (('mood', '0a1b2c3d'), ('mood', None))
    """
    plain, mark, version = name.rpartition(MARK)
    return (plain, version) if mark else (name, None)


def check_version(name: str, version: str, digest: str) -> None:
    """Raise AdapterVersionNotFound unless ``version`` is the beginning of ``digest``, the current one."""
    if len(version) < LEAST_DIGITS or not digest.startswith(version):
        raise AdapterVersionNotFound(name, version, digest[:LEAST_DIGITS])
