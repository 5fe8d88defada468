"""What stands behind the application: loaded at its start and stopped at its end, whatever carries its HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging

from server.api.app import Application

log = logging.getLogger("sluice.server")

LAST_WORDS_S = 1.0
"""For streams to send their last event once the workers are gone, and for connections to close."""


async def load(app: Application) -> None:
    """Start the workers and return once every model can serve. Raises ConfigurationError if one cannot."""
    registry, supervisor = app.front.registry, app.front.supervisor
    await registry.services.start()
    preparing = asyncio.create_task(registry.prepare())
    # Writing it takes half a second, which no stream should wait for.
    documenting = asyncio.create_task(asyncio.to_thread(app.openapi))
    try:
        await supervisor.start()
        await preparing
        await documenting
    finally:
        preparing.cancel()
        await asyncio.gather(preparing, documenting, return_exceptions=True)
    registry.load()
    await registry.check_chat_templates()
    if app.front.watch is not None:
        await app.front.watch.start()
    # Modules and tokenizers stay for good: the collector need not stop the streams to look at them again and again.
    gc.freeze()
    app.front.lifecycle.is_loaded = True
    log.info("ready", extra={"fields": {"models": ", ".join(supervisor.clients)}})


async def stop(app: Application) -> None:
    """Stop the workers, which ends what still runs with an error, and let the errors out. `load` may have failed."""
    lifecycle = app.front.lifecycle
    lifecycle.is_draining = True
    if app.front.watch is not None:
        await app.front.watch.close()
    app.front.registry.refuse_new_work()
    if lifecycle.num_active:
        log.warning("requests cut short", extra={"fields": {"active_requests": lifecycle.num_active}})
    await app.front.supervisor.stop()
    await app.front.registry.services.close()
    await lifecycle.wait_idle(LAST_WORDS_S)
