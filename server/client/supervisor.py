"""Keeps one worker alive for every model: starts it, watches it, replaces it, and ends it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from server import metrics
from server.client.adapter_copies import AdapterCopies, NotCopied
from server.client.journal import Death
from server.client.template import Template
from server.client.worker_client import GIB, WorkerClient
from server.client.worker_process import Origin, WorkerProcess, describe_exit
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_CRASH_LOOP, EXIT_MODEL, ConfigurationError, ServerShutdown
from server.protocol import LoadAdapter
from server.sharing import base_folder, hosts

WORKER_COMMAND = (sys.executable, "-m", "server.worker")
MAX_BACKOFF_S = 10.0
CRASH_WINDOW_S = 300.0
READY_LOOK_S = 0.05
FILE_BYTES_PER_BYTE = 2
"""Largest file of weights in the memory that it takes: numbers of four bytes may be held in two."""
STALL_LOOKS = 10
"""A worker is looked at so many times in ``stall_timeout_s``."""

log = logging.getLogger("sluice.supervisor")


async def _all_loaded(clients: Sequence[WorkerClient]) -> None:
    for client in clients:
        await client.loaded.wait()


class CrashHistory:
    """Deaths of one worker that tell of a worker that cannot work, within the last five minutes.

    A finished request clears it. The deaths by which a suspect is found do not count, but each culprit found does:
    one request may kill workers, and not every request does.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._max_restarts = config.max_restarts
        self._backoff_s = config.restart_backoff_s
        self._deaths_s: deque[float] = deque()
        self._num_finished = 0

    def record(self, *, num_finished: int, counts: bool) -> None:
        """A worker has died; ``num_finished`` requests had been finished until then."""
        now_s = time.monotonic()
        if num_finished != self._num_finished:
            self._deaths_s.clear()
            self._num_finished = num_finished
        if counts:
            self._deaths_s.append(now_s)
        while self._deaths_s and now_s - self._deaths_s[0] > CRASH_WINDOW_S:
            self._deaths_s.popleft()

    @property
    def num_deaths(self) -> int:
        return len(self._deaths_s)

    @property
    def is_crash_loop(self) -> bool:
        return self.num_deaths >= self._max_restarts

    @property
    def backoff_s(self) -> float:
        """Pause before the next start."""
        return min(self._backoff_s * 2.0 ** max(self.num_deaths - 1, 0), MAX_BACKOFF_S)


class Supervisor:
    """All workers of the server. ``command`` starts those that ``template`` does not fork; it is given ``--fd N``."""

    def __init__(
        self, config: ServeConfig, *, command: Sequence[str] = WORKER_COMMAND, template: Template | None = None
    ) -> None:
        self.config = config
        self.copies = AdapterCopies()
        """Of the folders of adapters that share the worker of their base."""
        self._shared = hosts(config)
        clients = {model.name: self._new_client(model) for model in config.models if model.name not in self._shared}
        self.clients = {model.name: clients[self._shared.get(model.name, model.name)] for model in config.models}
        """By name of the model; adapters may share that of their base."""
        self._origin = Origin(command=command, template=template, limit_s=config.start_timeout_s)
        self._workers: set[WorkerProcess] = set()
        self._keepers: list[asyncio.Task[None]] = []

    def is_live(self) -> bool:
        """Whether every model's worker is kept: the server can come back from whatever happens to one."""
        return not any(keeper.done() for keeper in self._keepers)

    def is_ready(self) -> bool:
        """Whether every model can compute now."""
        return self.is_live() and all(client.state == "ready" for client in self.clients.values())

    async def ready_within(self, limit_s: float) -> bool:
        """Whether every model can compute before the time is over."""
        deadline_s = time.monotonic() + limit_s
        # Looked at once or twice in the life of a server.
        while not self.is_ready():
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(READY_LOOK_S)
        return True

    async def start(self) -> None:
        """Start all workers at once and return when all are ready.

        Raises ConfigurationError if one cannot become ready; then none is left.
        """
        try:
            await asyncio.to_thread(self._copy_adapters)
            await self._start(self._kept_clients)
            # What cannot share the worker of its base gets one of its own.
            await self._start(self._separate())
        except BaseException:
            await self.stop()
            raise

    async def _start(self, clients: Sequence[WorkerClient]) -> None:
        self._keepers += [asyncio.create_task(self._keep(client)) for client in clients]
        all_loaded = asyncio.create_task(_all_loaded(clients))
        try:
            await asyncio.wait([all_loaded, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
            self._raise_what_a_keeper_raised()
        finally:
            all_loaded.cancel()

    @property
    def _kept_clients(self) -> list[WorkerClient]:
        """One for each worker."""
        return list(dict.fromkeys(self.clients.values()))

    def _new_client(self, model: ModelConfig) -> WorkerClient:
        return WorkerClient(model, self.config.num_on_gpu(model), self.copies.release)

    def _copy_adapters(self) -> None:
        """Those of the settings, for the workers of their bases. One that cannot be copied gets a worker of its own."""
        sources: dict[str, list[LoadAdapter]] = {}
        for model in self.config.models:
            if (host := self._shared.get(model.name)) is None:
                continue
            try:
                source = self.copied(model, Path(model.path))
            except NotCopied as problem:
                log.warning("adapter not shared", extra={"fields": {"model": model.name, "reason": str(problem)}})
            else:
                sources.setdefault(host, []).append(source)
        for host, found in sources.items():
            self.clients[host].adapters.begin(found)

    def copied(self, model: ModelConfig, folder: Path, within: Path | None = None) -> LoadAdapter:
        """``model``, an adapter in ``folder``, as its base's worker takes it. Slow. Raises `NotCopied`."""
        base = str(base_folder(model).resolve())
        max_bytes = int(model.max_adapter_gib * FILE_BYTES_PER_BYTE * GIB)
        copy = self.copies.add(folder, max_bytes=max_bytes, within=within)
        return LoadAdapter(copy.digest, dataclasses.replace(model, path=str(copy.folder), base=base))

    def _separate(self) -> list[WorkerClient]:
        """New clients for the adapters that their workers cannot serve."""
        found = []
        for model in self.config.models:
            host = self._shared.get(model.name)
            if host is not None and model.name not in self.clients[host].adapters.initial:
                self.clients[model.name] = self._new_client(model)
                found.append(self.clients[model.name])
        return found

    async def run(self) -> None:
        """Return after `stop`. Raises ConfigurationError when a worker cannot be kept alive."""
        await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        self._raise_what_a_keeper_raised()

    def _raise_what_a_keeper_raised(self) -> None:
        for keeper in self._keepers:
            if keeper.done() and not keeper.cancelled() and (error := keeper.exception()) is not None:
                raise error

    async def stop(self) -> None:
        """End every worker. Requests that still run end with ServerShutdown."""
        for client in self._kept_clients:
            client.stop(ServerShutdown("The server stopped before the answer was complete."))
        for keeper in self._keepers:
            keeper.cancel()
        try:
            if self._keepers:
                await asyncio.wait(self._keepers)
        finally:
            for worker in self._workers:
                worker.kill()
            self.copies.close()

    async def _keep(self, client: WorkerClient) -> None:
        """One worker after another, until cancelled or until there is no hope."""
        history = CrashHistory(self.config)
        while True:
            end, death = await self._run_one_worker(client)
            if client.ready is None:
                raise _start_failure(client, end)
            history.record(num_finished=client.num_finished, counts=not death.was_trial or death.culprit is not None)
            _report_death(client, end, death)
            if history.is_crash_loop:
                raise _crash_loop(client, history.num_deaths)
            await asyncio.sleep(history.backoff_s)

    async def _run_one_worker(self, client: WorkerClient) -> tuple[str, Death]:
        """How it ended, in words, and who was in it; nothing is left of it then."""
        try:
            worker = await WorkerProcess.start(self._origin, client, self._num_loading())
        except OSError as error:
            return f"could not be started: {error}", client.detach()
        self._workers.add(worker)
        log.info("worker started", extra={"fields": {"model": client.model.name, "pid": worker.process.pid}})
        stall = None
        try:
            stall = await self._watch(client, worker)
        finally:
            death = client.detach()
            exit_code = await worker.end()
            self._workers.discard(worker)
        return stall or f"ended with {describe_exit(exit_code)}", death

    def _num_loading(self) -> int:
        """Workers that are being started or replaced now."""
        return sum(client.state != "ready" for client in self._kept_clients)

    async def _watch(self, client: WorkerClient, worker: WorkerProcess) -> str | None:
        """Return when the worker is gone, or when it has been killed because of what is returned.

        Silence is counted in looks, not by the clock: a front that was itself stopped for a while sees one more look,
        then reads what the worker had sent meanwhile.
        """
        deadline_s = time.monotonic() + self.config.start_timeout_s
        num_silent_looks = 0
        num_frames = client.num_frames
        while not await worker.connection.closed_within(self.config.stall_timeout_s / STALL_LOOKS):
            is_silent = client.expects_frame and client.num_frames == num_frames
            num_silent_looks = num_silent_looks + 1 if is_silent else 0
            num_frames = client.num_frames
            if client.state != "ready" and time.monotonic() > deadline_s:
                await worker.kill_with_stacks()
                return f"was not ready within {self.config.start_timeout_s:g} s"
            if num_silent_looks > STALL_LOOKS:
                await worker.kill_with_stacks()
                return f"did not respond for {self.config.stall_timeout_s:g} s"
            if not client.expects_frame:
                client.ping()
        return None


def _start_failure(client: WorkerClient, end: str) -> ConfigurationError:
    if client.refused is not None:
        return ConfigurationError(client.refused.message, exit_code=client.refused.exit_code)
    message = f"Model {client.model.name} was not loaded: its worker {end}. See the output above."
    return ConfigurationError(message, exit_code=EXIT_MODEL)


def _report_death(client: WorkerClient, end: str, death: Death) -> None:
    metrics.record_restart(client.model.name)
    fields = {"model": client.model.name, "cause": end, "num_running": client.num_running}
    if client.refused is not None:
        fields["refused"] = client.refused.message
    if death.culprit is not None:
        fields["quarantined"] = death.culprit.command.request_id
    log.error("worker died", extra={"fields": fields})


def _crash_loop(client: WorkerClient, num_deaths: int) -> ConfigurationError:
    client.stop(ServerShutdown("The model's process keeps failing and the server exits."))
    return ConfigurationError(
        f"Model {client.model.name}: its worker died {num_deaths} times without finishing a request. "
        "See the log for the cause of each death.",
        exit_code=EXIT_CRASH_LOOP,
    )
