"""Errors that the state of the server causes, not the request: a retry is safe.

SluiceError
|-- Unavailable             503  (with Retry-After)
|   |-- QueueFull           503  queue_full
|   |-- Starting            503  starting
|   |-- Draining            503  draining
|   `-- EngineRestarting    503  engine_restarting
`-- RateLimited             429  rate_limited (with Retry-After)
"""

from __future__ import annotations

from server.errors import SluiceError


class Unavailable(SluiceError):
    """The server's state forbids new work for now; nothing was started, so a retry is safe."""

    status = 503
    type = "unavailable_error"
    should_retry = True


class QueueFull(Unavailable):
    """Admission refused: as much work waits as the server promises to finish."""

    code = "queue_full"


class RateLimited(SluiceError):
    """This caller has as much unfinished work as one caller may have; others are still served."""

    status = 429
    code = "rate_limited"
    type = "rate_limit_error"
    should_retry = True


class Starting(Unavailable):
    """A model is still being loaded."""

    code = "starting"


class Draining(Unavailable):
    """The server is stopping."""

    code = "draining"


class EngineRestarting(Unavailable):
    """The model's worker is being replaced and could not take the request in time."""

    code = "engine_restarting"
