"""One answer with bytes of a file: asked for, checked for what it claims to be, and written where it is wanted.

Law: bytes are written only at the place that the answer says they are from, and only there where nobody else writes. A
server that ignores ranges may cost traffic, never a wrong byte. All of it runs in a thread that may be left behind.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meshllm.errors import DownloadFailed
from meshllm.models.transfer.partial_file import ByteRange, PartialFile
from meshllm.util.threads import StopSignal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

CONNECT_SECONDS: Final = 10.0
RECEIVE_BUFFER_BYTES = 0  # of a connection's socket; 0: as the system has it

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes are, and the headers to ask with (the token only if it is the hub itself that is asked)."""

    url: str
    headers: dict[str, str]


class RetryLater(Exception):
    """This try failed, another may not; `after` is what the server asked us to wait, in seconds.

    `answered` is False where nobody answered at all, so that the hub may be out of reach.
    """

    def __init__(self, reason: str, after: float = 0.0, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.after = after
        self.answered = answered


class RangeIgnored(Exception):
    """The server began at the file's start although another place was asked for."""


class HubBody:
    """What one request brings of a file. It holds the piece, or another that it comes upon, until `release`.

    `whole`: nothing but the whole file can be had, so what is there already, or fetched by others, is passed over. An
    answer that begins at the file's start although only a piece was asked for is read on until it is of no use.
    """

    def __init__(self, assembly: PartialFile, piece: ByteRange, source: str, *, whole: bool) -> None:
        self._assembly = assembly
        self._piece: ByteRange | None = piece
        self._source = source
        self._whole = whole
        self._over = False
        self.from_start = whole
        """Whether the answer began at the file's start and goes on to its end, asked for or not."""
        self._place = 0 if whole else piece.position
        self._end = assembly.size if whole else piece.end

    def release(self) -> None:
        """Give back what it holds; what has arrived is kept. Idempotent."""
        if self._piece is not None:
            self._assembly.give_back(self._piece)
            self._piece = None

    def fetch(self, stop: StopSignal, location: Location, stall: float) -> None:
        """Ask for it and write what comes (in a thread). Raises `Again`, RangeIgnored, DownloadFailed, OSError."""
        asyncio.run(self._fetch(stop, location, stall))  # a loop of this thread: writing blocks no other work

    async def _fetch(self, stop: StopSignal, location: Location, stall: float) -> None:
        import aiohttp
        import yarl

        headers = {**location.headers, "Accept-Encoding": "identity"}
        if self._end - self._place < self._assembly.size:
            headers["Range"] = f"bytes={self._place}-{self._end - 1}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(stall, CONNECT_SECONDS), sock_read=stall)
        try:
            async with (
                http_session(timeout) as session,
                session.get(yarl.URL(location.url, encoded=True), headers=headers) as response,
            ):
                self._check(response)
                async for data in response.content.iter_any():
                    if self._place + len(data) > self._assembly.size:
                        raise DownloadFailed("The hub sent more bytes than the file has.")
                    self._take(stop, memoryview(data))
                    if self._is_done() and self._place < self._end:
                        break  # another connection or peer fetches the rest
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RetryLater(words(error)) from None
        if not self._is_done():
            raise RetryLater(f"the connection ended after {self._place} of {self._end} bytes")

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raises where the answer's body does not begin at the place that was asked for."""
        if response.status == 200:
            if self._place:
                raise RangeIgnored
            self.from_start, self._end = True, self._assembly.size
        elif response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != self._place or match[3] not in ("*", str(self._assembly.size)):
                raise RetryLater("it sent another range than the one that was asked for")
        else:
            raise RetryLater(f"it answered {response.status}", retry_after(response.headers))

    def _is_done(self) -> bool:
        """Whether nothing that comes here is wanted any more."""
        piece = self._piece
        if piece is not None and piece.held and piece.position < piece.end:
            return False
        return not self.from_start or self._over or self._assembly.complete or self._place == self._end

    def _take(self, stop: StopSignal, data: memoryview) -> None:
        assembly = self._assembly
        while data:
            with stop:
                piece = self._wanted()
                if piece is None:
                    count = assembly.span(self._place // assembly.chunk_bytes)[1] - self._place
                elif self._place < piece.position:
                    count = piece.position - self._place
                else:
                    count = min(len(data), piece.end - piece.position)
                    assembly.write(piece, data[:count])
            self._place += min(count, len(data))
            data = data[count:]
            if piece is None and not self._whole:
                self._over = True
                return

    def _wanted(self) -> ByteRange | None:
        """The piece for what comes now or later, None where nobody wants what comes until the end of this chunk."""
        piece = self._piece
        if piece is not None and piece.held and piece.position < piece.end and piece.position >= self._place:
            return piece
        self.release()
        if self.from_start:
            here = self._place // self._assembly.chunk_bytes
            self._piece = self._assembly.claim(self._source, 1, accept=lambda chunk: chunk == here)
            if self._piece is not None and self._piece.position < self._place:
                self.release()  # its beginning has passed
        return self._piece


def http_session(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A client session for a loop that serves one thread only: proxies of the environment, the system's certificates.

    Names are resolved in the calling thread: asyncio's threads for that would delay the exit of the program.
    """
    import aiohttp
    import httpx2
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            return [
                ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=0)
                for kind, _, protocol, _, address in found
            ]

        async def close(self) -> None:
            pass

    connector = aiohttp.TCPConnector(resolver=Resolver(), ssl=httpx2.create_ssl_context(), socket_factory=_socket)
    # Without decompression, so that positions in the answer are positions in the file.
    return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True, auto_decompress=False)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(address[0], address[1], address[2])
    made.setblocking(False)
    if RECEIVE_BUFFER_BYTES:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return made


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks us to wait."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0.0


def words(error: BaseException) -> str:
    """The first line of an error of the client, shortened."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text[:200].rstrip(".")
