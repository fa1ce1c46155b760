"""The console server on :3131: the page, the status, once or as it changes; and the invite, for who asks for it.

Law: only for this machine (the same caller checks as the gateway, never a key), and nothing here changes the node. An
invite is a secret: it is given to programs of this machine that ask for exactly it, and of all web pages to our own
alone. A viewer that does not read is dropped, not waited for: each gets the newest state, whatever it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from meshllm.errors import MeshError, NobodysFault, PortTaken
from meshllm.web.callers import CallerPolicy
from meshllm.web.openapi import document
from meshllm.web.page import Page
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
# A page can send a POST to any address, but not with a header of its own unless we allowed it, and we never do. What
# a browser adds to every request it makes for a page gives the rest away; our own page is told apart by it.
INVITE_HEADER, INVITE_WORD = "x-mesh-llm", "invite"
BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode", "cookie")
# An invite for longer should be one without an end; also keeps the sum with the clock within 64 bits.
MAX_EXPIRY_SECONDS = 10 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class Invitation:
    """What lets a node into the mesh; `expires` in seconds since the epoch (0: never). Its text is never shown."""

    text: str
    expires: int

    def __repr__(self) -> str:
        return f"<Invitation until {self.expires or 'cancelled'}>"


def no_invite(seconds: float) -> Invitation:
    """The invite of a node that has none to give. Raises NobodysFault."""
    raise NobodysFault("This node is part of no mesh.")


class Console:
    """Serves what `status` returns; `changed` says that it is worth asking again.

    `invite` makes an invite that is good for so many seconds (0: for good), or raises MeshError.
    """

    def __init__(
        self,
        policy: CallerPolicy,
        status: Callable[[], NodeStatus],
        invite: Callable[[float], Invitation] = no_invite,
        page: Page | None = None,
    ) -> None:
        self._policy = policy
        self._status = status
        self._invite = invite
        self._page = page or Page()
        self._change = asyncio.Event()
        self._version = 0
        self._viewers = 0
        self._closing = False
        app = web.Application(middlewares=[self._check], client_max_size=1024)
        app.router.add_get("/", self._index)
        app.router.add_get("/assets/{name}", self._asset)
        app.router.add_get("/api/openapi.json", self._openapi)
        app.router.add_get("/api/status", self._status_once)
        app.router.add_get("/api/events", self._events)
        app.router.add_post("/api/invite", self._invitation)
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
            return _error(refusal.status, refusal.code, refusal.message)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(SECURITY_HEADERS)
            raise
        if not response.prepared:
            for name, value in SECURITY_HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    async def _index(self, request: web.Request) -> web.Response:
        api = self._status().api
        return self._page.index(api.removesuffix("/v1"))

    async def _asset(self, request: web.Request) -> web.Response:
        return self._page.asset(request.match_info["name"])

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(document())

    async def _status_once(self, request: web.Request) -> web.Response:
        return web.Response(text=self._status().model_dump_json(), content_type="application/json")

    async def _invitation(self, request: web.Request) -> web.Response:
        if not _may_have_an_invite(request):
            words = "An invite is given to programs and the console's own page only: run 'mesh-llm invite'."
            return _error(403, "not_for_pages", words)
        try:
            asked = json.loads(await request.read() or b"{}")
            seconds = asked.get("expires") or 0
            if isinstance(seconds, bool) or not 0 <= seconds <= MAX_EXPIRY_SECONDS:
                raise ValueError(seconds)
        except (ValueError, TypeError, AttributeError, RecursionError):
            words = f'The body is {{"expires": SECONDS}}, with 0 (for good) to {MAX_EXPIRY_SECONDS}.'
            return _error(400, "invalid_request", words)
        try:
            invitation = self._invite(float(seconds))
        except MeshError as error:
            return _error(409, error.code, str(error))
        return web.json_response({"invite": invitation.text, "expires": invitation.expires})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._viewers >= MAX_VIEWERS:
            return _error(503, "overloaded", "Too many viewers.")
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


def _may_have_an_invite(request: web.Request) -> bool:
    """A program that asks for exactly it; or the console's page, as the browser itself says and no other page can.

    Cookies tell nothing: those of any page of this machine, on whatever port, come along.
    """
    headers = request.headers
    if headers.get(INVITE_HEADER) != INVITE_WORD:
        return False
    if not any(name in headers for name in BROWSER_HEADERS):
        return True
    return headers.get("sec-fetch-site") == "same-origin" and headers.get("origin") == f"http://{request.host}"


def _error(status: int, code: str, message: str) -> web.Response:
    error = {"error": {"code": code, "message": message}}
    return web.json_response(error, status=status, headers=SECURITY_HEADERS)
