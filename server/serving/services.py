"""What the served models share besides workers: the sandbox, and what operators and clients put before a model."""

from __future__ import annotations

import asyncio

from server.client.sandbox import LOW_PRIORITY, Sandbox
from server.config import ServeConfig
from server.serving.classifier import ServedClassifier
from server.serving.structured import Grammars
from server.serving.templates import Templates
from server.serving.topics import Topics


class Services:
    """Made once; `start` reads the operator's files and `close` ends what was started."""

    def __init__(self, config: ServeConfig) -> None:
        # Apart, so that a chat never waits for a grammar.
        # A client may wait here with as many requests as a model's queue takes: an application is one client.
        most = config.max_queued_requests
        self._template_sandbox = Sandbox(work="templates", max_waiting=most)
        self._grammar_sandbox = Sandbox(work="grammars", max_waiting=most, niceness=LOW_PRIORITY)
        self.grammars = Grammars(self._grammar_sandbox)
        self.templates = Templates(config.templates, self._template_sandbox)
        self.topics = Topics(config.topics)
        self.classifiers: dict[str, ServedClassifier] = {}
        """The served ones by name, for generators that rank samples by them; filled by the registry."""
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Check what is in the folders, and follow the topics' changes from now on. Raises ConfigurationError."""
        await asyncio.to_thread(self.topics.load)
        await self.templates.check()
        self._watcher = asyncio.create_task(self.topics.watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(self._template_sandbox.close(), self._grammar_sandbox.close())
