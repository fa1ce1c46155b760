"""The door by which peers come in: their HTTP tunnels end here, in our gateway, never raw at an engine.

Law: a peer may POST to the model routes, and nothing else; it is answered by what this node itself serves, so that no
request makes a second hop; and what one peer does costs that peer. Its requests at work, its connections and the memory
of its bodies are bounded by themselves, and its waiting requests leave room for this node's own callers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import orjson

from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.routes import Target
from meshllm.web.gateway.api_request import ApiRequest, api_of, problem_of
from meshllm.web.gateway.hall import RequestHost
from meshllm.web.gateway.metrics import Metrics
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_table import Found, TargetTable
from meshllm.web.http.client import UpstreamPool
from meshllm.web.http.parser import BodyBudget, Request
from meshllm.web.http.server import Connection, ConnectionSet
from meshllm.wire.api.errors import error_body
from meshllm.wire.api.routes import Api, find_route

log = logging.getLogger(__name__)

# Requests of one peer at work or waiting at a time: more than an engine has slots, too few to crowd out others.
MAX_PEER_REQUESTS = 64
# Its gateway keeps up to 64 idle connections (`upstream.MAX_IDLE`) beside those at work.
MAX_PEER_CONNECTIONS = 192
# Bodies being received or worked on: of one peer, and of all peers together; our own callers' are counted apart.
MAX_PEER_BODIES_BYTES = 128 << 20
MAX_ALL_BODIES_BYTES = 512 << 20


class PeerGateway(RequestHost, Protocol):
    """What the door needs of the gateway."""

    @property
    def metrics(self) -> Metrics:
        """What is counted."""

    def date(self) -> bytes:
        """The Date header's value."""


class PeerEndpoint:
    """One peer's: answers its connections, and is the hall of its exchanges."""

    def __init__(
        self, peer: str, house: PeerGateway, desks: TargetTable, connections: Callable[[PeerEndpoint], ConnectionSet]
    ) -> None:
        self.peer = peer
        self._house = house
        self._desks = desks
        self.connections = connections(self)
        self.active = 0
        self.now = house.now

    # -- answering

    def date(self) -> bytes:
        """The Date header's value."""
        return self._house.date()

    def on_rejected(self, connection: Connection, path: str, status: int, message: str) -> None:
        """Answer what never became a request."""
        self._error(connection, api_of(path), status, "bad_request", message)

    def on_request(self, connection: Connection, request: Request) -> ProxiedRequest | None:
        """Answer `request`, or begin to."""
        route = find_route(request.path)
        # The canonical paths alone: that is what gateways ask, and nothing here depends on how else one may spell them.
        if route is None or route.api is Api.MODELS or request.path != route.path or request.method != route.method:
            log.info("refused %s %s of peer %s", request.method[:20], request.path[:200], self.peer[:10])
            message = "Peers may POST to the model routes, and nothing else."
            self._error(connection, api_of(request.path), 403, "path_not_allowed", message)
            return None
        api = route.api
        if self.active >= MAX_PEER_REQUESTS:
            message = f"This node works on {MAX_PEER_REQUESTS} requests of one peer at a time."
            self._error(connection, api, 429, "overloaded", message, "retry-after: 1\r\n")
            return None
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            self._error(connection, api, 400, "invalid_json", f"The body is not JSON: {error}.")
            return None
        if (problem := problem_of(body)) is not None:
            parameter, message = problem
            self._error(connection, api, 400, "invalid_parameter", message, parameter=parameter)
            return None
        self.active += 1
        inquiry = ApiRequest(api, route.path, body, request.body, request.headers)
        exchange = ProxiedRequest(self, connection, inquiry, "", guest=True)
        exchange.start()
        return exchange

    def _error(
        self,
        connection: Connection,
        api: Api,
        status: int,
        code: str,
        message: str,
        headers: str = "",
        parameter: str | None = None,
    ) -> None:
        self._house.metrics.count_guest("unknown", "refused")
        body = error_body(api, status, code, message, param=parameter)
        connection.send(status, "application/json", orjson.dumps(body), headers)

    # -- what exchanges need

    def wall(self) -> int:
        """Seconds since the epoch."""
        return self._house.wall()

    @property
    def stickiness(self) -> SessionAffinity:
        """Who answered for which conversation."""
        return self._desks.stickiness

    def find(self, model: str) -> Found:
        """What this node itself answers with."""
        return self._desks.find_here(model)

    def failed(self, desk: TargetQueue, now: float) -> None:
        """A request failed there."""
        self._house.failed(desk, now)

    def key_for(self, target: Target) -> str | None:
        """The key that a backend wants of us."""
        return self._house.key_for(target)

    def connect(self, exchange: ProxiedRequest, pool: UpstreamPool) -> None:
        """Make a connection for `exchange`."""
        self._house.connect(exchange, pool)

    def waits(self, exchange: ProxiedRequest, waiting: bool) -> None:
        """`exchange` wants to hear of changes, or no longer."""
        self._house.waits(exchange, waiting)

    def ended(self, exchange: ProxiedRequest) -> None:
        """Count an exchange that is over."""
        self.active -= 1
        model = exchange.model if self._desks.is_known(exchange.model) else "unknown"
        self._house.metrics.count_guest(model, exchange.outcome)


class _ClosedEndpoint(asyncio.Protocol):
    """For whoever comes when the door is shut."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not from here: uvloop has not finished making it.
        asyncio.get_running_loop().call_soon(transport.close)


class PeerEndpoints:
    """The entrances of all peers."""

    def __init__(
        self, house: PeerGateway, desks: TargetTable, wake: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """`wake` is called when there is somebody for `sweep` to look after."""
        self._house = house
        self._desks = desks
        self._wake = wake
        self._loop = loop
        self._bodies = BodyBudget(limit=MAX_ALL_BODIES_BYTES)
        self._entrances: dict[str, PeerEndpoint] = {}
        # Those with connections: one may come a while after its entrance was asked for, and must be looked after too.
        self._busy: dict[PeerEndpoint, None] = {}
        self._shut = False

    def open(self, peer: str) -> asyncio.Protocol:
        """The protocol for a stream of `peer`."""
        if self._shut:
            return _ClosedEndpoint()
        entrance = self._entrances.get(peer)
        if entrance is None:
            entrance = self._entrances[peer] = PeerEndpoint(peer, self._house, self._desks, self._connections)
        return Connection(entrance, entrance.connections, self._loop)

    def _connections(self, entrance: PeerEndpoint) -> ConnectionSet:
        def wake() -> None:
            self._busy[entrance] = None
            self._wake()

        bodies = BodyBudget(limit=MAX_PEER_BODIES_BYTES, parent=self._bodies)
        return ConnectionSet(wake, bodies, MAX_PEER_CONNECTIONS)

    def sweep(self, now: float) -> bool:
        """Enforce the time limits; whether there is anybody."""
        for entrance in list(self._busy):
            entrance.connections.sweep(now)
            if not entrance.connections.live:
                del self._busy[entrance]
                if self._entrances.get(entrance.peer) is entrance:
                    del self._entrances[entrance.peer]
        return bool(self._busy)

    def shut(self, *others: ConnectionSet) -> list[ConnectionSet]:
        """Let nobody in any more; the sets of all connections that are there, and `others`."""
        self._shut = True
        return [*others, *(entrance.connections for entrance in self._busy)]
