"""Downloading through the running node, so that the nodes of its mesh are asked first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from meshllm import paths
from meshllm.errors import DownloadFailed, NotRunning

if TYPE_CHECKING:
    from meshllm.cli.transfers import DownloadView

# Longest silence of the node, which writes a line every second.
SILENCE_SECONDS = 15.0
CONNECT_SECONDS = 5.0


def node_port() -> int | None:
    """The console port of the node that runs with MESH_LLM_HOME; None if none runs."""
    from meshllm.daemon import pidfile

    running = pidfile.read(paths.home())
    return None if running is None else running.console


async def download_through_node(port: int, name: str, folder: Path, view: DownloadView, *, draft: bool) -> None:
    """Let the node at console `port` download the model into `folder`, its own model folder; shows progress on `view`.

    Raises DownloadFailed if the node reports a failure, and NotRunning if it does not answer. When cancelled, the node
    stops the download and keeps what has arrived.
    """
    import aiohttp

    from meshllm.cli.console_client import token_headers
    from meshllm.web.console.downloads import DownloadRequest

    body = DownloadRequest(name=name, folder=str(folder), draft=draft).model_dump_json()
    headers = {"content-type": "application/json"} | token_headers(port)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    url = f"http://127.0.0.1:{port}/api/downloads"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20) as session,
            session.post(url, data=body, headers=headers) as response,
        ):
            if response.status != 200:
                raise DownloadFailed(await _refusal(response))
            await _follow(response, view)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise NotRunning(f"The node on port {port} does not answer: {error or type(error).__name__}.") from error


async def _refusal(response: object) -> str:
    import json

    import aiohttp

    assert isinstance(response, aiohttp.ClientResponse)
    try:
        return str(json.loads(await response.content.read(1 << 16))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The node answered with status {response.status}."


async def _follow(response: object, view: DownloadView) -> None:
    """Show the events of a download until its last one. Raises DownloadFailed."""
    import aiohttp

    from meshllm.models.transfer.progress import TransferProgress
    from meshllm.web.console.downloads import (
        DOWNLOAD_EVENTS,
        DownloadComplete,
        DownloadExpected,
        DownloadFailure,
        DownloadStep,
    )

    assert isinstance(response, aiohttp.ClientResponse)
    async for line in response.content:
        try:
            event = DOWNLOAD_EVENTS.validate_json(line)
        except ValueError:
            raise DownloadFailed("The node's answer is not understood; is it another version?") from None
        match event:
            case DownloadExpected():
                files = dict(event.files)
                view.expect(lambda files=files: files)  # type: ignore[misc]
            case DownloadStep():
                view.report(
                    TransferProgress(
                        event.stage,
                        event.done,
                        event.total,
                        event.detail,
                        file=event.file,
                        source=event.source,
                        by_source=event.by_source,
                    )
                )
            case DownloadFailure():
                raise DownloadFailed(event.message, advice=event.advice)
            case DownloadComplete():
                return
    raise DownloadFailed("The node stopped before the download was complete.")
