"""One run of the application whose messages several clients get, each in its own time."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.serving.record import RequestRecord

MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""A longer answer is not kept: it waits for those who read it, and nobody can join any more."""
MESSAGE_BYTES = 400
"""Of a message without a body."""
ALONE_S = 60.0
"""Work that nobody follows ends after this long."""
SEND_LIMIT_S = 30.0
"""A client that takes nothing for so long is cut off."""
REPLAYED = (b"idempotency-replayed", b"true")


class SharedWork:
    """Begins once, with `start`; `follow` sends what it has answered and answers from now on."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        """Of the request."""
        self.record: RequestRecord | None = None
        """Of the request that began it."""
        self.is_kept = True
        """Whether all that was answered is still here."""
        self.ended_s: float | None = None
        """Monotonic time of its end."""
        self.num_bytes = 0
        """That are held."""
        self._messages: list[tuple[Message, int]] = []
        """With the number of the event that each is; 0 of what is none."""
        self._num_dropped = 0
        """Messages that are gone from the beginning of the list."""
        self._places: dict[object, int] = {}
        """Of each follower, how many messages it has had."""
        self._num_events = 0
        self._is_stream = False
        self._is_complete = False
        self._changed = asyncio.Event()
        self._abandoned = asyncio.Event()
        self._alone: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_abandoned(self) -> bool:
        """Whether it is being ended before its answer is complete: nobody can join any more."""
        return self._abandoned.is_set()

    @property
    def is_worth_keeping(self) -> bool:
        """Whether a retry should get the answer instead of another try."""
        if not self.is_kept:
            return True
        if not self._is_complete:
            return False
        start = self._messages[0][0]
        if Headers(scope=start).get("x-should-retry") == "false":
            return True
        # A stream's status was sent before it failed.
        has_failed = self.record is not None and self.record.error_code is not None
        return start["status"] < 300 and not has_failed

    def start(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        """Run the application on the request, whose body has been read."""
        self.record = scope["state"]["record"]
        self._task = asyncio.create_task(self._run(app, scope, body))
        # Looked at by those who follow; there may be nobody.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def follow(self, receive: Receive, send: Send, *, is_joined: bool, place: int) -> None:
        """Send everything but the events up to number ``place``; return at its end or when the client leaves."""
        follower = object()
        self._places[follower] = 0
        if self._alone is not None:
            self._alone.cancel()
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            while not (leaving.done() or await self._send_next(follower, send, is_joined=is_joined, place=place)):
                if self._places[follower] == self._num_dropped + len(self._messages) and self.ended_s is None:
                    changed = asyncio.ensure_future(self._changed.wait())
                    await asyncio.wait({changed, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
        finally:
            leaving.cancel()
            del self._places[follower]
            self._tell()
            if not self._places and self.ended_s is None:
                self._alone = asyncio.get_running_loop().call_later(ALONE_S, self._abandoned.set)

    async def _send_next(self, follower: object, send: Send, *, is_joined: bool, place: int) -> bool:
        """Send the follower's next message, if there is one. Whether nothing comes after it."""
        next_ = self._places[follower] - self._num_dropped
        if next_ < len(self._messages):
            message, number = self._messages[next_]
            if message["type"] == "http.response.start":
                # Layers around this one write their own headers into it.
                message = {**message, "headers": [*message["headers"], *([REPLAYED] if is_joined else [])]}
            if not 0 < number <= place or not message.get("more_body"):
                await _send(message, send)
            self._places[follower] += 1
            self._tell()
            return message["type"] == "http.response.body" and not message.get("more_body")
        if self.ended_s is not None:
            assert self._task is not None
            # What the application raised is this request's failure too.
            self._task.result()
            return True
        return False

    async def _run(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await self._abandoned.wait()
            return {"type": "http.disconnect"}

        try:
            await app(scope, receive, self._take)
        finally:
            self.ended_s = time.monotonic()
            self._tell()

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_stream = "event-stream" in Headers(scope=message).get("content-type", "")
        parts = self._events(message) if self._is_stream and message.get("body") else [(message, 0)]
        self._messages += parts
        self.num_bytes += sum(_num_bytes(part) for part, _ in parts)
        self._is_complete = message["type"] == "http.response.body" and not message.get("more_body")
        self._tell()
        while self.num_bytes > MAX_ANSWER_BYTES:
            self.is_kept = False
            self._drop_what_all_have()
            if self.num_bytes > MAX_ANSWER_BYTES:
                await self._changed.wait()

    def _events(self, message: Message) -> list[tuple[Message, int]]:
        """A message for each event, with its number as its id. Comments have none."""
        parts: list[tuple[Message, int]] = []
        for event in message["body"].removesuffix(b"\n\n").split(b"\n\n"):
            is_comment = event.startswith(b":")
            self._num_events += not is_comment
            number = 0 if is_comment else self._num_events
            head = b"" if is_comment else b"id: %d\n" % number
            parts.append(({**message, "body": head + event + b"\n\n", "more_body": True}, number))
        parts[-1][0]["more_body"] = message.get("more_body", False)
        return parts

    def _drop_what_all_have(self) -> None:
        least = min(self._places.values(), default=self._num_dropped + len(self._messages))
        num_gone = least - self._num_dropped
        self.num_bytes -= sum(_num_bytes(message) for message, _ in self._messages[:num_gone])
        del self._messages[:num_gone]
        self._num_dropped = least

    def _tell(self) -> None:
        """Wake all that wait for something to change."""
        self._changed.set()
        self._changed = asyncio.Event()


def _num_bytes(message: Message) -> int:
    """About what a message takes in memory; an event of a stream is often shorter than what holds it."""
    return MESSAGE_BYTES + len(message.get("body", b""))


async def _send(message: Message, send: Send) -> None:
    try:
        async with asyncio.timeout(SEND_LIMIT_S):
            await send(message)
    except TimeoutError:
        raise ClientDisconnect from None


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
