"""The listener for lanes: TCP with TLS 1.3, for peers with a ticket that was issued over their link.

Invariants: a ticket is for one peer, one stream kind, one use and TICKET_SECONDS. Before it is redeemed, only 32 bytes
are read, within a deadline, and every failure just closes the connection. Pending connections are bounded, in all and
per host: a new one takes the place of the oldest. Hosts with a ticket are not held up by others.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from meshllm.core.records import NodeId
from meshllm.net.base import Clock, Link, StreamKind
from meshllm.tasks import Owner

log = logging.getLogger(__name__)

# Kinds that may use a lane: bulk and per-token traffic.
LANE_KINDS = frozenset({StreamKind.HTTP_TUNNEL, StreamKind.RPC_TUNNEL, StreamKind.FILES})
TICKET_BYTES = 32
# Long enough for TCP and TLS over a bad network, short enough that a stolen ticket is useless.
TICKET_SECONDS = 10
# Per answer, and unused per peer; a correct dialler stays below both.
MAX_TICKETS_PER_ASK = 8
MAX_TICKETS_PER_PEER = 64
# From the TCP connection to the whole ticket; also the limit for a ticket request.
TICKET_DEADLINE_SECONDS = 3.0
# A pending connection costs about 100 kB (TLS). Hosts with a ticket do not count against the first limit.
MAX_UNAUTHENTICATED = 64
MAX_PENDING_PER_HOST = 32
# Limit for the TLS shutdown.
TLS_SHUTDOWN_SECONDS = 1.0
# Pause after a failed accept: without file descriptors the next one fails too.
ACCEPT_RETRY_SECONDS = 0.5
ACCEPTED_BYTE = b"\x01"

# Returns the protocol that serves a lane, given the peer, the kind and the transport; None to refuse.
Serve = Callable[[NodeId, StreamKind, asyncio.Transport], asyncio.BaseProtocol | None]


@dataclass(frozen=True, slots=True)
class _Ticket:
    peer: NodeId
    kind: StreamKind
    expires: float


class LaneListener:
    """Issues tickets, and accepts connections that present one."""

    def __init__(self, context: ssl.SSLContext, serve: Serve, clock: Clock) -> None:
        self.port = 0
        self._context = context
        self._serve = serve
        self._clock = clock
        self._socket: socket.socket | None = None
        self._owner = Owner("lane listener")
        # In the order of issue, which is the order of expiry.
        self._tickets: dict[bytes, _Ticket] = {}
        self._outstanding: Counter[NodeId] = Counter()
        self._expected: dict[str, float] = {}
        # By host, the oldest first; those of hosts without a ticket are counted.
        self._pending: dict[str, dict[asyncio.Task[None], bool]] = {}
        self._without_ticket = 0

    def start(self, port: int, host: str | None = None) -> int:
        """Listen on `port`, or on a free port if it is taken. Return the port; 0: no port is available."""
        for wanted in (port, 0):
            try:
                listening = _listen(host, wanted)
            except OSError as error:
                log.info("no lanes on port %d: %s", wanted, error.strerror)
                continue
            listening.setblocking(False)
            self._socket, self.port = listening, int(listening.getsockname()[1])
            self._owner.start(self._accept(listening), "accept")
            break
        return self.port

    def ticket_handler(self, link: Link) -> asyncio.BaseProtocol:
        """The protocol that serves a LANE_TICKET stream on `link`."""
        return _TicketHandler(self, link)

    def issue(self, peer: NodeId, host: str, kind: int, count: int) -> bytes:
        """The answer to a ticket request: port (2 bytes), lifetime in seconds (1), number (1), tickets.

        It may have fewer tickets than requested; none without a listener, or for a kind that cannot use lanes.
        """
        self._sweep()
        free = MAX_TICKETS_PER_PEER - self._outstanding[peer]
        count = max(0, min(count, MAX_TICKETS_PER_ASK, free))
        if not self.port or kind not in LANE_KINDS:
            count = 0
        expires = self._clock() + TICKET_SECONDS
        made = [secrets.token_bytes(TICKET_BYTES) for _ in range(count)]
        for ticket in made:
            self._tickets[ticket] = _Ticket(peer, StreamKind(kind), expires)
        if made:
            self._outstanding[peer] += count
            self._expected[_unmapped(host)] = expires
        return self.port.to_bytes(2, "big") + bytes((TICKET_SECONDS, count)) + b"".join(made)

    def redeem(self, ticket: bytes) -> tuple[NodeId, StreamKind] | None:
        """Consume a ticket; return its peer and kind, or None."""
        self._sweep()
        found = self._tickets.pop(ticket, None)
        if found is None:
            return None
        self._returned(found.peer)
        return found.peer, found.kind

    def forget(self, peer: NodeId) -> None:
        """Invalidate the tickets of `peer`."""
        for ticket in [key for key, ticket in self._tickets.items() if ticket.peer == peer]:
            del self._tickets[ticket]
        self._outstanding.pop(peer, None)

    async def close(self) -> None:
        """Stop listening and drop pending connections."""
        await self._owner.close()
        if self._socket is not None:
            self._socket.close()
        self._socket, self.port = None, 0
        self._tickets.clear()

    # -- accepting

    async def _accept(self, listening: socket.socket) -> None:
        """Accept loop with a global and a per-host limit of pending connections."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # the connection is closed, or the process has no file descriptors left
                log.warning("a connection for a lane could not be accepted: %s", error.strerror)
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            host = _unmapped(str(address[0]))
            known = self._expected.get(host, 0.0) > self._clock()
            if len(self._pending.get(host, ())) >= MAX_PENDING_PER_HOST:
                self._evict(host)
            elif not known and self._without_ticket >= MAX_UNAUTHENTICATED:
                self._evict(self._largest())
            self._without_ticket += not known
            task = self._owner.start(self._receive_ticket(connection), "pending")
            self._pending.setdefault(host, {})[task] = known
            task.add_done_callback(partial(self._done, host))

    def _largest(self) -> str:
        """The host with most connections without a ticket."""
        return max(self._pending, key=lambda host: sum(not known for known in self._pending[host].values()))

    def _evict(self, host: str) -> None:
        """Close the oldest pending connection of `host`, one without a ticket if there is any."""
        pending = self._pending[host]
        task = next((task for task, known in pending.items() if not known), None) or next(iter(pending))
        self._done(host, task)
        # Not now: a task that has not begun would end without closing its connection.
        asyncio.get_running_loop().call_soon(task.cancel)

    def _done(self, host: str, task: asyncio.Task[None]) -> None:
        pending = self._pending.get(host, {})
        known = pending.pop(task, None)
        if known is None:
            return  # evicted before
        self._without_ticket -= not known
        if not pending:
            del self._pending[host]

    async def _receive_ticket(self, connection: socket.socket) -> None:
        """TLS and the ticket, within the deadline; then hand the lane over or abort it."""
        loop, pending, admitted = asyncio.get_running_loop(), _PendingLane(), False
        connection.setblocking(False)
        try:
            async with asyncio.timeout(TICKET_DEADLINE_SECONDS):
                # create_server would hold any number of half-open connections before they could be counted.
                await loop.connect_accepted_socket(
                    lambda: pending, connection, ssl=self._context,
                    ssl_handshake_timeout=TICKET_DEADLINE_SECONDS, ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
                )  # fmt: skip
                await pending.complete
            admitted = self._admit(pending)
        except OSError:  # includes TimeoutError and ssl.SSLError
            pass
        finally:
            if not admitted and pending.transport is not None:
                pending.transport.abort()

    def _admit(self, pending: _PendingLane) -> bool:
        """Give the lane to its server. False if the ticket is invalid or the lane is refused."""
        entry, lane = self.redeem(pending.received), pending.transport
        if entry is None or lane is None or pending.closed or lane.is_closing():
            return False
        protocol = self._serve(*entry, lane)
        if protocol is None:
            return False
        lane.set_protocol(protocol)
        lane.write(ACCEPTED_BYTE)
        protocol.connection_made(lane)
        return True

    # -- tickets

    def _sweep(self) -> None:
        """Drop expired tickets. The cost is proportional to the number dropped."""
        now = self._clock()
        while self._tickets:
            ticket, first = next(iter(self._tickets.items()))
            if first.expires > now:
                break
            del self._tickets[ticket]
            self._returned(first.peer)
        if not self._tickets and self._expected:
            self._expected = {host: expires for host, expires in self._expected.items() if expires > now}

    def _returned(self, peer: NodeId) -> None:
        self._outstanding[peer] -= 1
        if self._outstanding[peer] <= 0:
            del self._outstanding[peer]


class _PendingLane(asyncio.Protocol):
    """A connection without a redeemed ticket. `complete` is done once `received` has the length of a ticket, or the
    connection ends.

    A peer sends nothing after the ticket until it is accepted; otherwise `received` is too long and no ticket matches.
    """

    def __init__(self) -> None:
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self.received = b""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if len(self.received) <= TICKET_BYTES:
            self.received += data[: TICKET_BYTES + 1]
        if len(self.received) >= TICKET_BYTES and not self.complete.done():
            self.complete.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if not self.complete.done():
            self.complete.set_result(None)


class _TicketHandler(asyncio.Protocol):
    """Answers one ticket request: kind and number, one byte each."""

    def __init__(self, listener: LaneListener, link: Link) -> None:
        self._listener = listener
        self._facts = link.facts
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = asyncio.get_running_loop().call_later(TICKET_DEADLINE_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._transport is None or len(self._received) < 2 or self._transport.is_closing():
            return
        if len(self._received) > 2:
            self._transport.abort()
            return
        kind, count = self._received
        self._transport.write(self._listener.issue(self._facts.peer, self._facts.address.host, kind, count))
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()


def _listen(host: str | None, port: int) -> socket.socket:
    """A listening socket on `host`, or on all interfaces, dual-stack where possible."""
    if host is not None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError:  # IPv6 is disabled, or the port is taken: try IPv4
            pass
    return socket.create_server(("0.0.0.0", port), family=socket.AF_INET)


def _unmapped(host: str) -> str:
    """An address without the IPv4-mapped prefix or scope: `::ffff:192.0.2.1` becomes 192.0.2.1."""
    return host.removeprefix("::ffff:") if "." in host else host.partition("%")[0]
