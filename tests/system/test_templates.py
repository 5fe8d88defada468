"""A real server with templates: what it answers, and what it does when its sandbox dies."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from server.errors import EXIT_CONFIG
from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, started_server
from tests.tiny_templates import STORY

pytestmark = pytest.mark.timeout(240)


def sandboxes(server: ServerProcess) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        # One that was killed a moment ago has no command any more.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "server.sandbox" in " ".join(child.cmdline()):
                found.append(child)
    return found


def generate(server: ServerProcess, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/generate", json=body, timeout=60)


def test_a_template_gives_what_its_text_gives(tiny_server: ServerProcess) -> None:
    variables = {"hero": "river", "others": ["carts", "sacks"]}
    templated = generate(tiny_server, template="story", variables=variables)
    parameters = {"max_new_tokens": 5, "do_sample": False}
    plain = generate(tiny_server, inputs="The river and the carts and sacks:", parameters=parameters)
    assert templated.status_code == 200, templated.text
    assert templated.json()["generated_text"] == plain.json()["generated_text"]


def test_a_conversation_gives_what_its_rendered_text_gives(tiny_server: ServerProcess) -> None:
    parameters = {"max_new_tokens": 5, "do_sample": False}
    chat = generate(tiny_server, messages=[{"role": "user", "content": "{{ 7 }} mill"}], parameters=parameters)
    rendered = "user: {{ 7 }} mill\nassistant: "
    plain = generate(tiny_server, inputs=rendered, parameters=parameters)
    assert chat.status_code == 200, chat.text
    assert chat.json()["generated_text"] == plain.json()["generated_text"]


def test_fifty_requests_survive_the_death_of_every_sandbox(tiny_server: ServerProcess) -> None:
    async def main() -> list[int]:
        async with httpx2.AsyncClient(timeout=60) as client:
            body = {"template": "story", "variables": {"hero": "river"}}
            posts = [asyncio.ensure_future(client.post(f"{tiny_server.url}/generate", json=body)) for _ in range(50)]
            await asyncio.sleep(0.02)
            for process in sandboxes(tiny_server):
                process.kill()
            return [(await post).status_code for post in posts]

    assert asyncio.run(main()) == [200] * 50


def test_a_template_without_end_is_refused_while_the_server_answers_others(tiny_server: ServerProcess) -> None:
    async def main() -> tuple[httpx2.Response, int]:
        async with httpx2.AsyncClient(timeout=60) as client:
            body = {"template": "slow", "variables": {"count": 99999}}
            slow = asyncio.ensure_future(client.post(f"{tiny_server.url}/generate", json=body))
            num_others = 0
            while not slow.done():
                assert (await client.get(f"{tiny_server.url}/livez")).status_code == 200
                num_others += not slow.done()
                await asyncio.sleep(0.05)
            return await slow, num_others

    response, num_others = asyncio.run(main())
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "unsupported_value"
    assert "2 s" in response.json()["error"]["message"]
    # The first may have come before the template was begun.
    assert num_others > 2
    assert generate(tiny_server, template="story", variables={"hero": "mill"}).status_code == 200


def test_a_broken_template_stops_the_start(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text(STORY.replace("}}:", "}:"))
    flags = ("--model", f"chat={tiny_llama}", "--templates", str(tmp_path), *TINY_SETTINGS)
    with started_server(*flags) as server:
        assert server.wait(60) == EXIT_CONFIG
        assert "broken.toml" in server.logs()
        assert "Line 1" in server.logs()
