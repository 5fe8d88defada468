"""Whether one seed gives one text, whatever else is in the batch, before a restart and after it."""

from __future__ import annotations

from server.engine.model_runner import ModelRunner


def problem(runner: ModelRunner, *, deterministic: bool) -> str | None:
    """Why one seed may give different texts, as a sentence that names the setting that helps; None if it cannot.

    Drawing a token depends on seed, place and logits alone, so all depends on whether logits can differ.
    """
    if deterministic or runner.is_row_invariant:
        return None
    if not runner.can_reuse_blocks:
        return (
            f"In the {runner.name} executor, where a long prompt is cut depends on other requests, which changes how "
            "its logits are rounded. No setting prevents this."
        )
    return (
        f"In the {runner.name} executor with {runner.attention} attention on {runner.device.type}, other requests in a "
        "step may change how logits are rounded. Set deterministic to prevent this."
    )
