"""A hostile hub cannot make this machine send requests to the services of its network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshllm.errors import DownloadFailed
from meshllm.models.hub.destinations import Destinations
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.lookup import look_up
from meshllm.models.hub.manifest import HubReference
from meshllm.models.hub.stream import DownloadThread, HubBody, Location
from meshllm.models.transfer.partial_file import PartialFile

PUBLIC = Destinations("https://hub.example")
NEAR = Destinations("http://localhost:8080")


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.example/x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://localhost:9337/v1/models",
        "https://a.localhost/",
        "https://10.0.0.1/",
        "https://192.168.1.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://[fd00::1]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[2002:7f00:1::]/",
        "https://224.0.0.1/",
        "file:///etc/passwd",
        "ftp://cdn.example/",
        "//127.0.0.1/x",
        "gopher://x/",
    ],
)
def test_redirect_of_a_public_hub_into_the_network_is_refused(url: str) -> None:
    with pytest.raises(DownloadFailed, match="no public server with HTTPS"):
        PUBLIC.next_url("https://hub.example/a", url)


@pytest.mark.parametrize(
    "url", ["https://cdn.example:8443/x?y=1", "/other", "https://8.8.8.8/", "https://hub.example/"]
)
def test_redirect_of_a_public_hub_to_a_public_server_is_followed(url: str) -> None:
    assert PUBLIC.next_url("https://hub.example/a", url).startswith("https://")


def test_mirror_of_the_user_may_lead_to_its_neighbours() -> None:
    for url in ("http://127.0.0.1:1/x", "http://192.168.1.1/x", "https://cdn.example/", "http://localhost/"):
        NEAR.check_url(url)
    with pytest.raises(DownloadFailed):
        NEAR.check_url("http://169.254.169.254/latest/meta-data/")
    Destinations("http://mirror.example").check_url("http://mirror.example/x")
    with pytest.raises(DownloadFailed):
        Destinations("http://mirror.example").check_url("http://other.example/x")
    Destinations("https://mirror.corp").check_address("mirror.corp", "10.0.0.9")
    Destinations("https://hub.example", ["proxy.corp"]).check_address("proxy.corp", "10.0.0.9")


@pytest.mark.parametrize("text", ["https://[::1", "https://hub.example:99999999/", "https://x:y/"])
def test_redirect_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DownloadFailed):
        PUBLIC.next_url("https://hub.example/a", text)


class Network:
    """A hub at `hub.test`, which answers everything with a redirect, and a service that nobody may reach."""

    def __init__(self) -> None:
        self.target = ""
        self.asked: list[bytes] = []
        self.reached = 0

    async def start(self) -> None:
        self._hub = await asyncio.start_server(self._redirect, "127.0.0.1", 0)
        self._service = await asyncio.start_server(self._reach, "127.0.0.1", 0)
        self.port = self._hub.sockets[0].getsockname()[1]
        self.service = self._service.sockets[0].getsockname()[1]

    async def _redirect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        text = f"HTTP/1.1 302 Found\r\nLocation: {self.target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(text.encode())
        await writer.drain()
        writer.close()

    async def _reach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reached += 1
        writer.close()

    async def close(self) -> None:
        for server in (self._hub, self._service):
            server.close()
            await server.wait_closed()


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """Names under .test mean this machine."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        named = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if str(named).endswith(".test") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Network()
    await made.start()
    yield made
    await made.close()


TARGETS = ("http://127.0.0.1:{}/", "https://127.0.0.1:{}/", "http://inside.test:{}/", "https://inside.test:{}/")


@pytest.mark.parametrize("target", TARGETS)
async def test_lookup_follows_no_redirect_into_the_network(network: Network, target: str) -> None:
    network.target = target.format(network.service)
    hub = Hub(HubSettings(endpoint=f"http://hub.test:{network.port}", decide_within=20.0, pause=0.001, tries=2))
    with pytest.raises(DownloadFailed, match="no public server with HTTPS"):
        await look_up(HubReference("M", "org/repo"), hub)
    assert (len(network.asked), network.reached) == (1, 0)


@pytest.mark.parametrize("target", TARGETS)
async def test_download_follows_no_redirect_into_the_network(network: Network, target: str, tmp_path: Path) -> None:
    network.target = target.format(network.service)
    endpoint = f"http://hub.test:{network.port}"
    partial = PartialFile(tmp_path / "file.part", 1000, "a" * 64)
    piece = partial.claim("hub", 1)
    assert piece is not None
    body = HubBody(partial, piece, "hub", whole=False)
    destinations = Destinations(endpoint)
    thread = DownloadThread(20.0, destinations)
    try:
        for url in (f"{endpoint}/x", network.target):
            location = Location(url, {}, destinations)
            with pytest.raises(DownloadFailed, match="no public server with HTTPS"):
                await thread.call(lambda stop, session, at=location: body.fetch(stop, session, at))  # type: ignore[misc]
    finally:
        body.release()
        thread.close()
        partial.close()
    assert (len(network.asked), network.reached) == (1, 0)
