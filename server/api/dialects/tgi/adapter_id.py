"""``adapter_id`` of Text Generation Inference and LoRAX: an adapter of the request's model, by its served name."""

from __future__ import annotations

from server.adapter_errors import AdapterNotFound
from server.api.bodies.lookup import model_name
from server.api.bodies.schemas import GenerateRequest
from server.errors import ConflictingParameters
from server.sentences import echo
from server.serving.adapters import split_version
from server.serving.generator import ServedGenerator
from server.serving.options.table import GenerateOptions
from server.serving.registry import Registry

MEAN_NONE = ("", "__base_model__")
"""What clients send for the model itself; the second is LoRAX's word."""


def read_adapter_id(body: GenerateRequest, registry: Registry) -> tuple[str | None, GenerateOptions]:
    """The model that the request means, and its parameters without ``adapter_id``."""
    parameters = body.parameters or GenerateOptions()
    adapter_id = parameters.adapter_id
    if adapter_id is None:
        return body.model, parameters
    parameters = parameters.model_copy(update={"adapter_id": None})
    if adapter_id in MEAN_NONE:
        return body.model, parameters
    served = [each for each in registry.all() if isinstance(each, ServedGenerator) and each.origin.parent is not None]
    found = next((each for each in served if each.name in (adapter_id, split_version(adapter_id)[0])), None)
    if found is None:
        there_are = f"Served: {', '.join(each.name for each in served)}." if served else "There are none."
        raise AdapterNotFound(f"There is no adapter {echo(adapter_id)}. {there_are}", param="adapter_id")
    asked = model_name(registry, ServedGenerator, body.model)
    if asked not in (None, adapter_id, found.name, found.origin.parent):
        raise ConflictingParameters("adapter_id", "model", f"the adapter belongs to {found.origin.parent}")
    return adapter_id, parameters
