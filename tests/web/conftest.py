"""Every test here runs on the default event loop and on uvloop, unless it says otherwise; sockets have short names."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from web_rig import Bench, bench


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket in it (107 bytes), which `tmp_path` often is not."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as name:
        yield Path(name)


@pytest.fixture
async def table(folder: Path) -> AsyncIterator[Bench]:
    """A bench that answers to this machine alone."""
    async with bench(folder) as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway looks at the time fifty times a second, and callers hear of it soon. Peers are as patient as ever: on
    a busy machine they send nothing for longer than any short limit. A request avoids a target that failed it for as
    long as ever, too: a short time may pass before it looks for another."""
    monkeypatch.setattr("meshllm.web.gateway.gateway.SWEEP_SECONDS", 0.02)
    monkeypatch.setattr("meshllm.web.gateway.relay.SILENCE_SECONDS", 0.02)
    monkeypatch.setattr("meshllm.web.gateway.target.REST_BASE_SECONDS", 0.0)


@pytest.fixture
def quick_again(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `quick`, and a request soon returns to the target that failed it. For tests in which there is no other."""
    monkeypatch.setattr("meshllm.web.gateway.request.AVOID_SECONDS", 0.005)
