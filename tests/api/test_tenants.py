"""Which requests may share cached prompts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.scripted import front, says
from tests.api.shell import client_of

KEYS = ("first-key-0123456789", "second-key-0123456789")


def tenants(monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], **settings: Any) -> list[str]:
    monkeypatch.setenv("SLUICE_API_KEYS", ",".join(keys))
    app = front(says("mill"), **settings)
    for key in keys or ("none",):
        reply = client_of(app).post("/generate", json={"inputs": "a"}, headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == 200
    return [command.tenant for command in app.state.worker.commands]


def test_each_key_is_a_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tenants(monkeypatch, KEYS)
    assert first != second
    assert not any(key in tenant for key in KEYS for tenant in (first, second))


def test_keys_share_where_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tenants(monkeypatch, KEYS, share_prefix_cache=True) == ["", ""]


def test_clients_of_an_open_server_are_one_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tenants(monkeypatch, ()) == [""]
