"""`python -m server.worker` on real, tiny models: kills change nothing, a wrong folder is refused in words."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from server.client.supervisor import Supervisor
from server.client.template import Template
from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.protocol import Encode, Generate, SamplingParams, Stats
from server.worker.__main__ import build
from tests.supervised import collect, run, until

LIMIT_S = 280.0


@pytest.fixture
def template(tiny_llama: Path) -> Iterator[Template | None]:
    """What workers are forked from, with their imports behind them; None where they cannot be."""
    template = Template.start([ModelConfig(name="any", path=str(tiny_llama))])
    yield template
    if template is not None:
        template.close()


def supervisor_of(template: Template | None = None, **folders: Path) -> Supervisor:
    models = tuple(
        ModelConfig(name=name, path=str(folder), dtype="float32", threads=1, kv_cache_gib=0.02, max_running=16)
        for name, folder in folders.items()
    )
    return Supervisor(ServeConfig(models=models, restart_backoff_s=0.01), template=template)


def worker_pid() -> int:
    """The one worker that is a child of this process."""
    living = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    (child,) = [child for child in living if "server.worker" in child.cmdline()]
    return child.pid


def commands(num_tokens: int) -> list[Generate]:
    """Greedy and sampled requests, in turns."""
    return [
        Generate(
            f"r{i}",
            [3 + (i * 7 + j) % 300 for j in range(1 + 5 * i)],
            SamplingParams(max_new_tokens=num_tokens, do_sample=i % 2 == 1, temperature=0.8, seed=i, ignore_eos=True),
        )
        for i in range(24)
    ]


async def all_tokens(client: WorkerClient, requests: list[Generate]) -> list[list[int]]:
    return list(await asyncio.gather(*(collect(client, request) for request in requests)))


def test_two_kills_change_no_token_of_greedy_and_seeded_requests(tiny_llama: Path) -> None:
    async def main() -> None:
        supervisor = supervisor_of(chat=tiny_llama)
        await supervisor.start()
        try:
            client = supervisor.clients["chat"]
            requests = commands(num_tokens=120)
            undisturbed = await all_tokens(client, requests)
            disturbed = asyncio.create_task(all_tokens(client, requests))
            for _ in range(2):
                num_frames = client.num_frames
                await until(lambda num_frames=num_frames: client.num_frames > num_frames + 20, LIMIT_S)
                os.kill(worker_pid(), signal.SIGKILL)
                await until(lambda: client.state == "restarting")
                await until(lambda: client.state == "ready", LIMIT_S)
            assert not disturbed.done(), "the kills came while requests ran"
            assert await disturbed == undisturbed
        finally:
            await supervisor.stop()

    run(main(), LIMIT_S)


def test_decoder_classifier_and_tagger_are_served_by_one_supervisor(
    template: Template | None, tiny_llama: Path, tiny_classifier: Path, tiny_tagger: Path
) -> None:
    async def main() -> None:
        supervisor = supervisor_of(template, chat=tiny_llama, mood=tiny_classifier, names=tiny_tagger)
        await supervisor.start()
        try:
            ready = {name: client.ready for name, client in supervisor.clients.items()}
            tasks = {name: facts.task for name, facts in ready.items() if facts is not None}
            assert tasks == {"chat": "generate", "mood": "classify", "names": "ner"}
            assert ready["chat"] is not None
            assert ready["chat"].reproducible is False, "its heads are not for the native kernels"
            assert "deterministic" in str(ready["chat"].reproducible_reason)
            assert ready["mood"] is not None
            assert ready["mood"].reproducible is None
            assert ready["mood"].labels == ["negative", "neutral", "positive"]
            scores = await supervisor.clients["mood"].encode(Encode("e", [2, 5, 6, 3]))
            assert scores.shape == (3,)
            scores = await supervisor.clients["names"].encode(Encode("e", [2, 5, 6, 3]))
            assert scores.shape[0] == 4
            assert np.isfinite(np.frombuffer(scores.data, "<f4")).all()
            assert len(await collect(supervisor.clients["chat"], commands(num_tokens=4)[0])) == 4
        finally:
            await supervisor.stop()

    run(main(), LIMIT_S)


def test_a_folder_without_a_model_is_refused_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"has no config\.json") as failure:
            await supervisor_of(empty=tmp_path).start()
        assert failure.value.exit_code == EXIT_MODEL

    run(main(), LIMIT_S)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("limit", [0, 96])
def test_a_worker_learns_its_token_budget_unless_max_batch_tokens_is_set(
    tiny_llama: Path, tiny_classifier: Path, limit: int
) -> None:
    for folder in (tiny_llama, tiny_classifier):
        engine, ready = build(
            ModelConfig(name="any", path=str(folder), max_batch_tokens=limit, dtype="float32", kv_cache_gib=0.02)
        )
        assert (ready.token_budget > 0) == (limit == 0)
        assert ready.max_batch_tokens >= max(limit, ready.token_budget)
        assert not limit or ready.max_batch_tokens == limit
        *_, stats = engine.step()
        assert isinstance(stats, Stats)
        assert stats.token_budget == ready.token_budget
