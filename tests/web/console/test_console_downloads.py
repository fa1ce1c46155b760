"""POST /api/downloads: progress as JSON lines; for this machine only; a client that leaves stops the download."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import aiohttp
import pytest
from web_rig import OWNER, TOKEN

from meshllm.errors import DownloadFailed
from meshllm.web.console import downloads
from meshllm.web.console.downloads import DOWNLOAD_EVENTS, DownloadEvent, DownloadRequest, DownloadStep
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus
from meshllm.web.http.access_control import AccessPolicy

ASK = OWNER
BODY = {"name": "Some-Model", "folder": "/models"}


class FakeNode:
    """Downloads nothing: reports one step, then waits for `go`; `ended` is set when it was cancelled or is done."""

    def __init__(self) -> None:
        self.requests: list[DownloadRequest] = []
        self.started, self.go, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.error: DownloadFailed | None = None

    async def download(self, request: DownloadRequest, emit: Callable[[DownloadEvent], None]) -> tuple[str, ...]:
        self.requests.append(request)
        try:
            emit(DownloadStep(stage="downloading", file="a.gguf", done=1, total=10))
            emit(DownloadStep(stage="downloading", file="a.gguf", done=5, total=10))
            self.started.set()
            await self.go.wait()
            if self.error is not None:
                raise self.error
            return ("Some-Model",)
        finally:
            self.ended.set()


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    monkeypatch.setattr(downloads, "HEARTBEAT_SECONDS", 0.02)
    return FakeNode()


@pytest.fixture
async def url(node: FakeNode) -> AsyncIterator[str]:
    def status() -> NodeStatus:
        raise AssertionError("a download does not read the status")

    console = Console(AccessPolicy(), cast(Callable[[], NodeStatus], status), download=node.download, token=TOKEN)
    port = await console.start(("127.0.0.1",), 0)
    yield f"http://127.0.0.1:{port}/api/downloads"
    await console.close()


async def lines(response: aiohttp.ClientResponse) -> list[DownloadEvent]:
    return [event async for line in response.content if (event := DOWNLOAD_EVENTS.validate_json(line)).event != "alive"]


async def test_download_streams_progress_and_the_result(url: str, node: FakeNode) -> None:
    node.go.set()
    async with aiohttp.ClientSession() as session, session.post(url, json=BODY, headers=ASK) as response:
        assert response.status == 200
        events = await lines(response)
    assert [event.event for event in events] == ["progress", "complete"]
    assert cast(DownloadStep, events[0]).done == 5
    assert node.requests == [DownloadRequest(name="Some-Model", folder="/models")]


async def test_download_streams_the_failure(url: str, node: FakeNode) -> None:
    node.error = DownloadFailed("No peer has it.", advice="Try the hub.")
    node.go.set()
    async with aiohttp.ClientSession() as session, session.post(url, json=BODY, headers=ASK) as response:
        events = await lines(response)
    assert events[-1] == downloads.DownloadFailure(
        code="download_failed", message="No peer has it.", advice="Try the hub."
    )


async def test_download_is_cancelled_when_the_client_disconnects(url: str, node: FakeNode) -> None:
    async with aiohttp.ClientSession() as session:
        response = await session.post(url, json=BODY, headers=ASK)
        await asyncio.wait_for(node.started.wait(), 10)
        response.close()
        await asyncio.wait_for(node.ended.wait(), 10)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (BODY, {}, 403),
        (BODY, {**ASK, "origin": "http://evil.example"}, 403),
        (BODY, {**ASK, "x-forwarded-for": "203.0.113.9"}, 401),
        ({"folder": "/models"}, ASK, 400),
        ({**BODY, "url": "http://evil.example"}, ASK, 400),
    ],
)
async def test_download_refuses_other_callers_and_invalid_bodies(
    url: str, node: FakeNode, body: dict[str, str], headers: dict[str, str], status: int
) -> None:
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        assert response.status in ({401, 403} if status == 401 else {status})
    assert node.requests == []
