"""Where in a body a refused parameter stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel

from server.errors import InvalidRequest


@contextmanager
def parameter_paths(parameters: type[BaseModel]) -> Iterator[None]:
    """Errors name a parameter by its place in the body, as those of the schema do."""
    try:
        yield
    except InvalidRequest as error:
        if error.field is not None and error.field.partition(".")[0] in parameters.model_fields:
            error.location = "parameters."
        raise
