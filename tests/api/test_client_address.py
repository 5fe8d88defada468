"""Behind a trusted proxy, limits for each address count the client that the proxy names."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from server import caller
from server.api.http import access
from server.api.http.client_address import TrustedProxies
from tests.api.shell import client_of, shell

KEY = "key-of-user-0123456789"
PROXIES = TrustedProxies([ipaddress.ip_network(text) for text in ("10.0.0.0/8", "::1/128")])


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("10.0.0.1", {"x-forwarded-for": "1.2.3.4"}, "1.2.3.4"),
        ("10.0.0.1", {"x-forwarded-for": "6.6.6.6, 1.2.3.4"}, "1.2.3.4"),
        ("10.0.0.1", {"x-forwarded-for": "6.6.6.6, 1.2.3.4, 10.0.0.2"}, "1.2.3.4"),
        ("10.0.0.1", {"x-forwarded-for": "10.0.0.3, 10.0.0.2"}, "10.0.0.3"),
        ("10.0.0.1", {"x-forwarded-for": "1.2.3.4:5678"}, "1.2.3.4"),
        ("10.0.0.1", {"x-forwarded-for": "[2001:db8::1]:80"}, "2001:db8::1"),
        ("10.0.0.1", {"x-forwarded-for": "6.6.6.6, nonsense"}, "10.0.0.1"),
        ("10.0.0.1", {"x-forwarded-for": "6.6.6.6, "}, "10.0.0.1"),
        ("10.0.0.1", {}, "10.0.0.1"),
        ("::ffff:10.0.0.1", {"x-forwarded-for": "1.2.3.4"}, "1.2.3.4"),
        ("::1", {"forwarded": 'for=6.6.6.6, For="[2001:db8::1]:80";proto=http;by=10.0.0.1'}, "2001:db8::1"),
        ("::1", {"forwarded": "for=6.6.6.6, for=unknown"}, "::1"),
        ("::1", {"forwarded": "for=6.6.6.6", "x-forwarded-for": "1.2.3.4"}, "1.2.3.4"),
        ("1.2.3.4", {"x-forwarded-for": "6.6.6.6"}, "1.2.3.4"),
        ("testclient", {"x-forwarded-for": "6.6.6.6"}, "testclient"),
    ],
)
def test_the_client_is_the_nearest_address_that_no_trusted_proxy_has(peer, headers, client):
    assert PROXIES.client_of(peer, Headers(headers)) == client


def test_several_headers_are_read_as_one():
    raw = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"1.2.3.4")]
    assert PROXIES.client_of("10.0.0.1", Headers(raw=raw)) == "1.2.3.4"


def test_nobody_is_trusted_by_default():
    assert TrustedProxies([]).client_of("10.0.0.1", Headers({"x-forwarded-for": "1.2.3.4"})) == "10.0.0.1"


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text(KEY)
    return str(path)


def statuses(app, client_address: str, number: int) -> list[int]:
    client = client_of(app, ("10.0.0.1", 1))
    headers = {"X-Forwarded-For": client_address}
    return [
        client.get("/info", headers={**headers, "Authorization": f"Bearer guess-number-{i:08}"}).status_code
        for i in range(number)
    ]


def test_wrong_keys_count_against_the_client_that_the_proxy_names(keys):
    app = shell(api_keys_file=keys, trusted_proxies="10.0.0.0/8")
    assert statuses(app, "1.2.3.4", access.MAX_FAILURES + 1) == [401] * access.MAX_FAILURES + [429]
    assert statuses(app, "1.2.3.5", 1) == [401]
    right = client_of(app, ("10.0.0.1", 1)).get(
        "/info", headers={"X-Forwarded-For": "1.2.3.5", "Authorization": f"Bearer {KEY}"}
    )
    assert right.status_code == 200
    # What the client itself writes is left of what the proxy adds.
    assert statuses(app, "7.7.7.7, 1.2.3.4", 1) == [429]


def test_wrong_keys_count_against_an_untrusted_peer_whatever_it_writes(keys):
    app = shell(api_keys_file=keys)
    for i in range(access.MAX_FAILURES):
        assert statuses(app, f"1.2.3.{i}", 1) == [401]
    assert statuses(app, "9.9.9.9", 1) == [429]


def test_work_is_shared_between_the_clients_that_a_proxy_names():
    app = shell(trusted_proxies="10.0.0.0/8")
    seen = []

    async def who() -> dict[str, str]:
        seen.append(caller.current().id)
        return {}

    app.add_api_route("/who", who)
    for address in ("1.2.3.4", "1.2.3.5"):
        client_of(app, ("10.0.0.1", 1)).get("/who", headers={"X-Forwarded-For": address})
    assert seen == ["address 1.2.3.4", "address 1.2.3.5"]
