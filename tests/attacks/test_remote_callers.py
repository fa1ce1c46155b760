"""Callers on other machines without the key: they cannot lock the owner out, nor fill the memory (audit, rows 12, 13).

They connect to this machine's address in its network, which is as good as another machine.
"""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.daemons import Daemon, daemon
from tests.lan_address import lan_address

IDLE = 2100
BODIES = 8
BODY_BYTES = 57 << 20
# What was sent before the refusal may fill buffers.
MEMORY_BYTES = 30 << 20
TIMEOUT_SECONDS = 60.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node that listens on all addresses."""
    lan_address()
    with daemon(tmp_path_factory.mktemp("remote") / "home", "--listen-all") as started:
        yield started


def remote(node: Daemon) -> socket.socket:
    """A connection from another machine."""
    port = urlsplit(node.base_url).port
    assert port is not None
    return socket.create_connection((lan_address(), port), timeout=TIMEOUT_SECONDS)


def health(node: Daemon, headers: dict[str, str] | None = None) -> int:
    """What the owner is answered, on a new connection."""
    url = f"http://127.0.0.1:{urlsplit(node.base_url).port}/health"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=TIMEOUT_SECONDS) as it:
            return int(it.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_idle_connections_of_another_machine_do_not_lock_the_owner_out(node: Daemon) -> None:
    with ExitStack() as stack:
        for number in range(IDLE):
            stack.enter_context(remote(node))
            if number % 500 == 0:
                assert health(node) == 200
        assert health(node) == 200
        process = psutil.Process(node.process.pid)
        port = urlsplit(node.base_url).port
        held = [each for each in process.net_connections("tcp") if each.laddr.port == port and each.raddr]
        assert len(held) < 100
        # Another connection from there is answered as well: the key is what is missing.
        with remote(node) as asking:
            asking.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert asking.recv(12) == b"HTTP/1.1 401"


def test_bodies_without_the_key_are_refused_unread(node: Daemon) -> None:
    process = psutil.Process(node.process.pid)
    before = process.memory_info().rss
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES
    with ExitStack() as stack:
        for _ in range(BODIES):
            caller = stack.enter_context(remote(node))
            caller.sendall(head)
            assert caller.recv(12) == b"HTTP/1.1 401"
            caller.sendall(bytes(1 << 20))
        assert health(node) == 200
        assert process.memory_info().rss - before < MEMORY_BYTES


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_proxied_callers_need_the_key_at_both_ports(node: Daemon, header: str) -> None:
    headers = {header: "192.0.2.1"}
    assert health(node, headers) == 401
    request = urllib.request.Request(f"{node.console_url}/api/status", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    with refused.value:
        assert refused.value.code == 401
    assert health(node) == 200


def test_few_file_descriptors_leave_no_caller_waiting(tmp_path: Path) -> None:
    """With 64 descriptors the API takes as many connections as there are, and closes idle ones for new callers."""
    limited = Daemon(tmp_path / "home", prefix=("bash", "-c", 'ulimit -n 64; exec "$@"', "bash"))
    with ExitStack() as stack:
        stack.callback(limited.stop)
        limited.wait_until_listening()
        address = ("127.0.0.1", urlsplit(limited.base_url).port)
        for _ in range(80):
            stack.enter_context(socket.create_connection(address, timeout=TIMEOUT_SECONDS))
            assert health(limited) == 200
    log = (limited.home / "logs" / "daemon.log").read_text()
    assert log.count("ulimit -n") == 1
