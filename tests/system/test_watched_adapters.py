"""A folder of adapters that is followed: they are served under the names of their folders, and go with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2

from server.serving.adapter_watch import CHECK_INTERVAL_S
from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.clients import TIMEOUT_S, body, eventually
from tests.tiny_adapters import write_marker_adapter
from tests.tiny_models import write_tiny_decoder

FIRST, SECOND = 20, 21
LIMIT_S = 60.0


def token(server: ServerProcess, model: str) -> int | None:
    """The one that the adapter writes; None where it is not served."""
    request = {**body("The mill", stream=False, max_new_tokens=1), "model": model}
    answer = httpx2.post(f"{server.url}/generate", json=request, timeout=TIMEOUT_S)
    return int(answer.json()["details"]["tokens"][0]["id"]) if answer.status_code == 200 else None


def test_adapters_come_change_and_go_with_their_folders(tmp_path: Path) -> None:
    assert CHECK_INTERVAL_S <= 5
    base, root = write_tiny_decoder(tmp_path / "base", "llama"), tmp_path / "adapters"
    write_marker_adapter(root / "first", base, FIRST)
    (root / "nothing").mkdir()
    with running_server("--model", f"base={base}", "--watched-adapters", str(root), *TINY_SETTINGS) as server:
        assert token(server, "first") == FIRST
        write_marker_adapter(root / "second", base, SECOND)
        # One that cannot be served keeps no other from it, and keeps its name's version.
        (root / "first" / "adapter_model.safetensors").write_bytes(b"nothing")
        assert eventually(lambda: token(server, "second") == SECOND, LIMIT_S)
        assert eventually(lambda: "adapter not loaded" in server.logs(), LIMIT_S)
        assert token(server, "first") == FIRST
        write_marker_adapter(root / "first", base, SECOND)
        assert eventually(lambda: token(server, "first") == SECOND, LIMIT_S)
        shutil.rmtree(root / "second")
        assert eventually(lambda: token(server, "second") is None, LIMIT_S)
        assert token(server, "base") not in (None, FIRST, SECOND)
