"""What a failed start says of the port that is taken."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator

import pytest

from meshllm.daemon import port_holder
from meshllm.daemon.port_holder import API, CONSOLE, UDP
from meshllm.errors import port_taken


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def failed(port: int, option: str) -> str:
    """Message and advice for a failed bind, with the other port free."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            raise AssertionError("the port is free")
    except OSError as error:
        refused = port_taken(error, "127.0.0.1", port, option)
    other = CONSOLE if option == API else API
    told = port_holder.explained(refused, {option: port, other: 0})
    return f"{told.message} {told.advice}"


@pytest.mark.parametrize("option", [API, CONSOLE])
def test_holder_and_a_free_port_are_named(taken: int, option: str) -> None:
    told = failed(taken, option)
    assert f"Port {taken} is in use by " in told
    assert f"(process {os.getpid()})" in told
    (free,) = re.findall(rf"Start with {option} (\d+), or stop that program", told)
    with socket.create_server(("127.0.0.1", int(free))):
        pass


def test_both_ports_are_named_where_both_are_taken(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        page = second.getsockname()[1]
        refused = port_taken(OSError(98, "in use"), "127.0.0.1", taken, API)
        told = port_holder.explained(refused, {API: taken, CONSOLE: page})
    assert re.search(r"Start with --port \d+ --console \d+, or", told.advice)


def test_holder_of_a_udp_port_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        told = port_holder.explained(port_taken(OSError(98, "in use"), "UDP", port, UDP), {UDP: port})
    assert f"(process {os.getpid()})" in told.message
    assert "--bind-port" in told.advice


def test_port_that_is_not_permitted_is_held_by_nobody() -> None:
    refused = port_taken(OSError(13, "no"), "127.0.0.1", 80, API)
    assert port_holder.explained(refused, {API: 80}) is refused
