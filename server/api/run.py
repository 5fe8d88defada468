"""The life of the front process: bind, answer probes, load, serve, drain, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
import uvloop

from server import allocator, logs, metrics
from server.api import loading
from server.api.app import Application, build_app
from server.api.http.client_address import TrustedProxies
from server.api.http.connections import Connections, affordable
from server.api.http.hosts import ANY, AllowedHosts, allowed_hosts
from server.api.http.listener import BACKLOG, accepting, bind
from server.api.http.protocol import HttpProtocol
from server.api.http.rules import Rules
from server.api.lifespan import load, stop
from server.banner import banner
from server.client.supervisor import Supervisor
from server.client.template import Template
from server.config import ServeConfig
from server.errors import EXIT_INTERNAL, ConfigurationError
from server.status_line import StatusLine

log = logging.getLogger("sluice.server")

KEEP_ALIVE_S = 75
"""Longer than the 60 s of common load balancers, so that they close an idle connection and not we."""
LAST_WORDS_S = 1.0
"""For so long after the port is closed, open connections are answered: a request may be on its way through one."""
RECOVERY_S = 2.0
"""How long a worker that is being replaced when the server is told to stop may take, before its requests are ended."""
LOG_WAIT_S = 1.0
EXIT_S = 10.0
EARLY_EXIT_S = 2.5
QUICK_EXIT_S = 1.8
"""From the end of the drain to the end of the process: usually, while a worker starts, and after a second signal."""


def serve(config: ServeConfig, template: Template | None = None) -> int:
    """Serve until a signal or a failure; the process's exit code. ``template`` is ended too."""
    status = StatusLine(sys.stderr) if sys.stderr.isatty() else None
    handler = logs.set_up(config.log_format, config.log_level, on_drop=metrics.LOG_LINES_DROPPED.inc, sink=status)
    code = 0
    message = ""
    try:
        _allow_many_connections()
        allocator.return_large_blocks()
        with (
            bind(config.host, config.port) as listener,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_run(config, listener, template, status, handler))
    except ConfigurationError as error:
        code, message = error.exit_code, str(error)
    except Exception:
        log.exception("the server failed")
        code, message = EXIT_INTERNAL, "The server crashed with an unexpected error. See the traceback above."
    finally:
        if template is not None:
            template.close()
        handler.close()
    if message:
        sys.stderr.write(f"sluice: {logs.printable(message)}\n")
    return code


def _allow_many_connections() -> None:
    """Every connection takes a file descriptor, and the usual soft limit of 1024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Signals:
    """SIGTERM and SIGINT: the first asks for the end, the second for a quick one."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handling: it would close running streams, and ignore a second SIGTERM."""

    is_hurried = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def hurry(self) -> None:
        """Leave out every wait for clients that `shutdown` can do without."""
        self.is_hurried = True
        self.config.timeout_graceful_shutdown = 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """First the port, and connections later: one closed at once would lose the request that is just coming in.

        It is refused, which tells a load balancer that another replica may have it.
        """
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        if self.server_state.connections and not self.is_hurried:
            await asyncio.sleep(LAST_WORDS_S)
        await super().shutdown(sockets)


def http_server(app: Application, hosts: AllowedHosts | None = None) -> HttpServer:
    """The server of an application's HTTP; without ``hosts`` it may be called by any name."""
    config: ServeConfig = app.front.config
    connections = Connections(
        affordable(config.max_connections),
        config.max_connections_per_address,
        TrustedProxies(config.proxy_networks or []),
    )
    rules = Rules(hosts or AllowedHosts([ANY]), connections, config.max_body_bytes)
    protocol: Any = partial(HttpProtocol, rules=rules)
    return HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
    )


async def _run(
    config: ServeConfig,
    listener: socket.socket,
    template: Template | None,
    status: StatusLine | None,
    handler: logs.BackgroundHandler,
) -> None:
    """Returns after a stop that was asked for; raises what ended the server otherwise."""
    signals = Signals()
    signals.install()
    app = build_app(config, Supervisor(config, template=template))
    http = http_server(app, allowed_hosts(config, has_keys=app.front.has_keys))
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"fields": {"url": f"http://{f'[{host}]' if ':' in host else host}:{port}"}})
    http_task = asyncio.create_task(http.serve(sockets=accepting(listener)))
    work = asyncio.create_task(_work(replace(config, port=port), app, status, handler))
    first_signal: asyncio.Task[Any] = asyncio.create_task(signals.first.wait())
    try:
        await asyncio.wait({http_task, work, first_signal}, return_when=asyncio.FIRST_COMPLETED)
        if first_signal.done():
            await _drain(config, app, signals)
        for task in (work, http_task):
            if task.done():
                task.result()
        if not first_signal.done():
            raise RuntimeError("the server stopped unexpectedly")
    finally:
        is_ready = app.front.supervisor.is_ready()
        hurrying = first_signal
        if first_signal.done():
            hurrying = asyncio.create_task(_hurry(http, signals, is_ready=is_ready))
        await _end(app, http, http_task, work)
        hurrying.cancel()
    log.info("stopped")


async def _work(
    config: ServeConfig, app: Application, status: StatusLine | None, handler: logs.BackgroundHandler
) -> None:
    """Load the models, say so, and watch the workers for as long as there are any."""
    supervisor = app.front.supervisor
    async with loading.shown(supervisor.clients, status):
        await load(app)
        # The log lines about loading stand above the status line, and above the greeting.
        await asyncio.to_thread(handler.wait_written, LOG_WAIT_S)
    if not app.front.lifecycle.is_draining:
        # A server whose greeting nobody can read still serves.
        with contextlib.suppress(OSError):
            sys.stdout.write(banner(config, supervisor.clients, has_keys=app.front.has_keys) + "\n")
            sys.stdout.flush()
    await supervisor.run()


async def _drain(config: ServeConfig, app: Application, signals: Signals) -> None:
    """Not ready at once; then no new work; then wait for what runs, all of it cut short by a second signal."""
    lifecycle = app.front.lifecycle
    lifecycle.is_draining = True
    log.info("draining", extra={"fields": {"active_requests": lifecycle.num_active}})
    if not lifecycle.is_loaded:
        app.front.registry.refuse_new_work()
        return
    if not await _unless(signals.second, app.front.supervisor.ready_within(RECOVERY_S)):
        # Its requests could not go on before it is back, and nobody knows when that is.
        app.front.registry.refuse_new_work()
        return
    await _unless(signals.second, asyncio.sleep(config.drain_delay_s))
    app.front.registry.refuse_new_work()
    await _unless(signals.second, lifecycle.wait_idle(config.drain_timeout_s))


async def _unless(event: asyncio.Event, wait: Coroutine[Any, Any, Any]) -> Any:
    """Wait, but not beyond the event; the result, or None."""
    waiting, told = asyncio.create_task(wait), asyncio.create_task(event.wait())
    await asyncio.wait({waiting, told}, return_when=asyncio.FIRST_COMPLETED)
    result = waiting.result() if waiting.done() else None
    for task in (waiting, told):
        task.cancel()
    await asyncio.gather(waiting, told, return_exceptions=True)
    return result


async def _end(app: Application, http: HttpServer, http_task: asyncio.Task[None], work: asyncio.Task[None]) -> None:
    """Stop the workers, and close the connections when the last words are out."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await stop(app)
    http.should_exit = True
    await http_task


async def _hurry(http: HttpServer, signals: Signals, *, is_ready: bool) -> None:
    """End the process in time, also if a client reads nothing or a thread goes on: threads cannot be interrupted."""
    _exit_after(EXIT_S if is_ready else EARLY_EXIT_S)
    await signals.second.wait()
    http.hurry()
    _exit_after(QUICK_EXIT_S)


def _exit_after(seconds: float) -> None:
    limit = threading.Timer(seconds, os._exit, [0])
    limit.daemon = True
    limit.start()
