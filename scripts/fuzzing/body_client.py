"""A small HTTP client that posts bodies over kept connections and reads answers whole, as quickly as Python can."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from scripts.fuzzing.body_judge import Answer, Wrong

ANSWER_SECONDS = 300.0
_MAX_LINE = 1 << 24


class BodyClient:
    """One connection, opened again where the server closed it."""

    def __init__(self, base_url: str) -> None:
        address = urlsplit(base_url)
        assert address.hostname is not None
        assert address.port is not None
        self._host, self._port = address.hostname, address.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, data: bytes) -> Answer:
        """The answer to one request. Raises Wrong for what is no HTTP, or none within `ANSWER_SECONDS`."""
        head = f"POST {path} HTTP/1.1\r\nhost: localhost:{self._port}\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._post(request)
        except TimeoutError:
            self.close()
            raise Wrong(f"no answer within {ANSWER_SECONDS:.0f} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise Wrong(f"the connection ended, or what came is no HTTP: {error!r}") from None

    async def _post(self, request: bytes) -> Answer:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=_MAX_LINE)
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self._body(self._reader, headers)
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, headers, body)

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if (length := headers.get("content-length")) is not None:
            return await reader.readexactly(int(length))
        if headers.get("transfer-encoding") != "chunked":
            return await reader.read()
        pieces: list[bytes] = []
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
