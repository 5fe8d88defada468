"""Many requests at once: a client for each thread, and an end for all of them when the command is interrupted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from server.commands.http_client import Client


class Clients:
    """Makes each thread's client the first time that it asks."""

    def __init__(self, first: Client) -> None:
        self._first = first
        self._lock = threading.Lock()
        self._all: list[Client] = []
        self._mine = threading.local()
        self.stopped = threading.Event()
        """Nobody waits for answers any more."""

    def mine(self) -> Client:
        """The calling thread's."""
        if not hasattr(self._mine, "client"):
            self._mine.client = self._first.another()
            with self._lock:
                self._all.append(self._mine.client)
        client: Client = self._mine.client
        return client

    @contextlib.contextmanager
    def pool(self, num_threads: int) -> Iterator[ThreadPoolExecutor]:
        """Threads to ask from. Left early, what they are at is broken off and what has not begun is dropped."""
        pool = ThreadPoolExecutor(num_threads)
        try:
            yield pool
        finally:
            self.stopped.set()
            with self._lock:
                for client in self._all:
                    client.abort()
            pool.shutdown(cancel_futures=True)
