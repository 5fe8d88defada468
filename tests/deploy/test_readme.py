"""deploy/README.md names what there is, and all of it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from server.api.http import keys

DEPLOY = Path(__file__).parents[2] / "deploy"
README = (DEPLOY / "README.md").read_text()


def first_cells() -> list[str]:
    """Names in the first column of the tables."""
    return [name for row in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)]


def test_every_file_of_the_folder_is_explained_and_every_one_that_is_explained_exists():
    overlays = {path.name for path in (DEPLOY / "kubernetes/overlays").iterdir()}
    files = {path.name for path in DEPLOY.iterdir() if path.name not in ("README.md", "__pycache__")}
    named = set(first_cells())
    assert overlays <= named
    assert {name.rstrip("/") for name in named - overlays - {"../Dockerfile"}} == files


def test_every_path_in_a_command_exists():
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.replace("\\\n", ""), re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines()]
    paths = {word.split("=")[-1] for command in commands for word in shlex.split(command) if "deploy/" in word}
    assert len(paths) >= 3
    assert all((DEPLOY.parent / path).exists() for path in paths)


def test_the_commands_for_keys_make_files_that_the_server_and_prometheus_take(tmp_path: Path):
    [block] = [block for block in re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S) if "openssl" in block]
    script = block[: block.index("kubectl")]
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True)
    # Prometheus sends the file as it is.
    key = (tmp_path / "metrics").read_text()
    assert key == key.strip()
    made = keys.load(str(tmp_path / "keys"), {})
    found = made.find(keys.digest_of(key))
    assert len(made) == 2 and found is not None and found.scopes == {"metrics"}
