"""A minimal HTTP client over a Unix socket (health, metrics and chat template of an engine process)."""

from __future__ import annotations

import asyncio

MAX_REPLY_BYTES = 1 << 20


async def get(socket_path: str, path: str, *, deadline: float) -> tuple[int, bytes]:
    """Status and body of `GET path`, within `deadline` seconds. Raises as `post` does."""
    return await _exchange(socket_path, f"GET {path} HTTP/1.1\r\n", b"", deadline)


async def post(socket_path: str, path: str, body: bytes, *, deadline: float) -> tuple[int, bytes]:
    """Status and body of the reply to `body` (JSON) at `path`, within `deadline` seconds.

    Raises OSError (connection refused or closed), TimeoutError, or ValueError (not HTTP, or the reply exceeds 1 MiB).
    """
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return await _exchange(socket_path, head, body, deadline)


async def _exchange(socket_path: str, request: str, content: bytes, deadline: float) -> tuple[int, bytes]:
    async with asyncio.timeout(deadline):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            writer.write(f"{request}Host: localhost\r\nConnection: close\r\n\r\n".encode() + content)
            reply = await reader.read(MAX_REPLY_BYTES)
            while len(reply) < MAX_REPLY_BYTES and (more := await reader.read(MAX_REPLY_BYTES - len(reply))):
                reply += more
        finally:
            writer.close()
    head, separator, body = reply.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not reply:
        raise ConnectionResetError("the connection was closed without a reply")
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("not an HTTP reply")
    return int(words[1]), body
