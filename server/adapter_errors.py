"""Errors of adapters: named, loaded and unloaded by clients.

SluiceError
|-- InvalidRequest
|   |-- AdapterRefused          422  adapter_refused
|   `-- AdapterExists           422  adapter_exists
|-- AdapterNotFound             404  adapter_not_found
|-- AdapterVersionNotFound      404  adapter_version_not_found
|-- AdapterForbidden            403  adapter_forbidden
`-- AdapterQuarantined          500  adapter_quarantined
"""

from __future__ import annotations

from server.errors import InvalidRequest, SluiceError
from server.sentences import echo


class AdapterRefused(InvalidRequest):
    """The folder cannot be served beside its base."""

    code = "adapter_refused"


class AdapterExists(InvalidRequest):
    """The name is taken."""

    code = "adapter_exists"


class AdapterNotFound(SluiceError):
    """No adapter of that name is served."""

    status = 404
    code = "adapter_not_found"
    type = "invalid_request_error"


class AdapterVersionNotFound(SluiceError):
    """The name is served with other content than the request names."""

    status = 404
    code = "adapter_version_not_found"
    type = "invalid_request_error"

    def __init__(self, name: str, version: str, current: str) -> None:
        super().__init__(
            f"{echo(name)} has no version {echo(version)}: its current version is {current}. "
            f"Use {echo(f'{name}@{current}')}, or leave the version out.",
            param="model",
        )


class AdapterForbidden(SluiceError):
    """Who asks may not change adapters, or not with that folder."""

    status = 403
    code = "adapter_forbidden"
    type = "permission_error"


class AdapterQuarantined(SluiceError):
    """The model's process crashed each time it had the adapter."""

    code = "adapter_quarantined"
    should_retry = False

    def __init__(self) -> None:
        super().__init__(
            "The model's process crashed twice with this adapter, which is disabled. Load it again, or another version."
        )
