"""One model as the serving classes see it: a request in, its tokens or scores out, whatever happens to the worker."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from server import metrics
from server.adapter_errors import AdapterQuarantined
from server.availability_errors import EngineRestarting
from server.client.adapters import Adapters, AdapterVersion
from server.client.connection import Connection
from server.client.journal import Death, Entry, Journal
from server.config import ModelConfig
from server.errors import FAILURES, DeadlineExceeded, OutputDiverged, RequestQuarantined, ServerShutdown, SluiceError
from server.protocol import (
    Abort,
    AdapterState,
    Encode,
    Failed,
    Generate,
    Load,
    LoadAdapter,
    Ping,
    Ready,
    Refused,
    Reply,
    Scores,
    Stats,
    Tokens,
    UnloadAdapter,
)

MAX_WAIT_S = 60.0
"""How long a request that no worker has had yet waits for one."""
MAX_UNREAD_S = 30.0
"""A consumer that takes none of its tokens for so long is gone: its request is aborted."""

GIB = 1024**3

log = logging.getLogger("sluice.client")


class WorkerClient:
    """Handle of one model's worker, the same through all its restarts.

    A request that a worker has had is never given up because of the worker's death: the next one gets it again,
    with the tokens that were delivered as part of it, and the consumer sees only a pause.
    """

    def __init__(
        self, model: ModelConfig, num_on_gpu: int = 1, on_drop: Callable[[str], None] = lambda _: None
    ) -> None:
        """``num_on_gpu`` models of the server share a GPU with this one, which counts too.

        ``on_drop`` is called with the digest of an adapter whose files are not needed any more, once for each command.
        """
        self.model = model
        self.adapters = Adapters(self._drop_adapter)
        self._on_drop = on_drop
        self._num_on_gpu = num_on_gpu
        self.ready: Ready | None = None
        """Set once loaded, and kept during restarts."""
        self.refused: Refused | None = None
        """Why the last worker did not become ready, if it said so."""
        self.state: Literal["starting", "ready", "restarting", "stopped"] = "starting"
        self.loaded = asyncio.Event()
        """The first worker has become ready."""
        self.num_frames = 0
        """Frames read from this worker and all before it."""
        self.num_finished = 0
        """Requests answered in full."""
        self.token_budget: int | None = None
        """Most tokens of prompts or texts in one step, as the worker has learned; None where it learns none."""
        self._journal = Journal()
        self._connection: Connection | None = None
        self._pinged = False

    @property
    def load(self) -> Load:
        """First message to the next worker.

        The first worker measured the free memory, and requests were admitted by what came of it: those after it get
        the same limits, whatever is free when they start.
        """
        if self.ready is None:
            return Load(self.model, num_on_gpu=self._num_on_gpu, adapters=self.adapters.to_load)
        kv_cache_gib = self.ready.kv_cache_bytes / GIB
        model = dataclasses.replace(self.model, max_model_len=self.ready.max_model_len, kv_cache_gib=kv_cache_gib)
        if self.ready.dtype_reason is not None:
            # It was chosen by measurement. Another one would change scores.
            model = dataclasses.replace(model, dtype=self.ready.dtype)  # type: ignore[arg-type]
        return Load(model, num_on_gpu=self._num_on_gpu, adapters=self.adapters.to_load)

    async def load_adapter(self, source: LoadAdapter) -> AdapterVersion:
        """The adapter, which the worker has tried. It is known as long as the result is held.

        Raises NotServed, and AdapterQuarantined if reading it ended the worker twice.
        """
        if self.state == "stopped":
            raise ServerShutdown("The server has stopped.")
        answer = self.adapters.add(source)
        if self._connection is not None and self.state == "ready":
            self._connection.send([source])
        # Others may wait for it too, and go on if this one does not.
        return await asyncio.shield(answer)

    def _drop_adapter(self, digest: str) -> None:
        self._on_drop(digest)
        if self._connection is not None and self.state == "ready":
            self._connection.send([UnloadAdapter(digest)])
        self._note_adapters()

    def _note_adapters(self) -> None:
        metrics.set_adapters(
            self.model.name, self.adapters.num_known, len(self.adapters.resident), self.adapters.resident_bytes
        )

    @property
    def num_running(self) -> int:
        """Requests that are not finished."""
        return len(self._journal)

    @property
    def expects_frame(self) -> bool:
        """Whether a live worker would send something within one step."""
        return self._pinged or self._journal.worker_has_work

    async def stream(
        self,
        command: Generate,
        on_start: Callable[[], None] | None = None,
        unwanted: Callable[[], Iterable[int]] | None = None,
    ) -> AsyncGenerator[list[Tokens], None]:
        """Tokens in order, each once, until every output has had its message with the finish reason.

        What comes together has one message for each output. A slow consumer gets several steps' tokens in one.
        Closing the generator early aborts the request. ``on_start`` is called once, when the first step has computed
        any of it. ``unwanted`` names samples that need not go on, such as those with a stop string; it is called each
        time the consumer comes back for more.
        """
        with self._running(command) as entry:
            entry.on_start = on_start
            while True:
                await entry.news.wait()
                if entry.error is not None and entry.all_taken:
                    raise entry.error
                yield entry.take()
                if unwanted is not None:
                    self._drop(entry, unwanted())
                if entry.is_finished and entry.all_taken:
                    return

    async def encode(self, command: Encode, on_start: Callable[[], None] | None = None) -> Scores:
        """The encoder's answer. Cancellation aborts the request. ``on_start`` is as in `stream`."""
        with self._running(command) as entry:
            entry.on_start = on_start
            await entry.news.wait()
            if entry.scores is None:
                raise entry.error or SluiceError("The model's output for this request was lost.")
            return msgspec.structs.replace(entry.scores, request_id=command.request_id)

    @contextmanager
    def _running(self, command: Generate | Encode) -> Iterator[Entry]:
        if self.state == "stopped":
            raise ServerShutdown("The server has stopped.")
        if self.adapters.is_quarantined(command.adapter):
            raise AdapterQuarantined
        entry = self._journal.add(command)
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(MAX_WAIT_S, self._give_up, entry)]
        if isinstance(command, Generate) and command.deadline_s is not None:
            timers.append(loop.call_later(command.deadline_s - time.monotonic(), self._end_in_time, entry))
        try:
            self._send_what_may_go()
            yield entry
        finally:
            for timer in timers:
                timer.cancel()
            self._forget(entry)

    def _give_up(self, entry: Entry) -> None:
        if not entry.was_sent:
            message = f"The model is restarting and was not back within {MAX_WAIT_S:g} s. Try again."
            self._fail(entry, EngineRestarting(message, retry_after_s=10))

    def _end_in_time(self, entry: Entry) -> None:
        """A worker that has the request ends it by itself."""
        if entry.sent:
            return
        if any(output.token_ids for output in entry.outputs):
            entry.end("max_time")
            self._forget(entry)
        else:
            self._fail(entry, DeadlineExceeded())

    def _fail(self, entry: Entry, error: SluiceError) -> None:
        entry.error = error
        entry.news.set()
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """Nothing more is delivered to it, and the worker frees what it holds."""
        if not self._journal.remove(entry):
            return
        if entry.sent and self._connection is not None:
            self._connection.send([Abort(entry.wire_id)])
        self._send_what_may_go()

    def _drop(self, entry: Entry, indices: Iterable[int]) -> None:
        """The worker need not go on with these outputs; nothing more is delivered to them."""
        dropped = entry.drop(indices)
        if dropped and entry.sent and self._connection is not None:
            self._connection.send([Abort(entry.wire_id, index) for index in dropped])

    def _send_what_may_go(self) -> None:
        if self._connection is None or self.state != "ready" or not self._connection.is_writable:
            return
        if entries := self._journal.take_sendable():
            self._connection.send([entry.resumed() for entry in entries])

    def attach(self, connection: Connection) -> None:
        """A new worker was started; it loads the model."""
        self._connection = connection
        self._pinged = False
        self.refused = None

    def detach(self) -> Death:
        """The worker is dead. Its requests wait for the next one, but for a proven culprit."""
        self._connection = None
        if self.state == "ready":
            self.state = "restarting"
        death = self._journal.worker_died()
        if death.culprit is not None:
            death.culprit.error = RequestQuarantined("The model's process crashed each time it ran this request.")
            death.culprit.news.set()
        self._quarantine(self.adapters.on_death(_adapter_of(death.culprit)))
        for entry in self._journal:
            if isinstance(entry.command, Generate) and (entry.command.deadline_s or math.inf) <= time.monotonic():
                self._end_in_time(entry)
        return death

    def _quarantine(self, digests: Collection[str]) -> None:
        """No request may have these adapters any more."""
        for entry in self._journal:
            if _adapter_of(entry) in digests:
                self._fail(entry, AdapterQuarantined())

    def stop(self, error: SluiceError) -> None:
        """No worker will come any more: every request ends with ``error``."""
        self.state = "stopped"
        self.adapters.stop(error)
        for entry in self._journal:
            self._fail(entry, error)

    def ping(self) -> None:
        """Ask an idle worker for a sign of life."""
        if self._connection is not None and self.state == "ready":
            self._pinged = True
            self._connection.send([Ping()])

    def on_writable(self) -> None:
        """The worker reads again."""
        self._send_what_may_go()

    def on_replies(self, replies: list[Reply]) -> None:
        """What the worker sent, in order."""
        self.num_frames += 1
        self._pinged = False
        # First, for a request that began in this step may also end in it, and is forgotten then.
        for stats in [reply for reply in replies if isinstance(reply, Stats)]:
            self._on_step(stats)
        something_ended = False
        for reply in replies:
            match reply:
                case Tokens():
                    something_ended |= self._deliver(reply)
                case Scores() | Failed():
                    something_ended |= self._answer(reply)
                case AdapterState():
                    self.adapters.on_state(reply)
                    self._note_adapters()
                case Ready():
                    self._on_ready(reply)
                case Refused():
                    self.refused = reply
        if something_ended:
            self._send_what_may_go()

    def _on_step(self, stats: Stats) -> None:
        self.token_budget = stats.token_budget or self.token_budget
        metrics.record_step(self.model.name, stats)
        for wire_id in stats.started:
            if (entry := self._journal.get(wire_id)) is not None:
                entry.mark_started()

    def _on_ready(self, ready: Ready) -> None:
        if self.state == "stopped":
            return
        # Later workers are started with what the first one found.
        self.ready = ready if self.ready is None else msgspec.structs.replace(ready, adapters=self.ready.adapters)
        self.adapters.on_ready(ready.adapters)
        self.token_budget = ready.token_budget or None
        self.state = "ready"
        metrics.set_model_info(self.model.name, ready)
        fields = {"model": self.model.name, "load_s": round(ready.load_s, 2), "kernels": ready.kernels}
        log.info("worker ready", extra={"fields": fields})
        self._note_adapters()
        if self._connection is not None and (sources := self.adapters.to_send):
            self._connection.send(sources)
        self.loaded.set()
        self._send_what_may_go()

    def _deliver(self, tokens: Tokens) -> bool:
        """Whether more may be sent now. Replies to a request that has been forgotten are dropped."""
        entry = self._journal.get(tokens.request_id)
        if entry is None:
            return False
        try:
            entry.append(tokens)
        except OutputDiverged as error:
            self._fail(entry, error)
            return True
        if tokens.finish_reason is not None and entry.is_finished:
            self._finish(entry)
            return True
        if entry.unread_s > MAX_UNREAD_S:
            entry.end("abort")
            self._forget(entry)
        return self._journal.mark_alive(entry)

    def _answer(self, reply: Scores | Failed) -> bool:
        """As `_deliver`."""
        entry = self._journal.get(reply.request_id)
        if entry is None:
            return False
        if isinstance(reply, Scores):
            entry.scores = reply
            entry.news.set()
            self._finish(entry)
        else:
            self._journal.remove(entry)
            self._fail(entry, FAILURES.get(reply.code, SluiceError)(reply.message))
        return True

    def _finish(self, entry: Entry) -> None:
        self._journal.remove(entry)
        self.num_finished += 1
        if adapter := _adapter_of(entry):
            self.adapters.on_finished(adapter)


def _adapter_of(entry: Entry | None) -> str:
    """Its digest; empty for none."""
    return "" if entry is None else entry.command.adapter
