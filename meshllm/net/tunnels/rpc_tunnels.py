"""RPC tunnels: what host and workers of a split say to each other, from engine to engine, by way of both daemons.

Law: a tunnel is let in only for a lease that is held, only from the node that the lease names for it, and ends with the
lease. The engines see Unix sockets in a folder that only this user can enter; nothing of theirs listens anywhere else.
Bytes are handed on as they come: nothing is kept back, nothing is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from meshllm.core.records import NodeId, short
from meshllm.errors import MeshError
from meshllm.net.base import Clock, StreamKind
from meshllm.net.tunnels.pipe import HEADER, HEADER_SECONDS, InboundTunnel, PipeEnd
from meshllm.tasks import Owner
from meshllm.util.rate_meter import RateMeter

log = logging.getLogger(__name__)

# Connections of one lease and purpose: an engine keeps one to each worker.
MAX_CONNECTIONS = 8
# A lane takes four round trips, in which a worker makes itself ready: a host opens it when it asks for the lease. The
# other side hangs up on what stays silent (HEADER_SECONDS): what is too old for that is not used any more.
AHEAD_SECONDS = HEADER_SECONDS / 2

Lend = tuple[bytes, int]
"""Session and generation of a lease."""


class TunnelUse(IntEnum):
    """What a tunnel is for: commands of the host to a worker, or tensors from one worker to the next."""

    COMMANDS = 0
    PUSHES = 1


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may come in for a lease: `peers` for that purpose, on to the Unix socket at `path`."""

    peers: frozenset[NodeId]
    path: Path


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that the tunnels of one lease to or from one peer have carried; `rate` per second of late, both ways.

    `via`: "lane" or "quic", what the newest of them runs over; empty before the first.
    """

    sent: int
    received: int
    rate: int
    via: str


@dataclass(slots=True)
class _Count:
    """The same as it is counted."""

    meter: RateMeter
    sent: int = 0
    received: int = 0
    via: str = ""


@dataclass(slots=True)
class _Lease:
    admissions: dict[TunnelUse, Admission] = field(default_factory=dict)
    listeners: list[asyncio.Server] = field(default_factory=list)
    pipes: set[PipeEnd] = field(default_factory=set)
    ready: dict[NodeId, asyncio.Task[PipeEnd | None]] = field(default_factory=dict)
    counts: dict[NodeId, _Count] = field(default_factory=dict)

    def open(self) -> int:
        """How many tunnels there are."""
        self.pipes = {pipe for pipe in self.pipes if pipe.transport is not None}
        return len(self.pipes)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A tunnel that nothing has been said on yet, and when it was opened (the loop's time)."""

    end: PipeEnd
    opened: float


class TunnelNetwork(Protocol):
    """What leads to the other nodes."""

    async def open(
        self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]
    ) -> asyncio.BaseProtocol:
        """A tunnel of that kind to `peer`. Raises MeshError if there is no way to it."""

    def serve(self, kind: StreamKind, factory: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """From now on `factory` gives what serves the tunnels of that kind that peers open."""


class RpcTunnels:
    """The tunnels of the leases that this node holds, as host or as worker."""

    def __init__(self, mesh: TunnelNetwork, clock: Clock = time.monotonic) -> None:
        self._mesh = mesh
        self._clock = clock
        self._owner = Owner("rpc tunnels")
        self._leases: dict[Lend, _Lease] = {}
        self._ahead: dict[NodeId, asyncio.Task[_Ahead | None]] = {}
        mesh.serve(StreamKind.RPC_TUNNEL, self._serve)

    def admit(self, lease: Lend, purpose: TunnelUse, peers: Iterable[NodeId], path: Path) -> None:
        """From now on tunnels of `peers` for `lease` and that purpose lead to the Unix socket at `path`."""
        self._leases.setdefault(lease, _Lease()).admissions[purpose] = Admission(frozenset(peers), path)

    def open_ahead(self, peer: NodeId) -> None:
        """There may soon be a lease with `peer`: have a tunnel made, of which it hears later what it is for."""
        self._drop(self._ahead.pop(peer, None))
        self._ahead[peer] = self._owner.start(self._open_ahead(peer), f"rpc tunnel to {short(peer)}")

    async def listen(
        self, lease: Lend, purpose: TunnelUse, peer: NodeId, path: Path, broken: Callable[[], None] | None = None
    ) -> None:
        """What connects to the Unix socket at `path` is led to `peer`, for `lease` and that purpose. Raises OSError.

        A tunnel for commands is made at once, so that what the other engine says first is here when this one asks.
        `broken` hears, while the lease is held, of each tunnel that cannot be had, or ends though the engine here did
        not end it.
        """
        held = self._leases.setdefault(lease, _Lease())

        def tell() -> None:
            if broken is not None and self._leases.get(lease) is held:
                broken()

        def accepted(near: PipeEnd) -> None:
            self._owner.start(self._lead(held, lease, purpose, peer, near, tell), f"rpc tunnel to {short(peer)}")

        def accept() -> asyncio.Protocol:
            return PipeEnd(lambda count: self._sent(held, peer, count), accepted)

        held.listeners.append(await asyncio.get_running_loop().create_unix_server(accept, str(path)))
        if purpose is TunnelUse.COMMANDS:
            making = self._make_ready(held, lease, purpose, peer, tell)
            held.ready[peer] = self._owner.start(making, f"rpc tunnel to {short(peer)}")

    def revoke(self, lease: Lend) -> None:
        """The lease is over: its tunnels end, nobody comes in, nothing is listened on."""
        held = self._leases.pop(lease, None)
        if held is None:
            return
        for listener in held.listeners:
            listener.close()
        for pipe in list(held.pipes):
            pipe.close()
        for making in held.ready.values():
            if making.done() and not making.cancelled() and (made := making.result()) is not None:
                made.close()

    def traffic(self, lease: Lend) -> dict[NodeId, Traffic]:
        """Bytes that have gone to and come from each peer of the lease."""
        held = self._leases.get(lease)
        counts, now = held.counts if held is not None else {}, self._clock()
        return {p: Traffic(c.sent, c.received, round(c.meter.rate(now)), c.via) for p, c in counts.items()}

    async def close(self) -> None:
        """End everything."""
        for lease in list(self._leases):
            self.revoke(lease)
        for opening in self._ahead.values():
            self._drop(opening)
        await self._owner.close()

    # -- out

    async def _lead(
        self, held: _Lease, lease: Lend, purpose: TunnelUse, peer: NodeId, near: PipeEnd, broken: Callable[[], None]
    ) -> None:
        """Have a tunnel for what the engine has just connected."""
        try:
            far = await self._ready(held, peer) or await self._make(held, lease, purpose, peer, broken)
        except (MeshError, OSError) as error:
            log.warning("no tunnel to %s for a split: %s", short(peer), error)
            near.close()
            broken()
            return
        if far.transport is None or near.transport is None or self._leases.get(lease) is not held:
            far.close()
            near.close()
            return
        self._join(held, peer, near, far)

    async def _make(
        self, held: _Lease, lease: Lend, purpose: TunnelUse, peer: NodeId, broken: Callable[[], None]
    ) -> PipeEnd:
        """A tunnel of which the other side knows what it is for. Raises MeshError and OSError."""
        far = await self._opened_ahead(peer) or await self._open(peer)
        far.belongs(lambda count: self._received(held, peer, count), broken)
        if far.transport is not None:
            far.transport.write(HEADER.pack(*lease, purpose))
        return far

    async def _open(self, peer: NodeId) -> PipeEnd:
        """A tunnel that nothing has been said on. Raises MeshError and OSError."""
        far = PipeEnd(lambda count: None)
        await self._mesh.open(peer, StreamKind.RPC_TUNNEL, lambda: far)
        return far

    async def _open_ahead(self, peer: NodeId) -> _Ahead | None:
        try:
            far = await self._open(peer)
        except (MeshError, OSError):
            return None  # whoever needs it will try again, and say why there is none
        return _Ahead(far, asyncio.get_running_loop().time())

    async def _opened_ahead(self, peer: NodeId) -> PipeEnd | None:
        opening = self._ahead.pop(peer, None)
        found = await opening if opening is not None else None
        if found is None or not found.end.lives():
            return None
        if asyncio.get_running_loop().time() - found.opened <= AHEAD_SECONDS:
            return found.end
        found.end.close()
        return None

    def _drop(self, opening: asyncio.Task[_Ahead | None] | None) -> None:
        """What was opened, or is about to be, is not needed."""
        if opening is None:
            return
        if not opening.done():
            opening.cancel()
        elif not opening.cancelled() and (opened := opening.result()) is not None:
            opened.end.close()

    async def _make_ready(
        self, held: _Lease, lease: Lend, purpose: TunnelUse, peer: NodeId, broken: Callable[[], None]
    ) -> PipeEnd | None:
        try:
            far = await self._make(held, lease, purpose, peer, broken)
        except (MeshError, OSError):
            return None  # as above
        if self._leases.get(lease) is not held:
            far.close()
            return None
        return far

    async def _ready(self, held: _Lease, peer: NodeId) -> PipeEnd | None:
        making = held.ready.pop(peer, None)
        found = await making if making is not None else None
        return found if found is not None and found.lives() else None

    # -- in

    def _serve(self, peer: NodeId) -> asyncio.BaseProtocol:
        return InboundTunnel(lambda guest, header: self._admitted(peer, guest, header))

    def _admitted(self, peer: NodeId, guest: InboundTunnel, header: bytes) -> None:
        session, generation, purpose = HEADER.unpack(header)
        held = self._leases.get((session, generation))
        admission = None if held is None else held.admissions.get(purpose)
        if held is None or admission is None or peer not in admission.peers or held.open() >= MAX_CONNECTIONS:
            log.warning("refused an rpc tunnel of %s: it holds no lease of this node", short(peer))
            guest.close()
            return
        guest.belongs(lambda count: self._received(held, peer, count))
        self._owner.start(self._reach(held, peer, guest, admission.path), f"rpc tunnel of {short(peer)}")

    async def _reach(self, held: _Lease, peer: NodeId, guest: InboundTunnel, path: Path) -> None:
        near = PipeEnd(lambda count: self._sent(held, peer, count))
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: near, str(path))
        except OSError as error:
            log.warning("the rpc-server does not answer: %s", error)
            guest.close()
            return
        if guest.transport is None or not any(held is lease for lease in self._leases.values()):
            near.close()
            guest.close()
            return
        self._join(held, peer, near, guest)

    # -- both

    def _join(self, held: _Lease, peer: NodeId, near: PipeEnd, far: PipeEnd) -> None:
        self._count(held, peer).via = far.via()
        held.pipes.add(near)
        near.join(far)
        far.join(near)

    def _sent(self, held: _Lease, peer: NodeId, count: int) -> None:
        counted = self._count(held, peer)
        counted.sent += count
        counted.meter.add(count, self._clock())

    def _received(self, held: _Lease, peer: NodeId, count: int) -> None:
        counted = self._count(held, peer)
        counted.received += count
        counted.meter.add(count, self._clock())

    def _count(self, held: _Lease, peer: NodeId) -> _Count:
        found = held.counts.get(peer)
        if found is None:
            found = held.counts[peer] = _Count(RateMeter(self._clock()))
        return found
