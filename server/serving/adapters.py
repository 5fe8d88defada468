"""Served models that are adapters in the worker of their base: what is true of them, and what the worker calls them."""

from __future__ import annotations

import msgspec

from server.client.worker_client import WorkerClient
from server.errors import SluiceError
from server.protocol import Ready, SharedAdapter


def ready_of(name: str, client: WorkerClient) -> Ready | None:
    """What the worker said of the model of this name; None before it is loaded, or if it cannot serve this adapter."""
    ready = client.ready
    if ready is None or client.model.name == name:
        return ready
    facts = _facts(name, ready)
    if facts is None or facts.problem is not None:
        return None
    return msgspec.structs.replace(
        ready,
        tokenizer=facts.tokenizer or ready.tokenizer,
        generation_config=facts.generation_config,
        attribution=facts.attribution,
        num_parameters=ready.num_parameters + facts.num_parameters,
        adapters=[facts],
    )


def digest_of(name: str, client: WorkerClient) -> str:
    """What requests to the model of this name tell the worker; empty for the worker's own model.

    Raises SluiceError for an adapter that a restarted worker could not load again.
    """
    ready = client.ready
    if ready is None or client.model.name == name:
        return ""
    facts = _facts(name, ready)
    if facts is None or facts.problem is not None:
        reason = "its files have changed" if facts is None else facts.problem
        raise SluiceError(f"The adapter {name} could not be loaded again: {reason}. Restart the server.")
    return facts.digest


def _facts(name: str, ready: Ready) -> SharedAdapter | None:
    return next((each for each in ready.adapters if each.name == name), None)
