"""The console server on port 3131: accepts connections and passes them to the handlers.

The handlers and aiohttp take 13 MB and 0.3 s of CPU, and most nodes never show their page: the first connection loads
them, in a thread. What it sends until then is kept.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from meshllm.errors import BoardOff, EnvironmentFailure, port_taken
from meshllm.tasks import Owner
from meshllm.util.threads import StopSignal, in_thread
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.model_acts import ModelActs, no_models
from meshllm.web.gateway.request_log import RequestSummary
from meshllm.web.http.access_control import AccessPolicy, is_loopback, network_of

if TYPE_CHECKING:
    from meshllm.core.board.service import Blackboard
    from meshllm.web.console.downloads import Download
    from meshllm.web.console.endpoints import ConsoleRoute
    from meshllm.web.console.handlers import ConsoleHandlers, ConsoleSources
    from meshllm.web.console.mcp import McpExchange
    from meshllm.web.console.members import Members
    from meshllm.web.console.page_files import PageFiles
    from meshllm.web.console.status import NodeStatus

log = logging.getLogger(__name__)

# Connections from other machines, and from one address of them, so that they cannot use up all places.
MAX_REMOTE_CONNECTIONS = 128
MAX_ADDRESS_CONNECTIONS = 32
# A connection from another machine without a whole request after so many seconds is closed.
FIRST_REQUEST_SECONDS = 10.0
LISTEN_BACKLOG = 128
# A connection that sends more while the handlers are loaded is closed.
MAX_EARLY_BYTES = 256 << 10


async def no_invite(wish: InviteWish) -> Invitation:
    """Always raises EnvironmentFailure: the node has no mesh."""
    raise EnvironmentFailure("This node has no mesh to invite to.")


def no_members() -> Members:
    """Always raises EnvironmentFailure: the node has no mesh."""
    raise EnvironmentFailure("This node has no mesh.")


def no_board() -> Blackboard:
    """Always raises BoardOff: the node has no blackboard."""
    raise BoardOff("This node has no blackboard.")


class Console:
    """Serves the page and the console API.

    `status` returns the status now; `changed` must be called whenever it changes. `invite` makes an invite
    as wished, or raises MeshError; `members` and `models` do the owner's other acts. `requests` returns the
    last API requests, the newest first. `download` downloads models for the command line (None: refused). `routes` are
    additional endpoints.
    `attach` is entered while a launcher of an agent is attached. `board` returns the blackboard; `board_changed` must
    be called whenever it changes. `mcp` answers messages of the Model Context Protocol (None: there is none).
    `token` is that of this run: a caller that sends it is the owner (empty: no caller is). `audit` records an event.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        status: Callable[[], NodeStatus],
        invite: Callable[[InviteWish], Awaitable[Invitation]] = no_invite,
        page: PageFiles | None = None,
        requests: Callable[[], Iterable[RequestSummary]] = tuple,
        download: Download | None = None,
        routes: Sequence[ConsoleRoute] = (),
        token: str = "",
        audit: Callable[[str, Mapping[str, str]], None] = lambda event, fields: None,
        members: Callable[[], Members] = no_members,
        models: Callable[[], ModelActs] = no_models,
        attach: Callable[[], AbstractContextManager[None]] = nullcontext,
        board: Callable[[], Blackboard] = no_board,
        mcp: McpExchange | None = None,
    ) -> None:
        self._policy = policy

        def sources(make: type[ConsoleSources]) -> ConsoleSources:
            return make(
                status, invite, page, requests, download, routes, token, audit, members, models, attach, board, mcp
            )

        self._sources = sources
        self._handlers: ConsoleHandlers | None = None
        self._owner = Owner("console")
        self._loading = False
        self._early: set[_EarlyConnection] = set()
        self._closing = False
        self._servers: list[asyncio.Server] = []

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        """Listen; returns the port. Raises PortTaken."""
        loop = asyncio.get_running_loop()
        for host in hosts:
            try:
                server = await loop.create_server(lambda: _EarlyConnection(self), host, port, backlog=LISTEN_BACKLOG)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and self._servers:
                    continue  # no IPv6 here
                await self.close()
                raise port_taken(error, host, port, "--console") from error
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
        self._policy = replace(self._policy, page_port=port)
        return port

    @property
    def viewers(self) -> int:
        """Number of open event streams."""
        return 0 if self._handlers is None else self._handlers.viewers

    def transports(self) -> tuple[asyncio.BaseTransport | None, ...]:
        """The transports of the open connections."""
        early = (connection.transport for connection in self._early)
        return (*early, *(() if self._handlers is None else self._handlers.transports()))

    def changed(self) -> None:
        """The status has changed: send it to all viewers."""
        if self._handlers is not None:
            self._handlers.changed()

    def board_changed(self, cursor: str) -> None:
        """The blackboard has changed: tell the viewers that may read it. `cursor`: that of its last page."""
        if self._handlers is not None:
            self._handlers.board_changed(cursor)

    async def close(self) -> None:
        """End all event streams and stop listening."""
        self._closing = True
        for server in self._servers:
            server.close()
        await self._owner.close()
        self._abort_early()
        if self._handlers is not None:
            await self._handlers.close()

    def _connected(self, connection: _EarlyConnection) -> None:
        """Serve a new connection; abort it if there are too many, or if the server is closing."""
        peer = _peer_of(connection.transport)
        if self._closing or (not is_loopback(peer) and not self._has_room(peer)):
            connection.transport.abort()
            return
        if not is_loopback(peer):
            asyncio.get_running_loop().call_later(FIRST_REQUEST_SECONDS, self._end_mute, connection.transport)
        if self._handlers is not None:
            connection.hand_over(self._handlers.protocol())
            return
        self._early.add(connection)
        if not self._loading:
            self._loading = True
            self._owner.start(self._load(), "load the handlers")

    def _has_room(self, peer: str) -> bool:
        """Whether one more connection from another machine is accepted."""
        peers = [other for other in map(_peer_of, self.transports()) if not is_loopback(other)]
        network = network_of(peer)
        of_address = sum(1 for other in peers if network_of(other) == network)
        return len(peers) < MAX_REMOTE_CONNECTIONS and of_address < MAX_ADDRESS_CONNECTIONS

    def _end_mute(self, transport: asyncio.Transport) -> None:
        if self._handlers is None or transport not in self._handlers.asked:
            transport.abort()

    async def _load(self) -> None:
        """Load the handlers and pass the early connections to them."""
        try:
            handlers_type, sources_type = await in_thread(_import_handlers, "load the console")
            handlers = handlers_type(self._policy, self._sources(sources_type))
            await handlers.start()
        except Exception:
            log.exception("the console cannot answer: its code cannot be loaded")
            self._abort_early()
            self._loading = False  # the next connection tries again
            return
        self._handlers = handlers
        for connection in tuple(self._early):
            connection.hand_over(handlers.protocol())
        self._early.clear()

    def _abort_early(self) -> None:
        for connection in tuple(self._early):
            connection.transport.abort()
        self._early.clear()

    def _disconnected(self, connection: _EarlyConnection) -> None:
        self._early.discard(connection)


def _import_handlers(stop: StopSignal) -> tuple[type[ConsoleHandlers], type[ConsoleSources]]:
    """The handlers' classes, imported. Slow, and blocks."""
    from meshllm.web.console.handlers import ConsoleHandlers, ConsoleSources
    from meshllm.web.console.status_model import StatusModel

    for model in StatusModel.__subclasses__():
        model.model_rebuild()  # makes the validators here, not on the event loop at the first request
    return ConsoleHandlers, ConsoleSources


class _EarlyConnection(asyncio.Protocol):
    """A new connection, until a handler takes it."""

    transport: asyncio.Transport

    def __init__(self, console: Console) -> None:
        self._console = console
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register at the console."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._console._connected(self)

    def data_received(self, data: bytes) -> None:
        """Keep what arrives before there is a handler."""
        self._received += data
        if len(self._received) > MAX_EARLY_BYTES:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Leave the console."""
        self._console._disconnected(self)

    def hand_over(self, handler: asyncio.Protocol) -> None:
        """Let `handler` serve the connection from now on."""
        if self.transport.is_closing():
            return
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        if self._received:
            handler.data_received(bytes(self._received))
            self._received.clear()


def _peer_of(transport: asyncio.BaseTransport | None) -> str:
    """The address at the other end."""
    address = None if transport is None else transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) and address else ""
