"""One MCP client: its requests in progress, their cancellation, its subscriptions. Transports feed it with bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from meshllm.board import mcp_resources as resources
from meshllm.board.mcp import McpServer, McpSetting
from meshllm.board.mcp_protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    SUBSCRIPTION_KEY,
    TOO_MANY,
    Json,
    McpError,
    McpRequest,
    McpResponse,
    RequestId,
    check_envelope,
    decode,
    error_message,
    notification,
    result_message,
)
from meshllm.core.board.service import ALL_ROOMS, MAX_LISTED, FeedQuery
from meshllm.errors import MeshError
from meshllm.tasks import Owner

log = logging.getLogger(__name__)

# Requests in progress, open subscription streams among them, and resources that are subscribed to at once.
MAX_REQUESTS, MAX_STREAMS, MAX_SUBSCRIBED = 32, 8, 64
# One look at the board for subscribers; the pause after each, and after an error.
LOOK_SECONDS, PAUSE_SECONDS = 20.0, 0.5
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 30.0
ROOTS_ID = "mesh-roots"
LISTEN = "subscriptions/listen"

Send = Callable[[Json], None]


class McpConnection:
    """Answers a client's messages through `send`, which must not block.

    `room_of` makes a room of a directory: where the setting has none, the client is asked for its workspace (roots).
    `only_one`: the connection is one exchange over HTTP, without a way to send anything later.
    """

    def __init__(
        self,
        setting: McpSetting,
        send: Send,
        *,
        room_of: Callable[[str], str] | None = None,
        only_one: bool = False,
    ) -> None:
        self._send = send
        self._room_of = None if setting.room or only_one else room_of
        self._only_one = only_one
        self.server = McpServer(setting, can_subscribe=not only_one)
        self._owner = Owner("mcp", awaited=True)
        self._running: dict[RequestId, asyncio.Task[None]] = {}
        # Resources that a client of the older era subscribed to, and open streams of the newer one with theirs.
        self._subscribed: set[str] = set()
        self._streams: dict[RequestId, frozenset[str]] = {}
        self._watch: asyncio.Task[None] | None = None

    @property
    def busy(self) -> int:
        """Requests in progress, without the streams that end only with the client."""
        return len(self._running) - len(self._streams)

    async def idle(self, seconds: float) -> None:
        """Wait until no request is in progress but streams, `seconds` at most."""
        tasks = [task for number, task in self._running.items() if number not in self._streams]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def receive(self, data: bytes) -> None:
        """Take the bytes of one message."""
        try:
            self.take(decode(data))
        except McpError as error:
            self._send(error_message(error))

    def take(self, message: McpRequest | McpResponse) -> None:
        """Take a message. Raises McpError for a request that cannot be begun."""
        if isinstance(message, McpResponse):
            self._answered(message)
        elif message.id is None:
            self._notified(message)
        else:
            self._start(message, message.id)

    def refuse(self, error: McpError) -> None:
        """Answer a message that the transport refuses."""
        self._send(error_message(error))

    async def close(self) -> None:
        """End all requests. Open streams get their last message."""
        for number in self._streams:
            self._send(result_message(number, self.server.complete({"_meta": {SUBSCRIPTION_KEY: number}})))
        self._streams.clear()
        await self._owner.close()

    # -- messages

    def _start(self, request: McpRequest, number: RequestId) -> None:
        if number in self._running:
            raise McpError(INVALID_REQUEST, "A request with this id is in progress.")
        if self.busy >= MAX_REQUESTS:
            raise McpError(TOO_MANY, f"{MAX_REQUESTS} requests are in progress. Wait for their answers.", id=number)
        if request.method == LISTEN and request.stateless:
            check_envelope(request)
            uris = _wanted(request)
            if len(self._streams) >= MAX_STREAMS:
                raise McpError(TOO_MANY, f"{MAX_STREAMS} subscription streams are open.", id=number)
            self._streams[number] = uris
        task = self._owner.start(self._run(request, number), request.method[:40])
        self._running[number] = task
        task.add_done_callback(lambda _: self._ended(number))

    def _ended(self, number: RequestId) -> None:
        self._running.pop(number, None)
        self._streams.pop(number, None)

    async def _run(self, request: McpRequest, number: RequestId) -> None:
        try:
            if number in self._streams:
                await self._listen(number)
                return
            if not request.stateless and request.method in ("resources/subscribe", "resources/unsubscribe"):
                result = self._subscribe(request)
            else:
                token = request.meta.get("progressToken")
                result = await self.server.answer(request, lambda done, total: self._progress(token, done, total))
            self._send(result_message(number, result))
        except McpError as error:
            self._send(error_message(error, number))
        except Exception:
            log.exception("the MCP request %s failed", request.method[:40])
            self._send(
                error_message(McpError(INTERNAL_ERROR, "This is a defect of mesh-llm; please report it."), number)
            )

    def _progress(self, token: object, done: float, total: float) -> None:
        if isinstance(token, int | str) and not isinstance(token, bool):
            params = {"progressToken": token, "progress": round(done, 1), "total": total}
            self._send(notification("notifications/progress", params))

    def _notified(self, message: McpRequest) -> None:
        match message.method:
            case "notifications/cancelled":
                number = message.params.get("requestId")
                if isinstance(number, int | str) and number in self._running:
                    self._running[number].cancel()
            case "notifications/initialized" | "notifications/roots/list_changed":
                if self._room_of is not None and isinstance(self.server.client_capabilities.get("roots"), dict):
                    self._send({"jsonrpc": "2.0", "id": ROOTS_ID, "method": "roots/list"})
            case _:
                pass  # unknown notifications are ignored, as JSON-RPC wants it

    def _answered(self, message: McpResponse) -> None:
        """The client's workspace: its first folder names the room."""
        if message.id != ROOTS_ID or self._room_of is None or message.result is None:
            return
        roots = message.result.get("roots")
        first = roots[0] if isinstance(roots, list) and roots else None
        uri = first.get("uri") if isinstance(first, dict) else None
        if isinstance(uri, str) and uri.startswith("file://") and len(uri) <= resources.MAX_URI * 8:
            try:
                self.server.context.room = self._room_of(unquote(urlsplit(uri).path))
            except (OSError, ValueError, MeshError) as error:
                log.info("the client's workspace has no room: %s", error)

    # -- subscriptions

    def _subscribe(self, request: McpRequest) -> Json:
        if self._only_one:
            raise McpError(
                INVALID_REQUEST,
                "Nothing can be sent later over HTTP: use stdio, or subscriptions/listen of 2026-07-28.",
            )
        uri = request.params.get("uri")
        resources.target_of(uri)
        if request.method.endswith("unsubscribe"):
            self._subscribed.discard(str(uri))
            return {}
        if len(self._subscribed | {uri}) > MAX_SUBSCRIBED:
            raise McpError(TOO_MANY, f"{MAX_SUBSCRIBED} resources are subscribed to: unsubscribe from one first.")
        self._subscribed.add(str(uri))
        self._begin_watch()
        return {}

    async def _listen(self, number: RequestId) -> None:
        uris = sorted(self._streams[number])
        params = {"notifications": {"resourceSubscriptions": uris} if uris else {}}
        self._send(notification("notifications/subscriptions/acknowledged", _tagged(number, params)))
        self._begin_watch()
        await asyncio.get_running_loop().create_future()  # until it is cancelled

    def _begin_watch(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = self._owner.start(self._watching(), "watch the board")

    async def _watching(self) -> None:
        """Tell subscribers what changed, as long as there are any."""
        board, retry, cursor, claims = self.server.context.board, FIRST_RETRY_SECONDS, "", None
        failed = False
        while wanted := self._wanted():
            try:
                if not cursor:
                    cursor = (await board.feed(FeedQuery(limit=1))).cursor
                    claims = await board.claims(ALL_ROOMS)
                    if failed:  # what changed meanwhile is unknown
                        self._changed(wanted)
                    failed, retry = False, FIRST_RETRY_SECONDS
                page = await board.feed(FeedQuery(after=cursor, wait_seconds=LOOK_SECONDS, limit=MAX_LISTED))
                cursor, before = page.cursor, claims
                claims = await board.claims(ALL_ROOMS)
                changed = {
                    uri for uri in wanted - {resources.CLAIMS} if page.more or resources.concerns(uri, page.posts)
                }
                self._changed(changed | ({resources.CLAIMS} if claims != before else set()))
                await asyncio.sleep(PAUSE_SECONDS)
            except MeshError as error:
                log.info("subscribers wait for the blackboard: %s", error)
                failed, cursor = True, ""
                await asyncio.sleep(retry)
                retry = min(LAST_RETRY_SECONDS, retry * 2)

    def _wanted(self) -> set[str]:
        return self._subscribed.union(*self._streams.values())

    def _changed(self, uris: set[str]) -> None:
        for uri in sorted(uris):
            if uri in self._subscribed:
                self._send(notification("notifications/resources/updated", {"uri": uri}))
            for number, of_stream in self._streams.items():
                if uri in of_stream:
                    self._send(notification("notifications/resources/updated", _tagged(number, {"uri": uri})))


def _tagged(number: RequestId, params: Json) -> Json:
    return {**params, "_meta": {SUBSCRIPTION_KEY: number}}


def _wanted(request: McpRequest) -> frozenset[str]:
    """The resources that a stream is about; what this server does not have is left out. Raises McpError."""
    wanted: Any = request.params.get("notifications")
    if not isinstance(wanted, dict):
        raise McpError(INVALID_PARAMS, '"notifications" must be an object.', id=request.id)
    uris = wanted.get("resourceSubscriptions") or []
    if not isinstance(uris, list) or len(uris) > MAX_SUBSCRIBED:
        message = f'"resourceSubscriptions" must be a list of up to {MAX_SUBSCRIBED} URIs.'
        raise McpError(INVALID_PARAMS, message, id=request.id)
    return frozenset(uri for uri in uris if _is_resource(uri))


def _is_resource(uri: object) -> bool:
    try:
        resources.target_of(uri)
    except McpError:
        return False
    return True
