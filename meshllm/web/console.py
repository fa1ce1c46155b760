"""The console server on :3131: the status, once or as it changes.

Law: read-only, and only for this machine (the same caller checks as the gateway, never a key). A viewer that does not
read is dropped, not waited for: each gets the newest state, whatever it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable

from aiohttp import web

from meshllm.errors import PortTaken
from meshllm.web.callers import CallerPolicy
from meshllm.web.status import NodeStatus

# No viewer is told more often than this, however fast things change; and it hears something at least this often, so
# that either side notices that the other has gone.
MIN_INTERVAL_SECONDS = 0.1
HEARTBEAT_SECONDS = 15.0
WRITE_SECONDS = 30.0
MAX_VIEWERS = 64
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Console:
    """Serves what `status` returns; `changed` says that it is worth asking again."""

    def __init__(self, policy: CallerPolicy, status: Callable[[], NodeStatus]) -> None:
        self._policy = policy
        self._status = status
        self._change = asyncio.Event()
        self._version = 0
        self._viewers = 0
        self._closing = False
        app = web.Application(middlewares=[self._check], client_max_size=1024)
        app.router.add_get("/", self._index)
        app.router.add_get("/api/status", self._status_once)
        app.router.add_get("/api/events", self._events)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        """Listen; returns the port. Raises PortTaken."""
        await self._runner.setup()
        for host in hosts:
            site = web.TCPSite(self._runner, host, port)
            try:
                await site.start()
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and self._runner.addresses:
                    continue  # no IPv6 here
                await self._runner.cleanup()
                raise PortTaken(
                    f"Cannot listen on {host} port {port}: {error.strerror or error}.",
                    advice="Stop what uses it, or choose another with --console.",
                ) from error
            port = self._runner.addresses[0][1]
        return port

    @property
    def viewers(self) -> int:
        """How many are being told of changes."""
        return self._viewers

    def changed(self) -> None:
        """Something is new: viewers are told."""
        self._version += 1
        event, self._change = self._change, asyncio.Event()
        event.set()

    async def close(self) -> None:
        """Let viewers go, and stop listening."""
        self._closing = True
        self.changed()
        await self._runner.cleanup()

    @web.middleware
    async def _check(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        headers = {
            # A byte that is not UTF-8 stays the byte that it was.
            name.lower().encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
            for name, value in request.headers.items()
        }
        refusal = self._policy.refuse(request.remote or "", headers)
        if refusal is not None:
            error = {"error": {"code": refusal.code, "message": refusal.message}}
            return web.json_response(error, status=refusal.status, headers=SECURITY_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(SECURITY_HEADERS)
            raise
        if not response.prepared:
            response.headers.update(SECURITY_HEADERS)
        return response

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(
            text="mesh-llm: the console page is not part of this build yet.\n"
            "GET /api/status is the state of this node as JSON, GET /api/events the same whenever it changes (SSE).\n"
        )

    async def _status_once(self, request: web.Request) -> web.Response:
        return web.Response(text=self._status().model_dump_json(), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._viewers >= MAX_VIEWERS:
            return web.json_response({"error": {"code": "overloaded", "message": "Too many viewers."}}, status=503)
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **SECURITY_HEADERS})
        self._viewers += 1
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                await self._tell(response)
        except TimeoutError:
            # It does not read; the end of the response would wait for it as well.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers -= 1
        return response

    async def _tell(self, response: web.StreamResponse) -> None:
        told = -1
        while not self._closing:
            if told != self._version:
                told = self._version
                text = f"event: status\nid: {told}\ndata: {self._status().model_dump_json()}\n\n"
            else:
                text = ": still here\n\n"
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(text.encode())
            # The event is taken before the pause: what changes meanwhile is not missed.
            change = self._change
            await asyncio.sleep(MIN_INTERVAL_SECONDS)
            if told == self._version:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(change.wait(), timeout=HEARTBEAT_SECONDS)
