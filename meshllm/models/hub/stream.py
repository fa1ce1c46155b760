"""Streams one HTTP response with bytes of a file into a partial file.

Invariants: bytes are written only at the offset that the response states and only in a claimed range, so that a server
that ignores ranges costs traffic and never a wrong byte.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from meshllm.errors import DownloadFailed
from meshllm.models.hub.destinations import MAX_REDIRECTS, REDIRECTS, Destinations
from meshllm.models.transfer.partial_file import ByteRange, PartialFile
from meshllm.util.threads import StopSignal, ThreadStopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

    import aiohttp

CONNECT_SECONDS: Final = 10.0
MAX_CAUSES: Final = 10  # of an error, each the cause of the one before
RECEIVE_BUFFER_BYTES = 0  # of a connection's socket; 0: as the system has it

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Location:
    """The address of the bytes, request headers (with the token only for the hub itself), and where it may lead."""

    url: str
    headers: dict[str, str]
    destinations: Destinations


class RetryLater(Exception):
    """A failure that a retry may repair; `after`: seconds the server asks to wait.

    `answered` False: no answer at all, so the hub may be unreachable.
    """

    def __init__(self, reason: str, after: float = 0.0, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.after = after
        self.answered = answered


class RangeIgnored(Exception):
    """The server sent the file from its start although a range was requested."""


class HubBody:
    """One response. Holds the range it fills, or another that it reaches, until `release`.

    `whole`: only the whole file can be requested, so bytes that are there or claimed by others are skipped. A response
    that starts at 0 although a range was requested is read until it is of no more use.
    """

    def __init__(self, partial: PartialFile, piece: ByteRange, source: str, *, whole: bool) -> None:
        self._partial = partial
        self._piece: ByteRange | None = piece
        self._source = source
        self._whole = whole
        self._superseded = False
        self.from_start = whole
        """Whether the response covers the file from its start to its end, requested or not."""
        self._position = 0 if whole else piece.position
        self._end = partial.size if whole else piece.end

    def release(self) -> None:
        """Release the held range; bytes that arrived are kept. Idempotent."""
        if self._piece is not None:
            self._partial.release(self._piece)
            self._piece = None

    async def fetch(self, stop: StopSignal, session: aiohttp.ClientSession, location: Location) -> None:
        """Request the bytes and write them, in a download thread.

        Raises RetryLater, RangeIgnored, DownloadFailed and OSError.
        """
        import aiohttp

        headers = {**location.headers, "Accept-Encoding": "identity"}
        if self._end - self._position < self._partial.size:
            headers["Range"] = f"bytes={self._position}-{self._end - 1}"
        try:
            async with _followed(session, location, headers) as response:
                self._check(response)
                async for data in response.content.iter_any():
                    if self._position + len(data) > self._partial.size:
                        raise DownloadFailed("The hub sent more bytes than the file has.")
                    self._accept(stop, memoryview(data))
                    if self._is_done() and self._position < self._end:
                        break  # another connection or peer fetches the rest
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RetryLater(error_text(error)) from None
        if not self._is_done():
            raise RetryLater(f"the connection ended after {self._position} of {self._end} bytes")

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raises RetryLater or RangeIgnored if the response does not start at the requested offset."""
        if response.status == 200:
            if self._position:
                raise RangeIgnored
            self.from_start, self._end = True, self._partial.size
        elif response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != self._position or match[3] not in ("*", str(self._partial.size)):
                raise RetryLater("it sent another range than the one that was asked for")
        else:
            raise RetryLater(f"it answered {response.status}", retry_after(response.headers))

    def _is_done(self) -> bool:
        """Whether no further byte of the response is wanted."""
        piece = self._piece
        if piece is not None and piece.held and piece.position < piece.end:
            return False
        return not self.from_start or self._superseded or self._partial.complete or self._position == self._end

    def _accept(self, stop: StopSignal, data: memoryview) -> None:
        partial = self._partial
        while data:
            with stop:
                piece = self._current_range()
                if piece is None:
                    count = partial.span(self._position // partial.chunk_bytes)[1] - self._position
                elif self._position < piece.position:
                    count = piece.position - self._position
                else:
                    count = min(len(data), piece.end - piece.position)
                    partial.write(piece, data[:count])
            self._position += min(count, len(data))
            data = data[count:]
            if piece is None and not self._whole:
                self._superseded = True
                return

    def _current_range(self) -> ByteRange | None:
        """The range for the current or a later position; None if nothing is wanted until the end of this chunk."""
        piece = self._piece
        if piece is not None and piece.held and piece.position < piece.end and piece.position >= self._position:
            return piece
        self.release()
        if self.from_start:
            here = self._position // self._partial.chunk_bytes
            self._piece = self._partial.claim(self._source, 1, accept=lambda chunk: chunk == here)
            if self._piece is not None and self._piece.position < self._position:
                self.release()  # its beginning has passed
        return self._piece


@contextlib.asynccontextmanager
async def _followed(
    session: aiohttp.ClientSession, location: Location, headers: dict[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The response at the end of the redirects, each of which is checked. Raises DownloadFailed, RetryLater."""
    import yarl

    url, destinations = location.url, location.destinations
    destinations.check_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        async with session.get(yarl.URL(url, encoded=True), headers=headers, allow_redirects=False) as response:
            target = response.headers.get("Location", "") if response.status in REDIRECTS else ""
            if not target:
                yield response
                return
        to = destinations.next_url(url, target)
        if urlsplit(to)[:2] != urlsplit(url)[:2]:
            headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        url = to
    raise RetryLater("it redirected too often")


class DownloadThread:
    """An event loop in a daemon thread with one HTTP session: connections are reused, and writing blocks no other work.

    `stall`: seconds of silence after which a response fails.
    """

    def __init__(self, stall: float, destinations: Destinations) -> None:
        self._stall = stall
        self._destinations = destinations
        self._session: aiohttp.ClientSession | None = None
        self._loop = asyncio.new_event_loop()
        self._closing: concurrent.futures.Future[None] | None = None
        threading.Thread(target=self._run, name="hub-stream", daemon=True).start()

    async def call(self, work: Callable[[StopSignal, aiohttp.ClientSession], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in the thread. When cancelled, it has no further effects inside `with stop:`."""
        stop = StopSignal()
        future = asyncio.run_coroutine_threadsafe(self._work(stop, work), self._loop)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            stop.set()
            raise

    def close(self) -> None:
        """Close the connections and end the thread, without waiting for it."""
        # Kept: a loop holds its tasks by weak references only.
        self._closing = asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _work(
        self, stop: StopSignal, work: Callable[[StopSignal, aiohttp.ClientSession], Coroutine[Any, Any, None]]
    ) -> None:
        if self._session is None:
            self._session = _http_session(self._stall, self._destinations)
        with contextlib.suppress(ThreadStopped):
            await work(stop, self._session)

    async def _shut_down(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        try:
            await asyncio.gather(*running, return_exceptions=True)
            if self._session is not None:
                await self._session.close()
        finally:
            self._loop.stop()


def _http_session(stall: float, destinations: Destinations) -> aiohttp.ClientSession:
    """A session that uses the environment's proxies and the system's certificates, and connects to what may be.

    Names are resolved in the calling thread: threads of asyncio's executor would delay the exit of the program.
    """
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            for *_, address in found:
                destinations.check_address(host, str(address[0]))
            return [
                ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=0)
                for kind, _, protocol, _, address in found
            ]

        async def close(self) -> None:
            pass

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(stall, CONNECT_SECONDS), sock_read=stall)
    connector = aiohttp.TCPConnector(resolver=Resolver(), ssl=_tls_context(), socket_factory=_socket)
    # Without decompression, so that positions in the response are positions in the file.
    return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True, auto_decompress=False)


@cache
def _tls_context() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


def _socket(address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(address[0], address[1], address[2])
    made.setblocking(False)
    if RECEIVE_BUFFER_BYTES:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return made


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0.0


def error_text(error: BaseException) -> str:
    """The first line of an error, at most 200 characters; for a name without an address, what that means."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if isinstance(cause, socket.gaierror):
            return "its name cannot be resolved; this machine has no network, or no DNS server answers"
        cause = cause and (cause.__cause__ or cause.__context__)
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text[:200].rstrip(".")
