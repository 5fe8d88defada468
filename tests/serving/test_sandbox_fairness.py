"""Slow grammars of one client hold up neither the chats nor the grammars of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from server import caller
from server.caller import Caller
from server.config import ModelConfig, ServeConfig
from server.protocol import TokenizerFiles
from server.serving.services import Services
from tests.sandbox.chat_templates import CHATML

FILES = TokenizerFiles(tokenizer_json="", chat_template=CHATML)
CHOICE = {"type": "choice", "value": ["yes", "no"]}


def slow_grammar(i: int) -> dict[str, Any]:
    """One that takes as long to compile as a grammar may."""
    patterns = [{"type": "string", "pattern": f".*a.{{{k}}}"} for k in range(20, 40)]
    return {"type": "json", "value": {"allOf": [*patterns, {"type": "string", "minLength": i}]}}


@asynccontextmanager
async def flood_of(client: str) -> AsyncIterator[Services]:
    """Services that this client has asked for 24 slow grammars, most of which still run at the end."""
    services = Services(ServeConfig(models=(ModelConfig(name="tiny", path="nowhere"),)))
    caller.set_current(Caller(client))
    flood = [asyncio.create_task(services.grammars.text(slow_grammar(i))) for i in range(24)]
    await asyncio.sleep(0)
    yield services
    assert sum(not task.done() for task in flood) >= 18
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    await services.close()


def test_a_client_with_slow_grammars_holds_up_no_other() -> None:
    async def main() -> None:
        async with flood_of("flood") as services:
            caller.set_current(Caller("other"))
            await services.templates.render_chat(FILES, [{"role": "user", "content": "hi"}])
            await services.grammars.text(CHOICE)

    asyncio.run(asyncio.wait_for(main(), 100))


def test_a_chat_does_not_wait_for_the_same_clients_grammars() -> None:
    async def main() -> None:
        async with flood_of("one") as services:
            await services.templates.render_chat(FILES, [{"role": "user", "content": "hi"}])

    asyncio.run(asyncio.wait_for(main(), 100))


def test_one_client_may_send_as_many_chats_at_once_as_a_queue_takes() -> None:
    async def main() -> None:
        services = Services(ServeConfig(models=(ModelConfig(name="tiny", path="nowhere"),), max_queued_requests=200))
        caller.set_current(Caller("application"))
        try:
            chats = [[{"role": "user", "content": f"hi {i}"}] for i in range(200)]
            prompts = await asyncio.gather(*(services.templates.render_chat(FILES, chat) for chat in chats))
            assert all(f"hi {i}" in prompt.text for i, prompt in enumerate(prompts))
        finally:
            await services.close()

    asyncio.run(asyncio.wait_for(main(), 100))
