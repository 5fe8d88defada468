"""Who a request counts against."""

from __future__ import annotations

from server.caller import Caller


def test_addresses_below_one_ipv6_prefix_are_one_caller() -> None:
    assert Caller.of_address("2001:db8::1") == Caller.of_address("2001:db8::ffff")
    assert Caller.of_address("2001:db8::1") != Caller.of_address("2001:db8:0:1::1")
    assert Caller.of_address("192.0.2.1") != Caller.of_address("192.0.2.2")
    assert Caller.of_address("testclient") == Caller.of_address("testclient")


def test_clients_without_a_key_are_one_tenant_and_each_key_is_one() -> None:
    assert Caller.of_address("192.0.2.1").tenant == Caller.of_address("192.0.2.2").tenant
    assert Caller.of_key(b"1" * 32).tenant != Caller.of_key(b"2" * 32).tenant
