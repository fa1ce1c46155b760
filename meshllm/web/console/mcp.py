"""`POST /mcp`: the Model Context Protocol over streamable HTTP, for agents on this machine.

Here is who may call, and how much; what is said is of the `McpExchange`. A caller needs the token of the node's run or
the API key: another user of the machine, or a web page, has neither. There are no sessions, so that GET and DELETE,
which are about one, are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiohttp import web

    from meshllm.web.console.endpoints import ConsoleRoute
    from meshllm.web.http.access_control import AccessPolicy

Emit = Callable[[bytes], Awaitable[None]]
# Body, headers (lower-case names), room, and what sends a notification before the response (None: it cannot be sent);
# status and body (empty: none) of the response. Cancelled when the caller goes away.
McpExchange = Callable[[bytes, Mapping[str, str], str, Emit | None], Awaitable[tuple[int, bytes]]]

MAX_BODY_BYTES: Final = 64 << 10
# A caller that sends its body more slowly is refused.
BODY_SECONDS: Final = 10.0
# Exchanges in progress: a feed that waits and a subscription take a place each.
MAX_EXCHANGES: Final = 64
MAX_ROOM: Final = 128
# An event stream gets a comment so often, and a caller that does not read for so long is dropped.
HEARTBEAT_SECONDS, WRITE_SECONDS = 15.0, 30.0
# How often is looked whether the caller has gone.
LOOK_SECONDS: Final = 1.0
# Headers that the protocol reads, which say nothing if they come twice.
_ONCE: Final = ("mcp-protocol-version", "mcp-method", "mcp-name")


class McpHandler:
    """Answers the endpoint. `caller` tells of a request whether its caller is on this machine, and is the owner."""

    def __init__(
        self, policy: AccessPolicy, exchange: McpExchange, caller: Callable[[web.Request], tuple[bool, bool]]
    ) -> None:
        self._policy, self._exchange, self._caller = policy, exchange, caller
        self._running = 0

    def routes(self) -> tuple[ConsoleRoute, ...]:
        """The endpoint."""
        from meshllm.web.console import endpoints

        return (endpoints.ConsoleRoute(endpoints.MCP, self._post),)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        from meshllm.web.console.responses import error_response

        denied = self._denied(request)
        if denied is not None:
            return denied
        if request.content_type != "application/json":
            return error_response(
                415, "invalid_request", "Send one JSON-RPC message with 'Content-Type: application/json'."
            )
        accepts = request.headers.get("accept", "*/*").lower()
        if not any(kind in accepts for kind in ("application/json", "application/*", "*/*")):
            return error_response(406, "invalid_request", "Send 'Accept: application/json, text/event-stream'.")
        if any(len(request.headers.getall(name, [])) > 1 for name in _ONCE):
            return error_response(400, "invalid_request", f"Each of {', '.join(_ONCE)} may be sent once only.")
        room = request.query.get("room", "")
        if len(room.encode("utf-8", "replace")) > MAX_ROOM or not room.isprintable():
            return error_response(400, "invalid_request", f"room has up to {MAX_ROOM} bytes.")
        body = await _body(request)
        if body is None:
            return error_response(413, "too_large", f"A message has up to {MAX_BODY_BYTES} bytes.")
        if self._running >= MAX_EXCHANGES:
            return error_response(503, "overloaded", f"{MAX_EXCHANGES} calls are in progress. Retry later.")
        self._running += 1
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            stream = _EventStream(request) if "text/event-stream" in accepts else None
            emit = None if stream is None else stream.emit
            status, text = await _while_connected(request, self._exchange(body, headers, room, emit), stream)
            if stream is not None and stream.response is not None:
                with contextlib.suppress(OSError, TimeoutError):
                    await stream.emit(text)
                    await stream.response.write_eof()
                return stream.response
            if not text:
                return web.Response(status=status)
            return web.Response(body=text, status=status, content_type="application/json")
        finally:
            self._running -= 1

    def _denied(self, request: web.Request) -> web.Response | None:
        """The response to a caller that may not call."""
        from meshllm.web.console.responses import error_response

        near, owner = self._caller(request)
        if not near:
            return error_response(403, "read_only", "MCP is available on the node's own machine only.")
        if owner:
            return None
        headers = {
            name.lower().encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
            for name, value in request.headers.items()
        }
        if self._policy.key and self._policy.refuse_without_key(headers, request.remote or "") is None:
            return None
        response = error_response(
            401,
            "token_required",
            "MCP over HTTP needs the node's API key ('Authorization: Bearer KEY') or the token of its run. Without "
            "either, let the agent start 'mesh-llm blackboard --mcp' instead.",
        )
        response.headers["www-authenticate"] = "Bearer"
        return response


class _EventStream:
    """The response as server-sent events, begun by the first one."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None

    async def emit(self, data: bytes) -> None:
        """Send one message."""
        from aiohttp import web

        from meshllm.web.console.responses import SECURITY_HEADERS

        if self.response is None:
            kind = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
            self.response = web.StreamResponse(headers={**kind, **SECURITY_HEADERS})
            await self.response.prepare(self._request)
        await self._write(b"event: message\ndata: " + data + b"\n\n")

    async def beat(self) -> None:
        """Show that the connection lives, if the stream has begun."""
        if self.response is not None:
            await self._write(b": still here\n\n")

    async def _write(self, data: bytes) -> None:
        assert self.response is not None
        async with asyncio.timeout(WRITE_SECONDS):
            await self.response.write(data)


async def _while_connected(
    request: web.Request, exchange: Awaitable[tuple[int, bytes]], stream: _EventStream | None
) -> tuple[int, bytes]:
    """The exchange's response; it is cancelled when the caller goes away."""
    from meshllm.tasks import Owner

    async def run() -> tuple[int, bytes]:
        return await exchange

    owner = Owner("mcp exchange", awaited=True)
    task = owner.start(run(), "exchange")
    quiet = 0.0
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_SECONDS)
            if request.transport is None or request.transport.is_closing():
                return 499, b""
            quiet += LOOK_SECONDS
            if stream is not None and quiet >= HEARTBEAT_SECONDS:
                quiet = 0.0
                await stream.beat()
        return task.result()
    except (OSError, TimeoutError):  # the caller does not read
        if request.transport is not None:
            request.transport.abort()
        return 499, b""
    finally:
        await owner.close()


async def _body(request: web.Request) -> bytes | None:
    """The request's body, None if it is too long or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while part := await request.content.readany():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    return None
    except TimeoutError:
        return None
    return bytes(body)
