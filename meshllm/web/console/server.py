"""The console server on :3131: the page, the status, once or as it changes; and two secrets, for who asks for them.

Law: nothing here changes the node. Whoever is on another machine (`--listen-all`), or comes through a proxy, gets the
page's files, which are the same for everybody; and with the key a status without what is its owner's alone. An invite
and the key are secrets: they are given to programs of this machine that ask for exactly them, and of all web pages to
our own alone. A viewer that does not read is dropped, not waited for: each gets the newest state, whatever it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import cast
from urllib.parse import urlsplit

from aiohttp import web

from meshllm.errors import EnvironmentFailure, MeshError, port_taken
from meshllm.web.console.openapi import document
from meshllm.web.console.page_files import PageFiles
from meshllm.web.console.redaction import for_onlookers
from meshllm.web.console.status import NodeStatus
from meshllm.web.http.access_control import AccessDenied, AccessPolicy, host_in, is_local, is_loopback

# No viewer is told more often than this, however fast things change; and it hears something at least this often, so
# that either side notices that the other has gone.
MIN_INTERVAL_SECONDS = 0.1
HEARTBEAT_SECONDS = 15.0
WRITE_SECONDS = 30.0
MAX_VIEWERS = 64
# Of other machines: so many viewers, so that there is room for this one; and so many connections, whoever makes them.
MAX_ONLOOKERS = 32
MAX_STRANGERS = 128
# A connection on which nothing is asked is kept for so long.
IDLE_SECONDS = 75.0
LISTEN_BACKLOG = 128
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
# A page can send a POST to any address, but not with a header of its own unless we allowed it, and we never do. What
# a browser adds to every request it makes for a page gives the rest away; our own page is told apart by it.
SECRET_HEADER, INVITE_WORD, KEY_WORD = "x-mesh-llm", "invite", "key"
BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode", "cookie")
# An invite for longer should be one without an end; also keeps the sum with the clock within 64 bits.
MAX_EXPIRY_SECONDS = 10 * 366 * 86_400
NEAR = web.RequestKey("near", bool)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What lets a node into the mesh; `expires` in seconds since the epoch (0: never). Its text is never shown."""

    text: str
    expires: int

    def __repr__(self) -> str:
        return f"<Invitation until {self.expires or 'cancelled'}>"


def no_invite(seconds: float) -> Invitation:
    """The invite of a node that has none to give. Raises NobodysFault."""
    raise EnvironmentFailure("This node is part of no mesh.")


class Console:
    """Serves what `status` returns; `changed` says that it is worth asking again.

    `invite` makes an invite that is good for so many seconds (0: for good), or raises MeshError.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        status: Callable[[], NodeStatus],
        invite: Callable[[float], Invitation] = no_invite,
        page: PageFiles | None = None,
    ) -> None:
        self._policy = policy
        self._status = status
        self._invite = invite
        self._page = page or PageFiles()
        self._change = asyncio.Event()
        self._version = 0
        self._viewers = self._onlookers = 0
        self._closing = False
        self._servers: list[asyncio.Server] = []
        app = web.Application(middlewares=[self._check], client_max_size=1024)
        app.router.add_get("/", self._index)
        app.router.add_get("/assets/{name}", self._asset)
        app.router.add_get("/api/openapi.json", self._openapi)
        app.router.add_get("/api/status", self._status_once)
        app.router.add_get("/api/events", self._events)
        app.router.add_post("/api/invite", self._invitation)
        app.router.add_post("/api/key", self._key)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=IDLE_SECONDS)

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        """Listen; returns the port. Raises PortTaken."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for host in hosts:
            try:
                server = await loop.create_server(lambda: _Door(self._let_in), host, port, backlog=LISTEN_BACKLOG)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and self._servers:
                    continue  # no IPv6 here
                await self.close()
                raise port_taken(error, f"{host} port {port}", "--console") from error
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
        self._policy = replace(self._policy, page_port=port)
        return port

    def _let_in(self, peer: str) -> asyncio.Protocol | None:
        """What serves a connection of `peer`; None where other machines have too many, and at the very end."""
        server = self._runner.server
        if server is None or self._closing:
            return None
        if not is_loopback(peer):
            strangers = sum(1 for one in server.connections if not is_loopback(_peer_of(one.transport)))
            if strangers >= MAX_STRANGERS:
                return None
        return server()

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
        for server in self._servers:
            server.close()
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
        near, refusal = self._judge(request, headers)
        request[NEAR] = near
        if refusal is not None:
            return _error(refusal.status, refusal.code, refusal.message)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return _refused(request, error)
        if not response.prepared:
            for name, value in SECURITY_HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    def _judge(self, request: web.Request, headers: dict[bytes, bytes]) -> tuple[bool, AccessDenied | None]:
        """Whether the caller is on this machine, and why it is refused, if it is."""
        at = "" if request.transport is None else _host(request.transport.get_extra_info("sockname"))
        near = is_local(request.remote or "", headers)
        refusal = self._policy.refuse_page(headers, at)
        if refusal is None and not near:
            refusal = self._policy.refuse_host(headers, at)
            if refusal is None and request.match_info.handler not in (self._index, self._asset):
                refusal = self._policy.refuse_without_key(headers)
        return near, refusal

    def _told(self, request: web.Request) -> NodeStatus:
        """The status as this caller is told it."""
        status = self._status()
        if request[NEAR]:
            return status
        return for_onlookers(status, api=f"{_as_reached(status.api, request)}/v1", console=f"http://{request.host}")

    async def _index(self, request: web.Request) -> web.Response:
        api = self._status().api
        return self._page.index(api.removesuffix("/v1") if request[NEAR] else _as_reached(api, request))

    async def _asset(self, request: web.Request) -> web.Response:
        return self._page.asset(request.match_info["name"])

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(document())

    async def _status_once(self, request: web.Request) -> web.Response:
        return web.Response(text=self._told(request).model_dump_json(), content_type="application/json")

    async def _key(self, request: web.Request) -> web.Response:
        if (refused := _withheld(request, KEY_WORD, "The key")) is not None:
            return refused
        if not self._policy.key:
            return _error(409, "no_key", "No other machine may call this node: start it with --listen-all.")
        return web.json_response({"key": self._policy.key})

    async def _invitation(self, request: web.Request) -> web.Response:
        if (refused := _withheld(request, INVITE_WORD, "An invite")) is not None:
            return refused
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
        far = not request[NEAR]
        if self._viewers >= MAX_VIEWERS or (far and self._onlookers >= MAX_ONLOOKERS):
            return _error(503, "overloaded", "Too many viewers.")
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **SECURITY_HEADERS})
        self._viewers += 1
        self._onlookers += far
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                await self._tell(request, response)
        except TimeoutError:
            # It does not read; the end of the response would wait for it as well.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers -= 1
            self._onlookers -= far
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse) -> None:
        told = -1
        while not self._closing:
            if told != self._version:
                told = self._version
                text = f"event: status\nid: {told}\ndata: {self._told(request).model_dump_json()}\n\n"
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


class _Door(asyncio.Protocol):
    """A connection that has just been made, until it is known whose it is."""

    def __init__(self, let_in: Callable[[str], asyncio.Protocol | None]) -> None:
        self._let_in = let_in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand it on, or hang up."""
        handler = self._let_in(_peer_of(transport))
        if handler is None:
            cast("asyncio.Transport", transport).abort()  # uvloop has classes of its own
            return
        transport.set_protocol(handler)
        handler.connection_made(transport)


def _peer_of(transport: asyncio.BaseTransport | None) -> str:
    """The address at the other end."""
    return "" if transport is None else _host(transport.get_extra_info("peername"))


def _host(address: object) -> str:
    """The host in a socket's address."""
    return str(address[0]) if isinstance(address, tuple) and address else ""


def _as_reached(url: str, request: web.Request) -> str:
    """`url` of this machine, without its path, for who reaches it by the name that `request` used."""
    host = host_in({b"host": request.host.encode("latin-1")})
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{urlsplit(url).port}"


def _withheld(request: web.Request, word: str, what: str) -> web.Response | None:
    """Why a secret is not told, if it is not: `word` is to be in its header, `what` is how it is called.

    It is for programs of this machine that ask for exactly it; and for the console's page here, as the browser itself
    says and no other page can. Cookies tell nothing: those of any page of this machine, on whatever port, come along.
    """
    if not request[NEAR]:
        return _error(403, "read_only", f"{what} is told on this node's own machine only.")
    headers = request.headers
    ours = headers.get("sec-fetch-site") == "same-origin" and headers.get("origin") == f"http://{request.host}"
    if headers.get(SECRET_HEADER) == word and (ours or not any(name in headers for name in BROWSER_HEADERS)):
        return None
    words = f"{what} is given to programs that ask with '{SECRET_HEADER}: {word}', and to the console's own page only."
    return _error(403, "not_for_pages", words)


def _refused(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp refuses, as all our errors are."""
    match error.status:
        case 404:
            refusal = _error(404, "not_found", f"There is nothing at {request.path[:200]}.")
        case 405:
            refusal = _error(405, "method_not_allowed", f"{request.path[:200]} takes {error.headers['allow']} only.")
            refusal.headers["allow"] = error.headers["allow"]
        case _:
            refusal = _error(error.status, "invalid_request", f"{error.reason}.")
    return refusal


def _error(status: int, code: str, message: str) -> web.Response:
    error = {"error": {"code": code, "message": message}}
    return web.json_response(error, status=status, headers=SECURITY_HEADERS)
