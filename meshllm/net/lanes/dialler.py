"""The dialler's side of a lane: ask for tickets, connect by TLS, present a ticket.

Invariants: nothing is sent before the peer has shown its node key. The tunnel's protocol is installed in the callback
that receives the acceptance, so no byte is lost; it is not installed if the caller has given up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from meshllm.core.records import NodeId, PeerAddress, short
from meshllm.errors import PeerRefused
from meshllm.net.base import StreamKind
from meshllm.net.identity import node_of_der
from meshllm.net.lanes.listener import ACCEPTED_BYTE, MAX_TICKETS_PER_ASK, TICKET_BYTES, TLS_SHUTDOWN_SECONDS
from meshllm.tasks import Owner

# Addresses tried for one lane, STAGGER_SECONDS apart.
MAX_HOSTS = 4
STAGGER_SECONDS = 0.2


class LaneRequest:
    """A request for a lane; without a factory it only tests whether TCP gets through.

    `granted(transport)` is called last, when the lane is ready; False: the lane is dropped.
    """

    def __init__(
        self, factory: Callable[[], asyncio.BaseProtocol] | None, granted: Callable[[asyncio.Transport], bool]
    ) -> None:
        self.wanted = factory is not None
        self.protocol: asyncio.BaseProtocol | None = None
        self.transport: asyncio.Transport | None = None
        self._factory = factory
        self._granted = granted

    def fulfil(self, transport: asyncio.Transport, rest: bytes) -> None:
        """The lane is ready: install the protocol and pass it the bytes that have come, or drop the lane."""
        if not self.wanted or self._factory is None or not self._granted(transport):
            transport.abort()
            return
        self.protocol, self.transport = self._factory(), transport
        transport.set_protocol(self.protocol)
        self.protocol.connection_made(transport)
        _deliver(self.protocol, rest)


@dataclass(frozen=True, slots=True)
class TicketAnswer:
    """The answer to a ticket request: TCP port (0: no lanes), lifetime in seconds, tickets."""

    port: int
    life: int
    tickets: tuple[bytes, ...]


class TicketRequest(asyncio.Protocol):
    """Asks for tickets on a LANE_TICKET stream. `answer` becomes None without a valid answer."""

    def __init__(self, kind: StreamKind, count: int) -> None:
        self.answer: asyncio.Future[TicketAnswer | None] = asyncio.get_running_loop().create_future()
        self._question = bytes((kind, count))
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._question)

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        self._received += data
        received = self._received
        if len(received) < 4:
            return
        count, length = received[3], 4 + received[3] * TICKET_BYTES
        if count > MAX_TICKETS_PER_ASK or len(received) > length:
            self.answer.set_result(None)
        elif len(received) == length:
            tickets = tuple(received[start : start + TICKET_BYTES] for start in range(4, length, TICKET_BYTES))
            self.answer.set_result(TicketAnswer(int.from_bytes(received[:2], "big"), received[2], tickets))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(None)


class LaneGreeting(asyncio.Protocol):
    """The dialler's protocol until the lane is accepted."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._welcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._request: LaneRequest | None = None

    async def enter(self, ticket: bytes, request: LaneRequest) -> bool:
        """Send the ticket. True once the peer has accepted it, even if the lane is not wanted any more."""
        self._request = request
        if self.transport is not None:
            self.transport.write(ticket)
        return await self._welcome

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._welcome.done() or self._request is None or self.transport is None or data[:1] != ACCEPTED_BYTE:
            self.connection_lost(None)
        else:
            self._welcome.set_result(True)
            self._request.fulfil(self.transport, data[1:])

    def connection_lost(self, error: Exception | None) -> None:
        if not self._welcome.done():
            self._welcome.set_result(False)


def _deliver(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Pass on bytes that came with the acceptance, as the event loop would."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        while data:
            buffer = memoryview(protocol.get_buffer(len(data)))
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            protocol.buffer_updated(taken)
            data = data[taken:]
    elif isinstance(protocol, asyncio.Protocol) and data:
        protocol.data_received(data)


def hosts_to_try(linked: PeerAddress, others: Iterable[PeerAddress]) -> tuple[str, ...]:
    """Hosts to connect to, the link's first. Addresses that a peer claims may not be this machine's loopback."""
    hosts = [linked.host]
    for other in others:
        try:
            address = ipaddress.ip_address(other.host)
        except ValueError:
            continue
        odd = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
        if not odd and other.host not in hosts:
            hosts.append(other.host)
    return tuple(hosts[:MAX_HOSTS])


async def connect(
    owner: Owner, context: ssl.SSLContext, peer: NodeId, hosts: Sequence[str], port: int, limit: float
) -> LaneGreeting | None:
    """Connect by TLS to the first of `hosts` that is `peer`; None if there is none within `limit` seconds.

    The next host is tried after a failure or STAGGER_SECONDS.
    """
    remaining, attempts, found = list(hosts), list[asyncio.Task[LaneGreeting | None]](), None
    try:
        async with asyncio.timeout(limit):
            while found is None:
                if remaining:
                    attempting = _connect(context, peer, remaining.pop(0), port, limit)
                    attempts.append(owner.start(attempting, f"connect {short(peer)}"))
                waiting = [attempt for attempt in attempts if not attempt.done()]
                if waiting:
                    pause = STAGGER_SECONDS if remaining else None
                    await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                elif not remaining:
                    break
                found = next((done for attempt in attempts if (done := _outcome(attempt)) is not None), None)
    except TimeoutError:
        pass
    finally:
        for attempt in attempts:
            attempt.cancel()
            late = _outcome(attempt)
            if late is not None and late is not found and late.transport is not None:
                late.transport.abort()
    return found


async def _connect(context: ssl.SSLContext, peer: NodeId, host: str, port: int, limit: float) -> LaneGreeting | None:
    """Connect to one host; None if it does not answer or is another node."""
    try:
        transport, greeting = await asyncio.get_running_loop().create_connection(
            LaneGreeting,
            host,
            port,
            ssl=context,
            ssl_handshake_timeout=limit,
            ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS,
        )
    except OSError:
        return None
    try:
        tls = transport.get_extra_info("ssl_object")
        if node_of_der(tls.getpeercert(binary_form=True)) == peer:
            return greeting
    except PeerRefused:
        pass
    transport.abort()
    return None


def _outcome(attempt: asyncio.Task[LaneGreeting | None]) -> LaneGreeting | None:
    return attempt.result() if attempt.done() and not attempt.cancelled() else None
