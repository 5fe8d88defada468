"""Adapters in a worker that dies and is replaced: each request keeps the content that it began with."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.adapter_errors import AdapterQuarantined
from server.client.adapters import Adapters, AdapterVersion
from server.client.worker_client import WorkerClient
from server.config import ModelConfig
from server.errors import RequestQuarantined
from server.protocol import AdapterState, Generate, LoadAdapter, SharedAdapter
from tests.fake_worker import CRASHES, POISON, expected_tokens
from tests.supervised import collect, generate, kill_worker, run, supervised, until, worker_pids


def source(folder: Path, digest: str) -> LoadAdapter:
    place = folder / f"adapter {digest}"
    place.mkdir(exist_ok=True)
    return LoadAdapter(digest, ModelConfig(name=digest, path=str(place)))


async def loaded(client: WorkerClient, folder: Path, digest: str) -> AdapterVersion:
    return await client.load_adapter(source(folder, digest))


def asked(i: int, digest: str, num_tokens: int = 40) -> Generate:
    return msgspec.structs.replace(generate(i, num_tokens), adapter=digest)


def is_replaced(client: WorkerClient, folder: Path, pid: int) -> bool:
    return worker_pids(folder)[-1] != pid and client.state == "ready"


def test_a_killed_worker_changes_no_token_of_any_adapter(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            held = [await loaded(client, tmp_path, f"d{i}") for i in range(3)]
            commands = [asked(i, f"d{i % 3}", 300) for i in range(9)]
            answers = asyncio.gather(*(collect(client, command) for command in commands))
            await until(lambda: client.num_running == 9)
            for _ in range(2):
                pid = await kill_worker(tmp_path)
                await until(partial(is_replaced, client, tmp_path, pid))
            assert await answers == [expected_tokens(command) for command in commands]
            assert len(held) == client.adapters.num_known == 3

    run(main())


def test_an_adapter_that_nobody_serves_is_unloaded_after_its_last_request(tmp_path: Path) -> None:
    async def main() -> None:
        dropped: list[str] = []
        async with supervised(tmp_path) as (_, client):
            client._on_drop = dropped.append
            version = await loaded(client, tmp_path, "old")
            again = await loaded(client, tmp_path, "old")
            assert again is version
            del again
            assert await collect(client, asked(1, "old")) == expected_tokens(asked(1, "old"))
            assert not dropped
            del version
            gc.collect()
            await until(lambda: client.adapters.num_known == 0)
            # Both commands held a copy of the folder.
            assert dropped == ["old", "old"]

    run(main())


def test_a_version_that_is_loaded_again_while_it_is_dropped_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        dropped: list[str] = []
        adapters = Adapters(dropped.append)
        facts = SharedAdapter(name="moving", digest="d")
        resident = AdapterState("d", "resident", facts)
        first = adapters.add(source(tmp_path, "d"))
        adapters.on_state(resident)
        again = adapters.add(source(tmp_path, "d"))
        # The last holder goes; what comes of it runs after the answer and before who waits for it.
        del first
        gc.collect()
        adapters.on_state(resident)
        await asyncio.sleep(0)
        version = await again
        assert adapters.find("d") is version
        assert adapters.num_known == 1 and not dropped

    run(main())


def test_who_waits_for_an_adapter_gets_it_where_another_has_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            leaving, staying = (asyncio.ensure_future(loaded(client, tmp_path, "d")) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            late = asyncio.ensure_future(loaded(client, tmp_path, "d"))
            assert (await staying).digest == (await late).digest == "d"

    run(main())


def test_an_adapter_that_ends_the_worker_twice_while_it_is_read_is_quarantined(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            kept = await loaded(client, tmp_path, "sound")
            bad = source(tmp_path, "bad")
            (Path(bad.model.path) / CRASHES).touch()
            with pytest.raises(AdapterQuarantined):
                await client.load_adapter(bad)
            assert len(worker_pids(tmp_path)) >= 2
            await until(lambda: client.state == "ready")
            command = asked(1, "sound")
            assert await collect(client, command) == expected_tokens(command)
            assert kept.digest == "sound" and client.adapters.num_known == 1

    run(main())


def test_an_adapter_whose_requests_end_the_worker_is_quarantined_unless_one_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            held = await loaded(client, tmp_path, "odd")
            poison = msgspec.structs.replace(asked(1, "odd"), prompt_ids=[POISON, 2])
            with pytest.raises(RequestQuarantined):
                await collect(client, poison)
            assert await collect(client, asked(2, "odd")) == expected_tokens(asked(2, "odd"))
            for _ in range(2):
                with pytest.raises(RequestQuarantined):
                    await collect(client, poison)
            with pytest.raises(AdapterQuarantined):
                await collect(client, asked(3, held.digest))
            assert await collect(client, generate(4)) == expected_tokens(generate(4))

    run(main())


def test_requests_for_a_quarantined_adapter_fail_and_the_others_live(tmp_path: Path) -> None:
    async def main() -> None:
        async with supervised(tmp_path) as (_, client):
            bad, kept = await loaded(client, tmp_path, "bad"), await loaded(client, tmp_path, "sound")
            (tmp_path / "adapter bad" / CRASHES).touch()
            await kill_worker(tmp_path)
            others = [asked(i, kept.digest, 100) for i in range(4)]
            answers: Any = await asyncio.gather(
                collect(client, asked(9, bad.digest)), *(collect(client, command) for command in others),
                return_exceptions=True,
            )  # fmt: skip
            assert isinstance(answers[0], AdapterQuarantined)
            assert answers[1:] == [expected_tokens(command) for command in others]
            with pytest.raises(AdapterQuarantined):
                await collect(client, asked(10, bad.digest))
            assert client.adapters.state(bad.digest) == "quarantined"
            # The operator may try again.
            (tmp_path / "adapter bad" / CRASHES).unlink()
            await loaded(client, tmp_path, "bad")
            assert await collect(client, asked(9, "bad")) == expected_tokens(asked(9, "bad"))

    run(main())
