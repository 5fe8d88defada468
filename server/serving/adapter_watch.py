"""A folder whose adapters are served under the names of their folders: they come, change and go with it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from server.client.adapter_copies import CONFIG, read_files
from server.errors import SluiceError
from server.serving.adapter_loading import AdapterLoader

CHECK_INTERVAL_S = 2.0

Stamp = tuple[tuple[str, int, int], ...]
"""Names of an adapter's files, times of their changes, and sizes; empty where they cannot be read at the moment."""

log = logging.getLogger("sluice.adapters")


class AdapterWatch:
    """Loads what is new or has changed, and unloads what has gone and what it had loaded."""

    def __init__(self, loader: AdapterLoader, root: Path) -> None:
        self._loader = loader
        self._root = root
        self._seen: dict[str, Stamp] = {}
        """At the last look."""
        self._tried: dict[str, Stamp] = {}
        self._loaded: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load all that is there, and follow changes from now on."""
        await self.look(waits=False)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self, *, waits: bool = True) -> None:
        """``waits`` leaves a folder that has changed since the last look for the next one: somebody may be writing."""
        try:
            stamps = await asyncio.to_thread(_stamps, self._root)
        except OSError:
            # A folder that is away for a moment, such as a volume that is mounted anew, takes no adapter with it.
            return
        before, self._seen = self._seen, stamps
        for name in self._tried.keys() - stamps.keys():
            del self._tried[name]
            await self._unload(name)
        for name, stamp in stamps.items():
            if stamp and self._tried.get(name) != stamp and (not waits or before.get(name) == stamp):
                self._tried[name] = stamp
                await self._load(name)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            await self.look()

    async def _load(self, name: str) -> None:
        try:
            await self._loader.load_folder(name, self._root / name, self._root)
        except SluiceError as error:
            log.error("adapter not loaded", extra={"fields": {"model": name, "reason": str(error)}})
        else:
            self._loaded.add(name)

    async def _unload(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.discard(name)
            try:
                await self._loader.unload(name)
            except SluiceError:
                log.debug("adapter unloaded by others", extra={"fields": {"model": name}})


def _stamps(root: Path) -> dict[str, Stamp]:
    """Of every folder that holds an adapter. Raises OSError where the root cannot be listed."""
    stamps: dict[str, Stamp] = {}
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            continue
        try:
            if (folder / CONFIG).is_file():
                stamps[folder.name] = tuple(map(_stamp, read_files(folder)))
        except OSError:
            stamps[folder.name] = ()
    return stamps


def _stamp(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return path.name, found.st_mtime_ns, found.st_size
