"""``Idempotency-Key``: requests with one key and one body are one piece of work, whose answer each of them gets.

A request that comes while the work runs joins it from the beginning; one that comes within ten minutes of its end gets
the same answer. Events of a stream are numbered, and ``Last-Event-ID`` leaves out those up to that number. Work goes on
for a minute after its last client left. Errors that a retry may mend are not kept.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server import caller
from server.api.http.error_replies import error_reply
from server.api.http.errors import AnswerNotKept, IdempotencyMismatch
from server.api.http.shared_work import SharedWork
from server.availability_errors import QueueFull
from server.errors import InvalidParameter, InvalidRequest, SluiceError

KEY_HEADER = "Idempotency-Key"
PLACE_HEADER = "Last-Event-ID"
MAX_KEY_CHARACTERS = 255
KEPT_S = 600.0
MAX_ENTRIES = 1_000
MAX_BYTES = 64 * 1024 * 1024
"""Of all answers that are kept."""


class Idempotency:
    """Stands behind the checks of key and body, so that both are sound."""

    def __init__(self, app: ASGIApp, *, paths: Collection[str]) -> None:
        self.app = app
        self.paths = paths
        self._works: OrderedDict[tuple[str, str], SharedWork] = OrderedDict()
        """By caller and key, the oldest first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get(KEY_HEADER) if scope["type"] == "http" else None
        if key is None or scope["method"] != "POST" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        try:
            place = _place(Headers(scope=scope))
            work, is_joined = self._find(key, scope, body, place)
        except SluiceError as error:
            await error_reply(error, scope)(scope, receive, send)
            return
        if is_joined:
            _tell_record(scope, work)
        else:
            work.start(self.app, scope, body)
        await work.follow(receive, send, is_joined=is_joined, place=place)

    def _find(self, key: str, scope: Scope, body: bytes, place: int) -> tuple[SharedWork, bool]:
        """The work to follow, and whether it had begun before."""
        if not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
            rule = f"must have 1 to {MAX_KEY_CHARACTERS} printable ASCII characters"
            raise InvalidParameter(KEY_HEADER, key, rule)
        self._tidy()
        name = (caller.current().id, key)
        head = f"{scope['path']}?".encode() + scope.get("query_string", b"") + b"\n"
        digest = hashlib.sha256(head + body).digest()
        work = self._works.get(name)
        if work is not None and not work.is_abandoned:
            if work.digest != digest:
                raise IdempotencyMismatch
            if not work.is_kept:
                raise AnswerNotKept
            return work, True
        if place:
            raise InvalidRequest(
                f"The server has no stream for this {KEY_HEADER}. Send the request without {PLACE_HEADER}."
            )
        self._make_room()
        work = self._works[name] = SharedWork(digest)
        return work, False

    def _tidy(self) -> None:
        """Forget what is over: failures and old answers."""
        oldest_s = time.monotonic() - KEPT_S
        for name, work in list(self._works.items()):
            if work.ended_s is not None and (work.ended_s < oldest_s or not work.is_worth_keeping):
                del self._works[name]

    def _make_room(self) -> None:
        """Forget the oldest answers of the caller with the most bytes, until another one fits."""
        num_bytes = sum(work.num_bytes for work in self._works.values())
        while len(self._works) >= MAX_ENTRIES or num_bytes > MAX_BYTES:
            ended = {name: work for name, work in self._works.items() if work.ended_s is not None}
            if not ended:
                raise QueueFull(f"Too many requests with an {KEY_HEADER} are running.", retry_after_s=5)
            by_caller: Counter[str] = Counter()
            for (who, _), work in ended.items():
                by_caller[who] += work.num_bytes
            [(largest, _)] = by_caller.most_common(1)
            oldest = next(name for name in ended if name[0] == largest)
            num_bytes -= self._works.pop(oldest).num_bytes


def _place(headers: Headers) -> int:
    """The number of the last event that the client has; 0 if it has none."""
    value = headers.get(PLACE_HEADER)
    if value is None:
        return 0
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise InvalidParameter(PLACE_HEADER, value, "must be an event id")
    return int(value)


def _tell_record(scope: Scope, work: SharedWork) -> None:
    """What is known of the work is known of this request too."""
    ours, first = scope["state"]["record"], work.record
    if first is not None:
        ours.task, ours.model, ours.streamed = first.task, first.model, first.streamed
        ours.ignored_fields = first.ignored_fields
