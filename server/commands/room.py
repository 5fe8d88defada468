"""Whether the models' weights can fit the memory at all: asked before anything is loaded, answered with the numbers."""

from __future__ import annotations

from pathlib import Path

from server import machine
from server.client.template import DEVICE_FILES
from server.commands.terminal import size
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.models.weights import read_weights
from server.number_types import WEIGHT_TYPES
from server.sharing import base_folder, hosts

LEAST_BYTES = {"auto": 2.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
"""A parameter's, at the least, by dtype."""


def require_room(config: ServeConfig) -> None:
    """Raise `ConfigurationError` where the weights alone are more than what is free.

    A lower bound: what passes may still be refused when its cache is made. What cannot be read is for the worker to
    refuse, which says more.
    """
    shared = hosts(config)
    least = {model.name: least_bytes(model) for model in config.models if model.name not in shared}
    needed = sum(least.values())
    free = machine.free_bytes()
    if needed > free:
        largest = max(least, key=lambda name: least[name])
        of_largest = f", {size(least[largest])} of them for {largest}," if len(least) > 1 else ""
        raise ConfigurationError(
            f"The weights need at least {size(needed)} of memory{of_largest} and {size(free)} is free. "
            f"Serve smaller or fewer models, set quantize to {' or '.join(WEIGHT_TYPES)}, or free memory.",
            exit_code=EXIT_MODEL,
        )


def least_bytes(model: ModelConfig) -> int:
    """Of the machine's memory, for weights; 0 for a model on a GPU or one that cannot be read."""
    is_on_cpu = model.device == "cpu" or (
        model.device == "auto" and not any(Path(name).exists() for name in DEVICE_FILES)
    )
    if not is_on_cpu:
        return 0
    try:
        num_parameters = read_weights(base_folder(model)).num_parameters
    except ConfigurationError:
        return 0
    quantised = WEIGHT_TYPES.get(model.quantize)
    return int(num_parameters * (quantised.least_bytes if quantised else LEAST_BYTES[model.dtype]))
