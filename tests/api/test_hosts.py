"""A web page cannot reach the server through a name of its own."""

from __future__ import annotations

import pytest

from server.api.http.errors import HostNotAllowed, MalformedRequest
from server.api.http.hosts import AllowedHosts, allowed_hosts
from server.config import ModelConfig, ServeConfig
from tests.api.raw import talk
from tests.api.shell import listening, shell

MODELS = (ModelConfig(name="tiny", path="nowhere"),)
ADDRESSES = ("127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "10.0.0.7:8000", "[fe80::1]:80")
LOCAL = ("localhost", "localhost:8000", "LOCALHOST.", "page.localhost:8000", "replica-1:8000")
FOREIGN = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3", "")


def accepts(hosts: AllowedHosts, host: str) -> bool:
    try:
        hosts.check(host.encode())
    except HostNotAllowed:
        return False
    return True


def hosts_of(*, has_keys: bool = False, **settings: str) -> AllowedHosts:
    return allowed_hosts(ServeConfig(models=MODELS, **settings), has_keys=has_keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_an_open_server_on_a_loopback_address_accepts_local_names_only(bound):
    hosts = hosts_of(host=bound)
    assert all(accepts(hosts, host) for host in (*ADDRESSES, *LOCAL))
    assert not any(accepts(hosts, host) for host in FOREIGN)


@pytest.mark.parametrize(
    ("settings", "has_keys"), [({"host": "0.0.0.0"}, False), ({"host": "::"}, False), ({"host": "127.0.0.1"}, True)]
)
def test_a_server_for_others_or_with_keys_accepts_any_name(settings, has_keys):
    hosts = hosts_of(has_keys=has_keys, **settings)
    assert all(accepts(hosts, host) for host in (*ADDRESSES, *LOCAL, *FOREIGN, "replica-1:8000", "sluice.models.svc"))


@pytest.mark.parametrize("has_keys", [True, False])
@pytest.mark.parametrize("bound", ["0.0.0.0", "127.0.0.1"])
def test_allowed_hosts_decides_for_every_server(bound, has_keys):
    hosts = hosts_of(host=bound, has_keys=has_keys, allowed_hosts="sluice.example, *.internal")
    assert all(accepts(hosts, host) for host in (*ADDRESSES, "sluice.example:443", "a.b.internal"))
    assert not any(accepts(hosts, host) for host in (*LOCAL, *FOREIGN, "internal", "x.sluice.example"))
    assert accepts(hosts_of(host=bound, has_keys=has_keys, allowed_hosts="*"), "evil.example")


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a:b", "[::1", "http://a", "caf\xe9"])
def test_refuses_what_is_no_host(host):
    with pytest.raises(MalformedRequest):
        AllowedHosts(["*"]).check(host.encode("latin-1"))


@pytest.mark.parametrize("path", ["/livez", "/info", "/nothing", "/"])
def test_a_refused_host_is_a_421_on_every_path(path):
    with listening(shell(), hosts_of()) as port:
        answer = talk(port, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
        assert (answer.status, answer.error["code"]) == (421, "host_not_allowed")
        assert "allowed_hosts" in answer.error["message"] and "evil.example" in answer.error["message"]
        for host in ("localhost", "127.0.0.1"):
            head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            assert talk(port, head.encode()).status in (200, 404)
        assert talk(port, f"GET {path} HTTP/1.0\r\n\r\n".encode()).status in (200, 404)


def test_a_started_server_checks_the_host(tiny_server):
    port = int(tiny_server.url.rpartition(":")[2])
    assert talk(port, b"GET /info HTTP/1.1\r\nHost: evil.example\r\n\r\n").status == 421
