"""The console loads its handlers at the first connection, and keeps what is sent until then."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from web_rig import Caller, request

from meshllm.web.console import server as console_server
from meshllm.web.console.server import MAX_EARLY_BYTES, Console
from meshllm.web.console.status import NodeStatus
from meshllm.web.http.access_control import AccessPolicy


class SlowLoad:
    """Holds the load of the handlers back until `release`; fails it if `fails`."""

    def __init__(self, load: Callable[..., Any]) -> None:
        self._load = load
        self.begun, self.release = threading.Event(), threading.Event()
        self.fails = False
        self.loads = 0

    def __call__(self, stop: Any) -> Any:
        self.loads += 1
        self.begun.set()
        assert self.release.wait(20)
        if self.fails:
            raise ImportError("no handlers")
        return self._load(stop)


def status() -> NodeStatus:
    raise AssertionError("no test here asks for the status")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> SlowLoad:
    slow = SlowLoad(console_server._import_handlers)
    monkeypatch.setattr(console_server, "_import_handlers", slow)
    return slow


@pytest.fixture
async def connect(load: SlowLoad) -> AsyncIterator[Callable[[], Any]]:
    """Connects to a console whose handlers are being loaded; gives the caller once its request was sent."""
    console = Console(AccessPolicy(), status)
    port = await console.start(("127.0.0.1",), 0)
    callers: list[Caller] = []

    async def connected() -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
        callers.append(caller)
        await asyncio.to_thread(load.begun.wait, 20)
        return caller

    connected.console = console  # type: ignore[attr-defined]
    yield connected
    load.release.set()
    await console.close()
    for caller in callers:
        await caller.close()


async def test_early_connections_are_answered_once_the_handlers_are_loaded(connect: Any, load: SlowLoad) -> None:
    whole, halved, silent = [await connect() for _ in range(3)]
    data = request("GET", "/api/nothing")
    whole.send(data)
    halved.send(data[:9])
    load.release.set()
    assert (await whole.response()).status == 404
    halved.send(data[9:])
    assert (await halved.response()).status == 404
    silent.send(data)
    assert (await silent.response()).status == 404
    assert load.loads == 1


async def test_early_connection_that_sends_too_much_is_closed(connect: Any, load: SlowLoad) -> None:
    caller = await connect()
    caller.send(b"x" * (MAX_EARLY_BYTES + 1))
    assert await caller.eof() == b""
    assert connect.console.transports() == ()


async def test_close_ends_early_connections(connect: Any, load: SlowLoad) -> None:
    caller = await connect()
    load.release.set()
    await connect.console.close()
    assert await caller.eof() == b""


async def test_a_failed_load_closes_connections_and_the_next_one_tries_again(connect: Any, load: SlowLoad) -> None:
    load.fails = True
    caller = await connect()
    load.release.set()
    assert await caller.eof() == b""
    load.fails = False
    again = await connect()
    again.send(request("GET", "/api/nothing"))
    assert (await again.response()).status == 404
    assert load.loads == 2


def test_a_node_starts_without_aiohttp() -> None:
    code = (
        "import sys, meshllm.daemon.app, meshllm.daemon.mesh_session, meshllm.daemon.file_sharing;"
        "sys.exit(' '.join(name for name in ('aiohttp', 'huggingface_hub', 'meshllm.web.console.status')"
        " if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True).stderr == "\n"
