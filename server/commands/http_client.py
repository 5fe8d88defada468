"""Speaks with a server as any client does: JSON and server-sent events, by the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from server.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 600.0
"""Between two signs of life."""
EXIT_REFUSED = 1
_BROKEN = (OSError, http.client.HTTPException)


class Refused(ConfigurationError):
    """The server's own words for why not, or that it is not there."""

    def __init__(
        self, message: str, *, status: int = 0, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, exit_code=EXIT_REFUSED)
        self.status = status
        """0 where no answer came."""
        self.code = code
        self.retry_after_s = retry_after_s


def _address(url: str) -> SplitResult:
    """The address in its parts. Raises `ConfigurationError` for what is none."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        # Asked for here, since a port that is none is found when it is asked for.
        is_whole = parts.hostname and parts.hostname.encode("idna") and parts.port != 0
        if parts.scheme in ("http", "https") and is_whole:
            return parts
    raise ConfigurationError(f"{url} is not a server address such as {DEFAULT_URL}.")


def _sound_key(key: str | None) -> str | None:
    """The key without the end of the line that it was read from; no message ever shows one."""
    key = (key or "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigurationError("Invalid API key: it must be a single ASCII word without spaces.")
    return key or None


class Client:
    """One connection to one server, made when it is needed and again when it was closed. For one thread."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = _address(url)
        self.url = parts.geturl().rstrip("/")
        self._host, self._port, self._prefix = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._is_secure = parts.scheme == "https"
        self._api_key = _sound_key(api_key)
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._is_aborted = False

    def another(self) -> Client:
        """The same for another thread."""
        return Client(self.url, self._api_key, timeout_s=self._timeout_s)

    def get(self, path: str) -> Any:
        return self._json(self._request("GET", path))

    def post(self, path: str, body: Any) -> Any:
        return self._json(self._request("POST", path, body))

    def stream(self, path: str, body: Any) -> Iterator[Any]:
        """The data of each event. Whoever stops early closes the connection, which ends the request."""
        response = self._request("POST", path, body)
        is_complete = False
        try:
            yield from _events(response)
            is_complete = True
        except _BROKEN as error:
            raise Refused(f"The connection to {self.url} failed: {_line(error)}. Try again.") from None
        finally:
            if not is_complete:
                self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """From another thread: what is being waited for does not come, and nothing is asked any more."""
        self._is_aborted = True
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _request(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """The answer's head, once it is a good one."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        is_reused = self._connection is not None
        try:
            response = self._send(method, path, content, headers)
        except _BROKEN as error:
            self.close()
            # A server may have closed a connection that was idle; nothing of the answer had come.
            is_stale = is_reused and isinstance(error, ConnectionError | http.client.HTTPException)
            if self._is_aborted or not is_stale:
                raise self._unreachable(error) from None
            try:
                response = self._send(method, path, content, headers)
            except _BROKEN as second:
                self.close()
                raise self._unreachable(second) from None
        except BaseException:
            # Interrupted: an answer that comes now would be taken for the next question's.
            self.close()
            raise
        if response.status >= 400:
            raise self._refusal(response)
        return response

    def _send(self, method: str, path: str, content: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request(method, self._prefix + path, content, headers)
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        if self._is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _json(self, response: http.client.HTTPResponse) -> Any:
        try:
            return json.loads(response.read())
        except (*_BROKEN, ValueError) as error:
            self.close()
            raise Refused(f"{self.url} is not a Sluice server: {_line(error)}.") from None

    def _unreachable(self, error: BaseException) -> Refused:
        return Refused(
            f"No server responds at {self.url}: {_line(error)}. Start one (sluice serve MODEL-FOLDER), or give "
            "another address."
        )

    def _refusal(self, response: http.client.HTTPResponse) -> Refused:
        try:
            error = json.loads(response.read())["error"]
            message, code = str(error["message"]), error.get("code")
        except (*_BROKEN, ValueError, KeyError, TypeError, AttributeError):
            self.close()
            message, code = f"{self.url} answers {response.status} {response.reason}.", None
        return Refused(message, status=response.status, code=code, retry_after_s=_seconds(response))


def _seconds(response: http.client.HTTPResponse) -> float | None:
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    is_error = False
    for line in response:
        if line.startswith(b"event:"):
            is_error = line[6:].strip() == b"error"
        elif line.startswith(b"data:"):
            data = json.loads(line[5:])
            if is_error:
                raise Refused(str(data["error"]["message"]), code=data["error"].get("code"))
            yield data


def _line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0][:200].lower()
