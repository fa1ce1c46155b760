"""The ports of a start: those that were asked for, or an error that names the option of the one that is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from meshllm.cli.start import check
from meshllm.daemon.open_ports import open_ports
from meshllm.daemon.settings import Settings
from meshllm.errors import PortTaken, UsageError
from meshllm.web.console.server import Console
from meshllm.web.gateway.gateway import Gateway
from meshllm.web.http.access_control import AccessPolicy


class NoConsole:
    """A console whose port is free."""

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        return 3131


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway(AccessPolicy())
    yield made
    await made.close()


async def opened(gateway: Gateway, **ports: Any) -> tuple[int, int, int | None]:
    return await open_ports(Settings(Path("/nowhere"), port=0, **ports), gateway, cast(Console, NoConsole()))


async def test_the_port_of_ollama_is_opened_on_request(gateway: Gateway) -> None:
    api, console, ollama = await opened(gateway)
    assert (bool(api), console, ollama) == (True, 3131, None)
    other = (await opened(gateway, ollama_port=0))[2]
    assert other not in (None, api)
    with socket.create_connection(("127.0.0.1", cast(int, other))):
        pass


async def test_a_taken_port_names_its_option_and_who_holds_it(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortTaken) as taken:
            await opened(gateway, ollama_port=port)
    assert taken.value.option == "--ollama-port"
    assert f"Port {port} is in use by" in taken.value.message
    assert f"(process {os.getpid()})" in taken.value.message
    assert taken.value.advice.startswith("Start with --ollama-port ")


@pytest.mark.parametrize(("ports", "other"), [({"port": 1234}, "--port"), ({"console": 1234}, "--console")])
def test_ports_must_differ(ports: dict[str, int], other: str) -> None:
    with pytest.raises(UsageError, match=f"--ollama-port and {other} cannot both be 1234"):
        check(Settings(Path("/nowhere"), ollama_port=1234, **ports))
