"""server/TEMPLATES.md: its example is a template, and its request makes the prompt that it shows."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import msgspec

from server.client.sandbox import Sandbox
from server.sandbox.confinement import MAX_MEMORY_BYTES
from server.sandbox.rendering import MAX_CHARACTERS
from server.serving.template_files import MAX_EXAMPLES, Examples, Template, Variable
from server.serving.templates import Templates

PAGE = (Path(__file__).parents[1] / "server/TEMPLATES.md").read_text()


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_request_makes_the_prompt_that_is_shown(tmp_path: Path) -> None:
    request = json.loads(block("json"))
    (tmp_path / f"{request['template']}.toml").write_text(block("toml"))

    async def main() -> str:
        sandbox = Sandbox(num_processes=1)
        try:
            templates = Templates(str(tmp_path), sandbox)
            await templates.check()
            prompt = await templates.render(request["template"], "generate", request["variables"], request["examples"])
            return prompt.text
        finally:
            await sandbox.close()

    assert asyncio.run(main()) + "\n" == block("text")


def test_every_key_of_a_file_is_explained() -> None:
    keys = {
        key
        for struct in (Variable, Examples, Template)
        for key in (field.encode_name for field in msgspec.structs.fields(struct))
    }
    words = set(re.findall(r"\w+", PAGE))
    assert keys - words - {"name", "version", "file"} == set()


def test_the_limits_are_those_of_the_code() -> None:
    assert f"`max_count` ({MAX_EXAMPLES})" in PAGE
    assert f"{MAX_MEMORY_BYTES >> 20} MiB" in PAGE
    assert f"{MAX_CHARACTERS >> 20} Mi characters" in PAGE
