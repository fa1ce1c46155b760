"""The handlers of the console: the page, the status, the last requests, and the owner's acts (invite, key, download).

Invariants: only the owner may act and sees the whole status: a caller on this machine that sends the token of this run.
A caller on this machine without it gets the page and the redacted status; so does one on another machine or behind a
proxy with the API key, and without the key the page's files alone. A viewer that does not read is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import urlsplit
from weakref import WeakSet

from aiohttp import web

from meshllm.core.board.service import Blackboard
from meshllm.errors import MeshError
from meshllm.web.console import endpoints
from meshllm.web.console.attaching import AttachHandler
from meshllm.web.console.board import BoardHandlers
from meshllm.web.console.downloads import Download, DownloadHandler
from meshllm.web.console.endpoints import TOKEN_HEADER, ConsoleRoute, Handler, InviteAnswer, InviteOptions, KeyAnswer
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.mcp import McpExchange, McpHandler
from meshllm.web.console.members import MemberHandlers, Members
from meshllm.web.console.model_acts import ModelActs, ModelHandlers
from meshllm.web.console.openapi import document
from meshllm.web.console.page_files import PageFiles
from meshllm.web.console.redaction import Audience, redacted
from meshllm.web.console.request_status import requests_answer
from meshllm.web.console.responses import SECURITY_HEADERS, error_response, http_error_response
from meshllm.web.console.status import NodeStatus
from meshllm.web.console.status_cache import AudienceUrls, StatusCache, dumped
from meshllm.web.gateway.request_log import RequestSummary
from meshllm.web.http.access_control import AccessDenied, AccessPolicy, host_in, is_local

# Shortest time between two events to a viewer; and the longest, so that both sides notice a broken connection.
MIN_INTERVAL_SECONDS = 0.1
HEARTBEAT_SECONDS = 15.0
WRITE_SECONDS = 30.0
MAX_VIEWERS = 64
# Viewers that are not the owner, so that they cannot use up all places.
MAX_FOREIGN_VIEWERS = 32
# An idle connection is closed after this.
IDLE_SECONDS = 75.0
# Longest body of a request: a message of 4,096 bytes whose characters are all escaped (six for a byte) and the rest.
MAX_BODY_BYTES = 32 << 10
# Headers that browsers add to requests of web pages.
BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode", "cookie")
# Longest lifetime of an invite: 30 days. Longest membership: ten years.
MAX_EXPIRY_SECONDS = 30 * 86_400
MAX_MEMBER_DAYS = 3650
NEAR = web.RequestKey("near", bool)
OWNER = web.RequestKey("owner", bool)


@dataclass(frozen=True, slots=True)
class ConsoleSources:
    """Where the handlers get their answers from. The fields are the parameters of `Console`."""

    status: Callable[[], NodeStatus]
    invite: Callable[[InviteWish], Awaitable[Invitation]]
    page: PageFiles | None
    requests: Callable[[], Iterable[RequestSummary]]
    download: Download | None
    routes: Sequence[ConsoleRoute]
    token: str
    audit: Callable[[str, Mapping[str, str]], None]
    members: Callable[[], Members]
    models: Callable[[], ModelActs]
    attach: Callable[[], AbstractContextManager[None]]
    board: Callable[[], Blackboard]
    mcp: McpExchange | None = None


class ConsoleHandlers:
    """Answers the requests of the connections that `protocol` is used for."""

    def __init__(self, policy: AccessPolicy, sources: ConsoleSources) -> None:
        self._policy = policy
        self._status = sources.status
        self._token = sources.token.encode()
        self._audit = sources.audit
        self._invite = sources.invite
        self._requests = sources.requests
        self._page = sources.page or PageFiles()
        self._downloads = DownloadHandler(sources.download) if sources.download is not None else None
        self._change = asyncio.Event()
        self._version = 0
        # Set with each change of the status or the blackboard.
        self._any_change = asyncio.Event()
        self._board_version, self._board_cursor = 0, ""
        self._cache = StatusCache(sources.status, lambda: asyncio.get_running_loop().time())
        self._viewers = self._foreign_viewers = 0
        self._closing = False
        self._open_to_all: set[Handler] = set()
        # The connections that have sent a request.
        self.asked = WeakSet[asyncio.BaseTransport]()
        self._owner_only: set[Handler] = set()
        self._owner_or_key: set[Handler] = set()
        app = web.Application(middlewares=[self._check], client_max_size=MAX_BODY_BYTES)
        members = MemberHandlers(sources.members)
        models = ModelHandlers(sources.models)
        attaching = AttachHandler(sources.attach)
        self._board = BoardHandlers(sources.board, lambda request: request[OWNER])
        more = (*members.routes(), *models.routes(), *attaching.routes(), *self._board.routes(), *self._mcp(sources))
        for route in (*self._routes(), *more, *sources.routes):
            app.router.add_route(route.endpoint.method, route.endpoint.path, route.handler)
            if route.endpoint.method == "GET":
                app.router.add_route("HEAD", route.endpoint.path, route.handler)
            if route.endpoint.open_to_all:
                self._open_to_all.add(route.handler)
            if route.endpoint.owner_only:
                self._owner_only.add(route.handler)
            if route.endpoint.owner_or_key:
                self._owner_or_key.add(route.handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=IDLE_SECONDS)

    def _routes(self) -> tuple[ConsoleRoute, ...]:
        return (
            ConsoleRoute(endpoints.INDEX, self._index),
            ConsoleRoute(endpoints.ASSET, self._asset),
            ConsoleRoute(endpoints.OPENAPI, self._openapi),
            ConsoleRoute(endpoints.STATUS, self._status_once),
            ConsoleRoute(endpoints.EVENTS, self._events),
            ConsoleRoute(endpoints.REQUESTS, self._last_requests),
            ConsoleRoute(endpoints.INVITE, self._new_invite),
            ConsoleRoute(endpoints.KEY, self._key),
            ConsoleRoute(endpoints.DOWNLOADS, self._download),
        )

    def _mcp(self, sources: ConsoleSources) -> tuple[ConsoleRoute, ...]:
        if sources.mcp is None:
            return ()
        return McpHandler(self._policy, sources.mcp, lambda request: (request[NEAR], request[OWNER])).routes()

    async def start(self) -> None:
        """Prepare for connections."""
        await self._runner.setup()

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        server = self._runner.server
        assert server is not None, "not started"
        return server()

    def transports(self) -> tuple[asyncio.BaseTransport | None, ...]:
        """The transports of the open connections."""
        server = self._runner.server
        return () if server is None else tuple(connection.transport for connection in server.connections)

    @property
    def viewers(self) -> int:
        """Number of open event streams."""
        return self._viewers

    def changed(self) -> None:
        """The status has changed: send it to all viewers."""
        self._version += 1
        event, self._change = self._change, asyncio.Event()
        event.set()
        self._wake_readers()

    def board_changed(self, cursor: str) -> None:
        """The blackboard has changed: tell all viewers that may read it. `cursor`: that of its last page."""
        self._board_version += 1
        self._board_cursor = cursor
        self._wake_readers()

    def _wake_readers(self) -> None:
        event, self._any_change = self._any_change, asyncio.Event()
        event.set()

    async def close(self) -> None:
        """End all event streams and close the connections."""
        self._closing = True
        self._board.close()
        self.changed()
        await self._runner.cleanup()

    @web.middleware
    async def _check(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.transport is not None:
            self.asked.add(request.transport)
        headers = {
            # Bytes that are not UTF-8 stay as they are.
            name.lower().encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
            for name, value in request.headers.items()
        }
        request[NEAR], request[OWNER], denied = self._access(request, headers)
        if denied is not None:
            return error_response(denied.status, denied.code, denied.message)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return http_error_response(request, error)
        if not response.prepared:
            for name, value in SECURITY_HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    def _access(self, request: web.Request, headers: dict[bytes, bytes]) -> tuple[bool, bool, AccessDenied | None]:
        """Whether the caller is on this machine, whether it is the owner, and why it is denied, if it is."""
        at = "" if request.transport is None else _host(request.transport.get_extra_info("sockname"))
        near = is_local(request.remote or "", headers)
        denied = self._policy.refuse_page(headers, at)
        if denied is None and not near:
            denied = self._policy.refuse_host(headers, at)
            if denied is None and request.match_info.handler not in self._open_to_all:
                denied = self._policy.refuse_without_key(headers, request.remote or "")
        owner = near and self._has_token(headers)
        if denied is None and request.match_info.handler in self._owner_only:
            denied = _refuse_act(request, near=near, owner=owner)
        if denied is None and near and request.match_info.handler in self._owner_or_key:
            denied = _refuse_reader(request, owner=owner)
        return near, owner, denied

    def _has_token(self, headers: dict[bytes, bytes]) -> bool:
        sent = headers.get(TOKEN_HEADER.encode(), b"")
        right = bool(self._token) and hmac.compare_digest(sent, self._token)
        if sent and not right:
            self._audit("console_token_refused", {})
        return right

    def _audience(self, request: web.Request, api: str) -> AudienceUrls | None:
        """For whom the status is redacted; None: not redacted, the caller is the owner."""
        if request[OWNER]:
            return None
        return AudienceUrls(f"{_as_reached(api, request)}/v1", f"http://{request.host}")

    async def _index(self, request: web.Request) -> web.Response:
        api = self._status().api
        return self._page.index(api.removesuffix("/v1") if request[NEAR] else _as_reached(api, request))

    async def _asset(self, request: web.Request) -> web.Response:
        return self._page.asset(request.match_info["name"])

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(document())

    async def _status_once(self, request: web.Request) -> web.Response:
        status = self._status()
        return _json_text(dumped(status, self._audience(request, status.api)))

    async def _last_requests(self, request: web.Request) -> web.Response:
        answer = requests_answer(self._requests())
        if not request[OWNER]:
            answer = redacted(answer, Audience("", ""))
        return _json_text(answer.model_dump_json())

    async def _key(self, request: web.Request) -> web.Response:
        if not self._policy.key:
            message = (
                "This node has no API key because it accepts callers on this machine only. Start it with --listen-all."
            )
            return error_response(409, "no_key", message)
        self._audit("api_key_shown", {})
        return _json_text(KeyAnswer(key=self._policy.key).model_dump_json())

    async def _download(self, request: web.Request) -> web.StreamResponse:
        if self._downloads is None:
            return error_response(404, "not_found", "This node does not download models for other programs.")
        answer = await self._downloads.handle(request, SECURITY_HEADERS)
        return error_response(400, "invalid_request", answer) if isinstance(answer, str) else answer

    async def _new_invite(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.read() or b"{}")
            wish = InviteOptions.model_validate(body, strict=True)
            seconds = wish.expires or 0
            if isinstance(body.get("expires"), bool) or not 0 <= seconds <= MAX_EXPIRY_SECONDS:
                raise ValueError(seconds)
            if not 0 <= wish.days <= MAX_MEMBER_DAYS:
                raise ValueError(wish.days)
        except (ValueError, TypeError, AttributeError, RecursionError):
            message = (
                f'The body must be {{"expires": SECONDS}} with 0 (a day) to {MAX_EXPIRY_SECONDS}, and may have '
                '"rights" (names), "once", "days" and "label".'
            )
            return error_response(400, "invalid_request", message)
        try:
            made = await self._invite(InviteWish(float(seconds), tuple(wish.rights), wish.once, wish.days, wish.label))
        except MeshError as error:
            return error_response(409, error.code, str(error))
        answer = InviteAnswer(invite=made.text, expires=made.expires, serial=made.serial, rights=list(made.rights))
        return _json_text(answer.model_dump_json())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        foreign = not request[OWNER]
        if self._viewers >= MAX_VIEWERS or (foreign and self._foreign_viewers >= MAX_FOREIGN_VIEWERS):
            return error_response(503, "overloaded", "Too many open event streams. Retry later.")
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **SECURITY_HEADERS})
        self._viewers += 1
        self._foreign_viewers += foreign
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                await self._send_events(request, response)
        except TimeoutError:
            # The viewer does not read; ending the response would wait for it as well.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers -= 1
            self._foreign_viewers -= foreign
        return response

    async def _send_events(self, request: web.Request, response: web.StreamResponse) -> None:
        audience = self._audience(request, self._status().api) if not request[OWNER] else None
        reads_board = request[OWNER] or not request[NEAR]
        sent, told = -1, self._board_version
        while not self._closing:
            text = ""
            if sent != self._version:
                sent = self._version
                text = f"event: status\nid: {sent}\ndata: {self._cache.text(sent, audience)}\n\n"
            if reads_board and told != self._board_version:
                told = self._board_version
                text += f"event: blackboard\ndata: {json.dumps({'cursor': self._board_cursor})}\n\n"
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write((text or ": still here\n\n").encode())
            # Read before the pause, so that a change during the pause is not missed.
            change = self._any_change if reads_board else self._change
            await asyncio.sleep(MIN_INTERVAL_SECONDS)
            if sent == self._version and not (reads_board and told != self._board_version):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await change.wait()


def _host(address: object) -> str:
    """The host in a socket's address."""
    return str(address[0]) if isinstance(address, tuple) and address else ""


def _as_reached(url: str, request: web.Request) -> str:
    """`url` without its path, with the host name that the caller used."""
    host = host_in({b"host": request.host.encode("latin-1")})
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{urlsplit(url).port}"


def _json_text(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


TOKEN_REQUIRED = AccessDenied(
    403,
    "token_required",
    "This needs the token of the node's run. Use the mesh-llm command as the user who runs the node, with its "
    "MESH_LLM_HOME, or open the page with 'mesh-llm console'.",
)
NOT_FOR_PAGES = AccessDenied(403, "not_for_pages", "This is not available to web pages other than the console's own.")


def _refuse_act(request: web.Request, *, near: bool, owner: bool) -> AccessDenied | None:
    """Why an owner's act is denied, or None.

    Beside the token, a browser must say with Sec-Fetch-Site and Origin that the console's own page asks. Cookies prove
    nothing: pages on other ports of this machine send them as well.
    """
    if not near:
        return AccessDenied(403, "read_only", "This is available on the node's own machine only.")
    if not owner:
        return TOKEN_REQUIRED
    headers = request.headers
    own_page = headers.get("sec-fetch-site") == "same-origin" and headers.get("origin") == f"http://{request.host}"
    return None if own_page or not _is_browser(request) else NOT_FOR_PAGES


def _refuse_reader(request: web.Request, *, owner: bool) -> AccessDenied | None:
    """Why reading is denied to a caller on this machine, or None. Browsers send no Origin when a page reads from its
    own server."""
    if not owner:
        return TOKEN_REQUIRED
    headers = request.headers
    own_page = headers.get("sec-fetch-site") == "same-origin" and headers.get("origin") in (
        None,
        f"http://{request.host}",
    )
    return None if own_page or not _is_browser(request) else NOT_FOR_PAGES


def _is_browser(request: web.Request) -> bool:
    return any(name in request.headers for name in BROWSER_HEADERS)
