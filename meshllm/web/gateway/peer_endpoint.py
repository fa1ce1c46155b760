"""The HTTP endpoint for peers: their tunnels end here, in the gateway, never directly at an engine.

A peer may POST to the model routes and nothing else. Only targets of this node answer, so no request makes a second
hop. A member without the right to use models gets an error that says so. Each peer's active requests, connections and
body memory are bounded, and its waiting requests leave part of a queue to this node's own callers. Guests have less of
everything, a rate of requests, and a share of the memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from meshllm.util.rate_limiter import TokenBucket
from meshllm.web.gateway.api_request import api_label, api_of
from meshllm.web.gateway.proxy import Proxy
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_log import MAX_TEXT, RequestTrace
from meshllm.web.http.access_control import PEER_VERDICT, Verdict
from meshllm.web.http.connections import ConnectionSet
from meshllm.web.http.parser import BodyBudget, Request, RequestRejected
from meshllm.web.http.server import Connection
from meshllm.wire.api.routes import Api, find_route

log = logging.getLogger(__name__)

# Active or waiting requests of one peer: more than an engine has slots, too few to crowd out other callers.
MAX_PEER_REQUESTS = 64
# A peer's gateway keeps up to 64 idle connections (`client.MAX_IDLE`) beside the active ones.
MAX_PEER_CONNECTIONS = 192
# Bodies being received or processed: of one peer, and of all peers together; those of our own callers count apart.
MAX_PEER_BODIES_BYTES = 128 << 20
MAX_ALL_BODIES_BYTES = 512 << 20
# The same for one guest, and for all guests together; and a guest's rate of requests.
MAX_GUEST_REQUESTS = 8
MAX_GUEST_CONNECTIONS = 32
MAX_GUEST_BODIES_BYTES = 80 << 20
MAX_ALL_GUEST_BODIES_BYTES = 160 << 20
GUEST_REQUESTS_PER_SECOND = 1.0
GUEST_REQUESTS_BURST = 30.0
NO_RIGHT = (
    "This member of the mesh has no right to send requests. Ask the owner of the mesh for an invite with it: "
    "'mesh-llm invite --rights use' (several rights: use,serve,work)."
)
# Guests whose rate is remembered after their connections have ended.
MAX_GUEST_RATES = 1024


class PeerEndpoint:
    """Answers the connections of one peer. `active`: its requests in progress."""

    def __init__(
        self,
        peer: str,
        proxy: Proxy,
        date: Callable[[], bytes],
        connections: Callable[[PeerEndpoint], ConnectionSet[Connection]],
        rate: TokenBucket | None,
    ) -> None:
        """`rate`: that of a guest's requests; None: the peer is no guest."""
        self.peer = peer
        self.rate = rate
        self.may_use = True
        self.date = date
        self.connections = connections(self)
        self.active = 0
        self._proxy = proxy
        self._caller = f"peer {peer[:10]}"
        # The trust domain of its requests: each guest has its own, the owner's machines share that of this node.
        self._guest = "" if rate is None else peer

    def _trace(self, connection: Connection, path: str) -> RequestTrace:
        return RequestTrace(connection.request_id, api_label(path), path[:MAX_TEXT], self._caller, self._proxy.now())

    def judge(self, connection: Connection, headers: dict[bytes, bytes]) -> Verdict:
        """The peer was authenticated before it opened a stream."""
        return PEER_VERDICT

    def on_rejected(
        self, connection: Connection, path: str, rejected: RequestRejected, headers: dict[bytes, bytes]
    ) -> None:
        """Send an error for bytes that never became a request."""
        api = api_of(path)
        trace = self._trace(connection, path)
        self._proxy.reject(
            connection, api, trace, rejected.status, rejected.code, rejected.message, from_peer=True, unrouted=True
        )

    def on_request(self, connection: Connection, request: Request) -> ProxiedRequest | None:
        """Answer `request`, or begin to."""
        route = find_route(request.path)
        # Canonical paths only: gateways use no others.
        if route is None or route.api is Api.MODELS or request.path != route.path or request.method != route.method:
            api = api_of(request.path)
            trace = self._trace(connection, request.path)
            message = "Peers may only POST to the model routes."
            self._proxy.reject(
                connection, api, trace, 403, "path_not_allowed", message, from_peer=True, unrouted=True, admitted=False
            )
            return None
        trace = self._trace(connection, route.path)
        if not self.may_use:
            self._proxy.reject(
                connection, route.api, trace, 403, "no_right", NO_RIGHT, from_peer=True, unrouted=True, admitted=False
            )
            return None
        limit = MAX_PEER_REQUESTS if self.rate is None else MAX_GUEST_REQUESTS
        message = ""
        if self.active >= limit:
            message = f"This node processes at most {limit} requests of one peer at a time."
        elif self.rate is not None and not self.rate.take(self._proxy.now()):
            message = f"This node takes {GUEST_REQUESTS_PER_SECOND * 60:.0f} requests a minute of a guest."
        if message:
            self._proxy.reject(
                connection, route.api, trace, 429, "overloaded", message, "retry-after: 1\r\n", from_peer=True
            )
            return None
        self.active += 1
        return self._proxy.start(
            connection, request, route.api, route.path, trace, on_end=self._ended, guest=self._guest
        )

    def _ended(self) -> None:
        self.active -= 1


class _ClosedEndpoint(asyncio.Protocol):
    """The protocol for streams that peers open while the gateway closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not from here: uvloop has not finished creating the transport.
        asyncio.get_running_loop().call_soon(transport.close)


class PeerEndpoints:
    """The endpoints of all peers."""

    def __init__(
        self,
        proxy: Proxy,
        date: Callable[[], bytes],
        wake: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        is_guest: Callable[[str], bool],
        may_use: Callable[[str], bool],
    ) -> None:
        """`date` gives the Date header; `wake` is called when there are connections, from when on `sweep` is needed.

        `is_guest`: whether a peer (node id in hexadecimal) may use models only; `may_use`: whether it may use them
        at all, asked for each connection.
        """
        self._proxy = proxy
        self._date = date
        self._wake = wake
        self._loop = loop
        self._is_guest = is_guest
        self._may_use = may_use
        self._bodies = BodyBudget(limit=MAX_ALL_BODIES_BYTES)
        self._guest_bodies = BodyBudget(limit=MAX_ALL_GUEST_BODIES_BYTES, parent=self._bodies)
        self._guest_rates: OrderedDict[str, TokenBucket] = OrderedDict()
        self._endpoints: dict[str, PeerEndpoint] = {}
        # Endpoints with connections. A connection may come some time after its endpoint was created.
        self._busy: dict[PeerEndpoint, None] = {}
        self._shut = False

    def open(self, peer: str) -> asyncio.Protocol:
        """The protocol for a stream that `peer` (node id in hexadecimal) has opened."""
        if self._shut:
            return _ClosedEndpoint()
        endpoint = self._endpoints.get(peer)
        if endpoint is None:
            rate = self._guest_rate(peer) if self._is_guest(peer) else None
            endpoint = PeerEndpoint(peer, self._proxy, self._date, self._connections, rate)
            self._endpoints[peer] = endpoint
        endpoint.may_use = self._may_use(peer)
        return Connection(endpoint, endpoint.connections, self._loop)

    def _connections(self, endpoint: PeerEndpoint) -> ConnectionSet[Connection]:
        def wake() -> None:
            self._busy[endpoint] = None
            self._wake()

        if endpoint.rate is not None:
            bodies = BodyBudget(limit=MAX_GUEST_BODIES_BYTES, parent=self._guest_bodies)
            return ConnectionSet(wake, bodies, MAX_GUEST_CONNECTIONS)
        bodies = BodyBudget(limit=MAX_PEER_BODIES_BYTES, parent=self._bodies)
        return ConnectionSet(wake, bodies, MAX_PEER_CONNECTIONS)

    def _guest_rate(self, peer: str) -> TokenBucket:
        rate = self._guest_rates.get(peer)
        if rate is None:
            rate = TokenBucket(GUEST_REQUESTS_PER_SECOND, GUEST_REQUESTS_BURST, self._loop.time())
            self._guest_rates[peer] = rate
            if len(self._guest_rates) > MAX_GUEST_RATES:
                self._guest_rates.popitem(last=False)
        self._guest_rates.move_to_end(peer)
        return rate

    def sweep(self, now: float) -> bool:
        """Enforce the time limits; returns whether there are connections."""
        for endpoint in list(self._busy):
            endpoint.connections.sweep(now)
            if not endpoint.connections.live:
                del self._busy[endpoint]
                if self._endpoints.get(endpoint.peer) is endpoint:
                    del self._endpoints[endpoint.peer]
        return bool(self._busy)

    def shut(self) -> list[ConnectionSet[Connection]]:
        """Accept no more streams; returns the sets of open connections."""
        self._shut = True
        return [endpoint.connections for endpoint in self._busy]
