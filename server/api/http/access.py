"""Who may ask for what: decided by path and key alone. What is not open needs a key.

A body is read after that, but for dialects that have the key in it: then at most `MAX_KEY_BODY_BYTES` are read first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server import caller
from server.api.http.body_key import read_key
from server.api.http.error_replies import error_reply
from server.api.http.errors import InvalidApiKey, ScopeMissing, TooManyWrongKeys
from server.api.http.keys import Keys, digest_of
from server.api.http.keys import Scope as KeyScope
from server.caller import Caller
from server.errors import SluiceError
from server.serving.record import RequestRecord

OPEN = frozenset({"/", "/livez", "/readyz", "/startupz", "/health"})
"""Probes, which tell a state and nothing else, and the page, which asks for the key itself. Only reading is open."""
OPEN_BELOW = "/page/"
METRICS = "/metrics"
ADMIN_BELOW = "/admin/"
ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

MAX_FAILURES = 20
FAILURES_S = 60.0
"""So many wrong keys in so many seconds, and an address waits: whoever guesses is slow."""
MAX_ADDRESSES = 10_000


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key."""
    return method == "GET" and (path in OPEN or path.startswith(OPEN_BELOW))


def scope_of(path: str) -> KeyScope:
    """What a key must allow."""
    if path in ADMIN or path.startswith(ADMIN_BELOW):
        return "admin"
    return "metrics" if path == METRICS else "use"


class Access:
    """Refuses what its key does not allow."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self.app = app
        self.keys = keys
        self._failures = _Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is supported")
        record: RequestRecord = scope["state"]["record"]
        if not is_open(scope["method"], scope["path"]):
            headers = Headers(scope=scope)
            presented = _presented(headers)
            if scope["state"]["dialect"].has_key_in_body and not _has_key(headers):
                presented, receive = await read_key(scope, headers, receive)
            try:
                self._check(scope, record, presented)
            except SluiceError as error:
                challenge = {"WWW-Authenticate": "Bearer"} if isinstance(error, InvalidApiKey) else {}
                await error_reply(error, scope, challenge)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, record: RequestRecord, presented: str | None) -> None:
        """Raises `InvalidApiKey`, `TooManyWrongKeys` or `ScopeMissing`."""
        address = Caller.of_address((scope.get("client") or ("",))[0]).id
        digest = None if presented is None else digest_of(presented)
        if digest is not None and (wait_s := self._failures.wait_s(address, digest)) > 0:
            raise TooManyWrongKeys(wait_s)
        key = None if digest is None else self.keys.find(digest)
        if key is None or digest is None:
            if digest is not None:
                self._failures.note_wrong(address)
            raise InvalidApiKey(is_given=digest is not None)
        self._failures.note_right(address, digest)
        record.key_id = key.id
        caller.set_current(Caller.of_key(digest))
        wanted = scope_of(scope["path"])
        if not key.allows(wanted):
            raise ScopeMissing(wanted)


def _has_key(headers: Headers) -> bool:
    """Whether a header is there that may hold a key, sound or not."""
    return "authorization" in headers or "x-api-key" in headers


def _presented(headers: Headers) -> str | None:
    """The key as OpenAI's clients send it, or Anthropic's; two different ones are none."""
    found = {value.strip() for value in headers.getlist("x-api-key")}
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        found.add(key.strip() if scheme.lower() == "bearer" else "")
    found.discard("")
    return found.pop() if len(found) == 1 else None


@dataclass(slots=True)
class _Address:
    since_s: float
    num_wrong: int = 0


class _Failures:
    """Wrong keys by address, and the right ones, which a guesser behind the same address does not lock out."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait_s(self, address: str, digest: bytes) -> float:
        """How long a key is not even looked at; 0 where it is."""
        found = self._addresses.get(address)
        if found is None or found.num_wrong < MAX_FAILURES or (address, digest) in self._right:
            return 0.0
        return max(0.0, found.since_s + FAILURES_S - time.monotonic())

    def note_wrong(self, address: str) -> None:
        now_s = time.monotonic()
        found = self._addresses.get(address)
        if found is None or found.since_s + FAILURES_S <= now_s:
            found = self._addresses[address] = _Address(now_s)
        found.num_wrong += 1
        self._addresses.move_to_end(address)
        if len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)

    def note_right(self, address: str, digest: bytes) -> None:
        self._right[address, digest] = None
        self._right.move_to_end((address, digest))
        if len(self._right) > MAX_ADDRESSES:
            self._right.popitem(last=False)
