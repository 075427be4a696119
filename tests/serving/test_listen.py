import socket

import pytest

from lora_chat.errors import InUseError, UsageError
from lora_chat.serving import listen
from lora_chat.serving.listen import is_loopback, open_listener, resolve_host
from lora_chat.serving.run_server import prepare_server
from lora_chat.serving.server_options import ServerOptions

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([(V4, ("127.0.0.1", 1))], True),
        ([(V4, ("127.9.9.9", 1))], True),
        ([(V6, ("::1", 1))], True),
        ([(V4, ("127.0.0.1", 1)), (V6, ("::1", 1))], True),
        ([(V6, ("::ffff:127.0.0.1", 1))], True),
        ([(V4, ("0.0.0.0", 1))], False),
        ([(V6, ("::", 1))], False),
        ([(V4, ("192.168.1.5", 1))], False),
        ([(V6, ("fe80::1%eth0", 1))], False),
        ([(V6, ("::ffff:192.168.1.5", 1))], False),
        ([(V4, ("127.0.0.1", 1)), (V4, ("192.168.1.5", 1))], False),
        ([], False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(addresses, expected):
    assert is_loopback(addresses) is expected


def test_a_name_with_another_address_beside_loopback_needs_a_key(monkeypatch):
    answers = [(V4, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)), (V4, socket.SOCK_STREAM, 6, "", ("0.0.0.0", 0))]
    monkeypatch.setattr(listen.socket, "getaddrinfo", lambda *arguments, **options: answers)
    with pytest.raises(UsageError, match="needs a key"):
        prepare_server(ServerOptions(host="both.example", port=0))


@pytest.mark.parametrize("host", ["", " ", "no.such.name.invalid", "127.0.0.1 ", "a\0b", "http://127.0.0.1", "x" * 300])
def test_refuses_a_host_without_address(host):
    with pytest.raises(UsageError, match="--host"):
        open_listener(host, 0)


def test_localhost_works_where_it_cannot_be_resolved(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no names")

    monkeypatch.setattr(listen.socket, "getaddrinfo", fail)
    assert is_loopback(resolve_host("localhost", 0))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_takes_a_free_port_and_names_it(host):
    listener = open_listener(host, 0)
    assert listener.is_loopback
    assert f":{listener.port}/" in listener.url
    listener.close()


def test_a_port_in_use_is_found_before_it_is_listened_on():
    listener = open_listener("127.0.0.1", 0)
    try:
        with pytest.raises(InUseError, match="--port 0"):
            open_listener("127.0.0.1", listener.port)
    finally:
        listener.close()
    open_listener("127.0.0.1", listener.port).close()


def test_the_address_to_click_leads_to_this_machine():
    listener = open_listener("0.0.0.0", 0)
    assert not listener.is_loopback
    assert listener.url == f"http://127.0.0.1:{listener.port}/"
    listener.close()


def test_an_open_bind_without_keys_opens_no_socket(monkeypatch):
    opened = []
    monkeypatch.setattr(listen, "_bind_all", lambda *arguments: opened.append(arguments))
    with pytest.raises(UsageError, match="--new-key"):
        prepare_server(ServerOptions(host="0.0.0.0", port=0))
    assert opened == []
