"""POST /api/downloads: the node downloads a model, nodes of its mesh first, and streams its progress as JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from meshllm.errors import MeshError
from meshllm.tasks import Owner

if TYPE_CHECKING:
    from aiohttp import web

# A line is written at least this often, so that a client that is gone is noticed and its download stopped.
HEARTBEAT_SECONDS = 1.0
WRITE_SECONDS = 30.0
MAX_DOWNLOADS = 8


class _Line(BaseModel):
    # `defer_build`: a validator takes 30 kB and 1 ms, and most daemons never download for a command.
    model_config = ConfigDict(frozen=True, defer_build=True)


class DownloadRequest(_Line):
    """`name` as `mesh-llm download` takes it; `folder`: the caller's model folder, which must be the node's (empty: the
    caller has none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=1000)
    folder: str = Field("", max_length=4096)
    draft: bool = False


class DownloadExpected(_Line):
    """Sizes in bytes of the files that are missing, as far as they are known."""

    event: Literal["expected"] = "expected"
    files: Mapping[str, int]


class DownloadStep(_Line):
    """Progress of one file, in bytes; `by_source`: bytes received from each source."""

    event: Literal["progress"] = "progress"
    stage: str
    file: str
    source: str = ""
    done: int = 0
    total: int = 0
    detail: str = ""
    by_source: tuple[tuple[str, int], ...] = ()


class DownloadAlive(_Line):
    """Nothing new; the download goes on."""

    event: Literal["alive"] = "alive"


class DownloadFailure(_Line):
    """The last line of a download that failed."""

    event: Literal["failed"] = "failed"
    code: str
    message: str
    advice: str = ""


class DownloadComplete(_Line):
    """The last line of a download that succeeded: the models' names."""

    event: Literal["complete"] = "complete"
    models: tuple[str, ...]


DownloadEvent = DownloadExpected | DownloadStep | DownloadAlive | DownloadFailure | DownloadComplete
DOWNLOAD_EVENTS: TypeAdapter[DownloadEvent] = TypeAdapter(
    Annotated[DownloadEvent, Field(discriminator="event")], config=ConfigDict(defer_build=True)
)

Download = Callable[[DownloadRequest, Callable[[DownloadEvent], None]], Awaitable[tuple[str, ...]]]
"""Downloads what is requested and returns the models' names. Raises MeshError. Cancelling it keeps what has arrived."""


class DownloadHandler:
    """Serves POST /api/downloads with `download`. The caller has checked the run's token."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._running = 0

    async def handle(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse | str:
        """The streamed response; or a message for a 400 response if the request is not valid."""
        from aiohttp import web  # loaded: the request came through it

        try:
            asked = DownloadRequest.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors()[0]
            return f"Invalid download request: {'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}."
        if self._running >= MAX_DOWNLOADS:
            return f"{MAX_DOWNLOADS} downloads run already."
        self._running += 1
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson", **headers})
        outbox = _Outbox()
        owner = Owner("download request")
        work = owner.start(self._run(asked, outbox), asked.name)
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError, TimeoutError):
                await _send(response, work, outbox)
        finally:
            self._running -= 1
            await owner.close()
        return response

    async def _run(self, asked: DownloadRequest, outbox: _Outbox) -> None:
        try:
            outbox.put(DownloadComplete(models=await self._download(asked, outbox.put)))
        except MeshError as error:
            outbox.put(DownloadFailure(code=error.code, message=error.message, advice=error.advice))


class _Outbox:
    """Events to be written; a newer progress of the same file and stage replaces an unwritten one."""

    def __init__(self) -> None:
        self._events: list[DownloadEvent] = []
        self._filled = asyncio.Event()

    def put(self, event: DownloadEvent) -> None:
        last = self._events[-1] if self._events else None
        if (
            isinstance(last, DownloadStep)
            and isinstance(event, DownloadStep)
            and (last.file, last.stage, last.detail) == (event.file, event.stage, event.detail)
        ):
            self._events[-1] = event
        else:
            self._events.append(event)
        self._filled.set()

    async def take(self) -> list[DownloadEvent]:
        """All unwritten events; DownloadAlive if there are none within HEARTBEAT_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._filled.wait()
        self._filled.clear()
        events, self._events = self._events, []
        return events or [DownloadAlive()]


async def _send(response: web.StreamResponse, work: asyncio.Future[None], outbox: _Outbox) -> None:
    """Write events until the last one. Raises ConnectionError or TimeoutError if the client is gone."""
    while True:
        events = await outbox.take()
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write("".join(f"{event.model_dump_json()}\n" for event in events).encode())
        if isinstance(events[-1], DownloadComplete | DownloadFailure):
            return
        if work.done():
            work.result()  # raises what the download did not expect
