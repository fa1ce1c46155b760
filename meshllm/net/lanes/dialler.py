"""The dialler's half of a lane: asking for tickets, finding the peer's TLS end, and going in.

Law: nothing is sent to anybody who has not shown the peer's own key. The real protocol takes its place within the
callback that brings the welcome, so that no byte can come between; if its caller has given up by then, it never does.
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

# Addresses tried for one lane, a little after one another.
MAX_HOSTS = 4
STAGGER_SECONDS = 0.2


class LaneRequest:
    """Who wants a lane, and whether still. Without a factory nobody does: it is to see whether TCP gets through.

    `granted` is asked last, when the lane is there, and told of its transport; False: the lane is dropped.
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
        """The lane is there: put the real protocol on it and give it what has come already. Or drop the lane."""
        if not self.wanted or self._factory is None or not self._granted(transport):
            transport.abort()
            return
        self.protocol, self.transport = self._factory(), transport
        transport.set_protocol(self.protocol)
        self.protocol.connection_made(transport)
        _deliver(self.protocol, rest)


@dataclass(frozen=True, slots=True)
class TicketAnswer:
    """What a peer says when asked: its TCP port (0: none), the tickets' life in seconds, and the tickets."""

    port: int
    life: int
    tickets: tuple[bytes, ...]


class TicketRequest(asyncio.Protocol):
    """Asks for tickets on a stream of kind LANE_TICKET. `answer` becomes None if none that makes sense comes."""

    def __init__(self, kind: StreamKind, count: int) -> None:
        self.answer: asyncio.Future[TicketAnswer | None] = asyncio.get_running_loop().create_future()
        self._question = bytes((kind, count))
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._question)

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        self._heard += data
        heard = self._heard
        if len(heard) < 4:
            return
        count, length = heard[3], 4 + heard[3] * TICKET_BYTES
        if count > MAX_TICKETS_PER_ASK or len(heard) > length:
            self.answer.set_result(None)
        elif len(heard) == length:
            tickets = tuple(heard[start : start + TICKET_BYTES] for start in range(4, length, TICKET_BYTES))
            self.answer.set_result(TicketAnswer(int.from_bytes(heard[:2], "big"), heard[2], tickets))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(None)


class LaneGreeting(asyncio.Protocol):
    """The dialler's end until it is welcome."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._welcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._wish: LaneRequest | None = None

    async def enter(self, ticket: bytes, wish: LaneRequest) -> bool:
        """Show the ticket. True once the peer has taken it, whether or not the lane was still wanted."""
        self._wish = wish
        if self.transport is not None:
            self.transport.write(ticket)
        return await self._welcome

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._welcome.done() or self._wish is None or self.transport is None or data[:1] != ACCEPTED_BYTE:
            self.connection_lost(None)
        else:
            self._welcome.set_result(True)
            self._wish.fulfil(self.transport, data[1:])

    def connection_lost(self, error: Exception | None) -> None:
        if not self._welcome.done():
            self._welcome.set_result(False)


def _deliver(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Bytes that came with the welcome, as the loop would have handed them over."""
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
    """Where to knock: where the link goes first. What a peer merely claims may not lead to this machine itself."""
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


async def reach(
    owner: Owner, context: ssl.SSLContext, peer: NodeId, hosts: Sequence[str], port: int, limit: float
) -> LaneGreeting | None:
    """The TLS end of `peer` at the first of `hosts` that is really the peer; None if there is none in `limit` seconds.

    The next host is tried when the last one has failed, or has not answered for a moment.
    """
    remaining, attempts, found = list(hosts), list[asyncio.Task[LaneGreeting | None]](), None
    try:
        async with asyncio.timeout(limit):
            while found is None:
                if remaining:
                    knock = _knock(context, peer, remaining.pop(0), port, limit)
                    attempts.append(owner.start(knock, f"reach {short(peer)}"))
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


async def _knock(context: ssl.SSLContext, peer: NodeId, host: str, port: int, limit: float) -> LaneGreeting | None:
    """TCP and TLS to one host; None if it does not answer or is not the peer."""
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
