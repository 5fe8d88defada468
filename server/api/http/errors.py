"""Errors of HTTP itself: heads, bodies, and keys. They are refused before anything is known of the request.

SluiceError
|-- PathNotFound                404  not_found
|-- MethodNotAllowed            405  method_not_allowed
|-- InvalidJson                 400  invalid_json
|-- BodyTooLarge                413  body_too_large
|-- UnsupportedMediaType        415  unsupported_media_type
|   `-- UnsupportedEncoding     415  unsupported_encoding
|-- RequestTimeout              408  request_timeout
|-- MalformedRequest            400  malformed_request
|-- UriTooLong                  414  uri_too_long
|-- HeadersTooLarge             431  headers_too_large
|-- HostNotAllowed              421  host_not_allowed
|-- TooManyConnections          503  too_many_connections (with Retry-After)
|-- InvalidApiKey               401  invalid_api_key
|-- ScopeMissing                403  scope_missing
|-- IdempotencyMismatch         422  idempotency_mismatch
|-- AnswerNotKept               422  idempotency_answer_not_kept
`-- TooManyWrongKeys            429  too_many_wrong_keys (with Retry-After)
"""

from __future__ import annotations

from server.availability_errors import Unavailable
from server.errors import SluiceError


class PathNotFound(SluiceError):
    """No route has this path."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("This path does not exist. See /docs for all routes.")


class MethodNotAllowed(SluiceError):
    """The path has no such method."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("This path does not support this method. See the Allow header.")


class InvalidJson(SluiceError):
    """The body is not one JSON value in UTF-8."""

    status = 400
    code = "invalid_json"
    type = "invalid_request_error"


class BodyTooLarge(SluiceError):
    """More bytes than the server reads."""

    status = 413
    code = "body_too_large"
    type = "invalid_request_error"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than the limit of {limit_bytes} bytes.")


class UnsupportedMediaType(SluiceError):
    """The body is not declared as plain JSON."""

    status = 415
    code = "unsupported_media_type"
    type = "invalid_request_error"


class UnsupportedEncoding(UnsupportedMediaType):
    """The body is compressed."""

    code = "unsupported_encoding"


class RequestTimeout(SluiceError):
    """The request's head or body did not arrive in time."""

    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class MalformedRequest(SluiceError):
    """Not HTTP/1.1 as it is written."""

    status = 400
    code = "malformed_request"
    type = "invalid_request_error"


class UriTooLong(SluiceError):
    """A longer address than the server reads."""

    status = 414
    code = "uri_too_long"
    type = "invalid_request_error"


class HeadersTooLarge(SluiceError):
    """More headers, or larger ones, than the server reads."""

    status = 431
    code = "headers_too_large"
    type = "invalid_request_error"


class HostNotAllowed(SluiceError):
    """The Host header names a host that the server does not accept."""

    status = 421
    code = "host_not_allowed"
    type = "invalid_request_error"
    should_retry = False

    def __init__(self, host: str) -> None:
        super().__init__(
            f"The server does not accept the host name {host}. Use the server's address, or ask the operator "
            "to add the name to allowed_hosts."
        )


class TooManyConnections(Unavailable):
    """The server, or the address, has as many connections as it may."""

    code = "too_many_connections"

    def __init__(self, who: str, limit: int, setting: str) -> None:
        super().__init__(f"{who} {limit} open connections, which is the limit ({setting}).", retry_after_s=1.0)


class InvalidApiKey(SluiceError):
    """The request has no key, or one that is not known."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"
    should_retry = False

    def __init__(self, *, is_given: bool) -> None:
        what = "The API key is not valid" if is_given else "This server requires an API key"
        super().__init__(f"{what}. Send Authorization: Bearer KEY. Ask the operator for a key.")


class ScopeMissing(SluiceError):
    """The key is known and does not allow this."""

    status = 403
    code = "scope_missing"
    type = "permission_error"
    should_retry = False

    def __init__(self, scope: str) -> None:
        super().__init__(f"This API key does not have the scope {scope}.")


class TooManyWrongKeys(SluiceError):
    """From one address; its keys are not looked at for a while."""

    status = 429
    code = "too_many_wrong_keys"
    type = "rate_limit_error"
    should_retry = False

    def __init__(self, wait_s: float) -> None:
        super().__init__(
            "Too many invalid API keys came from this address. Wait before you try again.", retry_after_s=wait_s
        )


class IdempotencyMismatch(SluiceError):
    """The idempotency key belongs to another request."""

    status = 422
    code = "idempotency_mismatch"
    type = "invalid_request_error"
    should_retry = False

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for a different request. Use a new key for each request.")


class AnswerNotKept(SluiceError):
    """The answer to this idempotency key is longer than the server keeps."""

    status = 422
    code = "idempotency_answer_not_kept"
    type = "invalid_request_error"
    should_retry = False

    def __init__(self) -> None:
        super().__init__("The response for this Idempotency-Key was too long to keep. Use a new key.")
