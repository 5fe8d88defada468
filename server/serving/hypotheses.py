"""How many hypotheses of a beam search one prompt may have, and the options that ask for the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.serving.generator import ServedGenerator
from server.serving.options.table import MAX_OUTPUTS


def max_hypotheses(served: ServedGenerator) -> int:
    return min(MAX_OUTPUTS, served.ready.max_running)


def best(count: int, served: ServedGenerator, of_task: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the best ``count``; none for one. ``of_task`` are the model's defaults for the route's task."""
    if count == 1:
        return {}
    usual = of_task.get("num_beams", served.ready.generation_config.get("num_beams"))
    # More than can run are no default either.
    is_taken = isinstance(usual, int) and usual <= served.ready.max_running
    return {"num_beams": max(count, usual) if is_taken else count, "num_return_sequences": count}
