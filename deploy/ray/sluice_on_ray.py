"""Sluice on Ray Serve: the unchanged application and its workers in every replica.

Settings come from SLUICE_* variables and from the file that SLUICE_CONFIG names, as with `sluice serve`; address, port
and drain are Serve's affair. `PYTHONPATH=deploy/ray serve run deploy/ray/config.yaml` starts it.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ray import serve

from server import logs, metrics, settings
from server.api.app import Application, build_app
from server.api.lifespan import load, stop
from server.client.supervisor import Supervisor
from server.errors import SluiceError


def build() -> Application:
    """The application, which loads its models when Serve starts it."""
    parser = argparse.ArgumentParser()
    settings.add_flags(parser)
    config = settings.load(parser.parse_args([]))
    app = build_app(config, Supervisor(config))
    app.router.lifespan_context = _lifespan
    return app


@asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[None]:
    config = app.front.config
    handler = logs.set_up(config.log_format, config.log_level, on_drop=metrics.LOG_LINES_DROPPED.inc)
    try:
        await load(app)
        yield
    finally:
        await stop(app)
        handler.close()


@serve.deployment
@serve.ingress(build)
class Sluice:
    """One replica. Serve asks after its health and starts another where it fails."""

    async def check_health(self) -> None:
        """Raise if the workers cannot be restarted any more: what /livez asks."""
        if not self.app.front.supervisor.is_live():
            raise SluiceError("The workers cannot be restarted.")


app = Sluice.bind()
