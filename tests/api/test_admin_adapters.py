"""Who may change adapters: administrators, or whoever sits at the server's machine where there are no keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.shell import client_of, shell

ROUTES = (
    ("POST", "/admin/adapters", {"name": "a", "path": "b"}),
    ("GET", "/admin/adapters", None),
    ("DELETE", "/admin/adapters/a", None),
    ("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "b"}),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}),
)
KEYS = {"use": "u" * 20, "metrics": "m" * 20, "admin": "a" * 20}


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_without_the_setting_there_are_no_such_routes(method: str, path: str, body: object) -> None:
    assert client_of(shell()).request(method, path, json=body).status_code == 404


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_without_keys_only_the_servers_machine_may_change_adapters(
    tmp_path: Path, method: str, path: str, body: object
) -> None:
    app = shell(adapters=str(tmp_path))
    for address in ("203.0.113.9", "testclient", "::ffff:203.0.113.9"):
        refusal = client_of(app, (address, 50000)).request(method, path, json=body)
        assert refusal.status_code == 403 and refusal.json()["error"]["code"] == "adapter_forbidden"
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        # Allowed, and too early: the models are being loaded.
        assert client_of(app, (address, 50000)).request(method, path, json=body).status_code == 503


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_with_keys_the_scope_admin_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: object
) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", ",".join(f"{key} {scope}" for scope, key in KEYS.items()))
    app = shell(adapters=str(tmp_path))
    statuses = {
        scope: client_of(app).request(method, path, json=body, headers={"Authorization": f"Bearer {key}"}).status_code
        for scope, key in KEYS.items()
    }
    assert statuses == {"use": 403, "metrics": 403, "admin": 503}
    assert client_of(app).request(method, path, json=body).status_code == 401


def test_a_path_with_another_spelling_needs_the_same_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", f"{KEYS['use']} use")
    client = client_of(shell(adapters=str(tmp_path)))
    for path in ("/admin/adapters/", "/load_lora_adapter", "/admin/./adapters", "/v1/../admin/adapters"):
        answer = client.post(path, json={}, headers={"Authorization": f"Bearer {KEYS['use']}"})
        assert answer.status_code in (403, 404), path
