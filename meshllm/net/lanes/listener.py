"""The door of the lanes: a TCP port behind TLS 1.3 that opens to whoever brings a ticket agreed over a link.

Law: a ticket is for one peer, one kind of tunnel and one use, and lives for seconds. Of a stranger nothing is read but
32 bytes, within a deadline; it gets no answer but the end of the connection, whatever was wrong. Strangers are
bounded, in all and per host, and hosts that hold a ticket do not queue behind the others.
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

# What may run on a lane: bulk, and what waits for every token.
LANE_KINDS = frozenset({StreamKind.HTTP_TUNNEL, StreamKind.RPC_TUNNEL, StreamKind.FILES})
TICKET_BYTES = 32
# Long enough for a TCP and a TLS handshake over the worst link, short enough that a stolen one is worth nothing.
TICKET_SECONDS = 10
# A dialler that opens many at once asks again; an honest one never holds more than this unused.
MAX_TICKETS_PER_ASK = 8
MAX_TICKETS_PER_PEER = 64
# From the TCP connection to the whole ticket, and the same for a peer that asks for tickets and does not say how many.
TICKET_DEADLINE_SECONDS = 3.0
# Half-open connections cost about 100 kB each (TLS). Hosts that hold tickets are not counted in the first.
MAX_UNAUTHENTICATED = 64
MAX_PENDING_PER_HOST = 32
# How long a lane's end may take to say goodbye in TLS.
TLS_SHUTDOWN_SECONDS = 1.0
# Without file descriptors accepting would fail again at once.
_BREATH_SECONDS = 0.5
ACCEPTED_BYTE = b"\x01"

# Given the peer, the kind and the lane: what serves it, or None to refuse it.
Serve = Callable[[NodeId, StreamKind, asyncio.Transport], asyncio.BaseProtocol | None]


@dataclass(frozen=True, slots=True)
class _Ticket:
    peer: NodeId
    kind: StreamKind
    expires: float


class LaneListener:
    """Issues tickets, and turns connections that bring one into lanes."""

    def __init__(self, context: ssl.SSLContext, serve: Serve, clock: Clock) -> None:
        self.port = 0
        self._context = context
        self._serve = serve
        self._clock = clock
        self._socket: socket.socket | None = None
        self._owner = Owner("lane listener")
        # In the order of issue, which is the order of expiry, because all live equally long.
        self._tickets: dict[bytes, _Ticket] = {}
        self._outstanding: Counter[NodeId] = Counter()
        self._expected: dict[str, float] = {}
        self._knocks: Counter[str] = Counter()
        self._strangers = 0

    def start(self, port: int, host: str | None = None) -> int:
        """Listen on `port`, or on any if another program has it. Returns the port; 0 if there is none to be had."""
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
        """What serves a stream of kind LANE_TICKET on `link`."""
        return _TicketHandler(self, link)

    def issue(self, peer: NodeId, host: str, kind: int, count: int) -> bytes:
        """The answer to an ask: port (2 bytes), life in seconds (1), number (1), and so many tickets.

        There may be fewer than asked for: none if this node has no listener, or nothing of that kind to offer.
        """
        self._sweep()
        room = MAX_TICKETS_PER_PEER - self._outstanding[peer]
        count = max(0, min(count, MAX_TICKETS_PER_ASK, room))
        if not self.port or kind not in LANE_KINDS:
            count = 0
        expires = self._clock() + TICKET_SECONDS
        made = [secrets.token_bytes(TICKET_BYTES) for _ in range(count)]
        for ticket in made:
            self._tickets[ticket] = _Ticket(peer, StreamKind(kind), expires)
        if made:
            self._outstanding[peer] += count
            self._expected[_plain(host)] = expires
        return self.port.to_bytes(2, "big") + bytes((TICKET_SECONDS, count)) + b"".join(made)

    def redeem(self, ticket: bytes) -> tuple[NodeId, StreamKind] | None:
        """Who may enter with `ticket`, and for what; it is worth nothing afterwards."""
        self._sweep()
        found = self._tickets.pop(ticket, None)
        if found is None:
            return None
        self._returned(found.peer)
        return found.peer, found.kind

    def forget(self, peer: NodeId) -> None:
        """Its tickets are worth nothing from now on."""
        for ticket in [key for key, ticket in self._tickets.items() if ticket.peer == peer]:
            del self._tickets[ticket]
        self._outstanding.pop(peer, None)

    async def close(self) -> None:
        """Listen no more; drop all who have not come in yet."""
        await self._owner.close()
        if self._socket is not None:
            self._socket.close()
        self._socket, self.port = None, 0
        self._tickets.clear()

    # -- at the door

    async def _accept(self, listening: socket.socket) -> None:
        """Let each one knock, or show it out at once if there are too many."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # gone already, or this process has no file descriptors left
                log.warning("a connection for a lane could not be accepted: %s", error.strerror)
                await asyncio.sleep(_BREATH_SECONDS)
                continue
            host = _plain(str(address[0]))
            known = self._expected.get(host, 0.0) > self._clock()
            if (not known and self._strangers >= MAX_UNAUTHENTICATED) or self._knocks[host] >= MAX_PENDING_PER_HOST:
                connection.close()
                continue
            self._knocks[host] += 1
            self._strangers += not known
            task = self._owner.start(self._hear(connection), "knock")
            task.add_done_callback(partial(self._left, host, known))

    def _left(self, host: str, known: bool, _: asyncio.Task[None]) -> None:
        self._strangers -= not known
        self._knocks[host] -= 1
        if not self._knocks[host]:
            del self._knocks[host]

    async def _hear(self, connection: socket.socket) -> None:
        """TLS, then the ticket, all within the deadline; then the lane is in other hands, or gone."""
        loop, knock, admitted = asyncio.get_running_loop(), _PendingLane(), False
        connection.setblocking(False)
        try:
            async with asyncio.timeout(TICKET_DEADLINE_SECONDS):
                # Not by create_server: it would hold any number of half-open ones before anybody could count them.
                await loop.connect_accepted_socket(
                    lambda: knock, connection, ssl=self._context,
                    ssl_handshake_timeout=TICKET_DEADLINE_SECONDS, ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
                )  # fmt: skip
                await knock.spoken
            admitted = self._admit(knock)
        except OSError:  # TimeoutError and ssl.SSLError among them: not TLS, too slow, or gone
            pass
        finally:
            if not admitted and knock.transport is not None:
                knock.transport.abort()

    def _admit(self, knock: _PendingLane) -> bool:
        """Hand the lane to what serves it. False if the ticket is wrong or nobody serves it."""
        entry, lane = self.redeem(knock.heard), knock.transport
        if entry is None or lane is None or knock.gone or lane.is_closing():
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
        """Forget what has expired. Costs as much as was issued, not as much as there is."""
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
    """Somebody at the door. `spoken` is done once `heard` is as long as a ticket, or never will be.

    Whoever says more before he is welcome is no peer (a lane must not begin in the middle): then `heard` is too long.
    """

    def __init__(self) -> None:
        self.spoken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self.heard = b""
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if len(self.heard) <= TICKET_BYTES:
            self.heard += data[: TICKET_BYTES + 1]
        if len(self.heard) >= TICKET_BYTES and not self.spoken.done():
            self.spoken.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if not self.spoken.done():
            self.spoken.set_result(None)


class _TicketHandler(asyncio.Protocol):
    """Answers one ask for tickets: kind and number, a byte each."""

    def __init__(self, listener: LaneListener, link: Link) -> None:
        self._listener = listener
        self._facts = link.facts
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = asyncio.get_running_loop().call_later(TICKET_DEADLINE_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if self._transport is None or len(self._heard) < 2 or self._transport.is_closing():
            return
        if len(self._heard) > 2:
            self._transport.abort()
            return
        kind, count = self._heard
        self._transport.write(self._listener.issue(self._facts.peer, self._facts.address.host, kind, count))
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()


def _listen(host: str | None, port: int) -> socket.socket:
    """A listening socket: on `host`, or on every interface, both families in one where the system can."""
    if host is not None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError:  # switched off in the kernel, or only this port is taken: IPv4 will tell
            pass
    return socket.create_server(("0.0.0.0", port), family=socket.AF_INET)


def _plain(host: str) -> str:
    """An address as one family writes it: `::ffff:192.0.2.1` on a socket of both families is 192.0.2.1."""
    return host.removeprefix("::ffff:") if "." in host else host.partition("%")[0]
