"""RPC tunnels: the connections between the engines of a split (llama-server and rpc-server), through both daemons.

Invariants: a tunnel is admitted only for a lease that this node holds and from a node that the lease names for that
use; it ends with the lease. The engines see Unix sockets in a folder that only this user can enter.
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

# Connections of one lease: an engine keeps one to each worker.
MAX_CONNECTIONS = 8
# A host opens a tunnel when it proposes a lease, to save the four round trips of a lane. The worker closes a tunnel
# without a header after HEADER_SECONDS; the host does not use one older than this.
PRECONNECT_SECONDS = HEADER_SECONDS / 2

LeaseKey = tuple[bytes, int]
"""Session and generation of a lease."""


class TunnelUse(IntEnum):
    """The use of a tunnel: commands of the host to a worker, or tensors from one worker to the next."""

    COMMANDS = 0
    TENSORS = 1


@dataclass(frozen=True, slots=True)
class Admission:
    """Admits tunnels of `peers` and joins them to the Unix socket at `path`."""

    peers: frozenset[NodeId]
    path: Path


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes over the tunnels of one lease to one peer; `rate`: bytes per second over the last 5 s, both directions.

    `transport` of the newest tunnel: "lane" or "quic"; empty before the first.
    """

    sent: int
    received: int
    rate: int
    transport: str


@dataclass(slots=True)
class _Count:
    """Running totals for `Traffic`."""

    meter: RateMeter
    sent: int = 0
    received: int = 0
    transport: str = ""


@dataclass(slots=True)
class _Lease:
    admissions: dict[TunnelUse, Admission] = field(default_factory=dict)
    listeners: list[asyncio.Server] = field(default_factory=list)
    pipes: set[PipeEnd] = field(default_factory=set)
    ready: dict[NodeId, asyncio.Task[PipeEnd | None]] = field(default_factory=dict)
    counts: dict[NodeId, _Count] = field(default_factory=dict)

    def open(self) -> int:
        """Number of open tunnels."""
        self.pipes = {pipe for pipe in self.pipes if pipe.transport is not None}
        return len(self.pipes)


@dataclass(frozen=True, slots=True)
class _Preconnected:
    """A tunnel without a header yet, and the loop's time at which it was opened."""

    end: PipeEnd
    opened: float


class TunnelNetwork(Protocol):
    """Opens tunnels to other nodes (`tunnels.Tunnels`)."""

    async def open(
        self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]
    ) -> asyncio.BaseProtocol:
        """Open a tunnel of that kind to `peer`. Raises MeshError."""

    def serve(self, kind: StreamKind, factory: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """Serve tunnels of that kind that peers open with `factory(peer)`."""


class RpcTunnels:
    """RPC tunnels of all leases that this node holds, as host or worker."""

    def __init__(self, mesh: TunnelNetwork, clock: Clock = time.monotonic) -> None:
        self._mesh = mesh
        self._clock = clock
        self._owner = Owner("rpc tunnels")
        self._leases: dict[LeaseKey, _Lease] = {}
        self._preconnected: dict[NodeId, asyncio.Task[_Preconnected | None]] = {}
        mesh.serve(StreamKind.RPC_TUNNEL, self._serve)

    def admit(self, lease: LeaseKey, use: TunnelUse, peers: Iterable[NodeId], path: Path) -> None:
        """Join tunnels of `peers` for `lease` and that use to the Unix socket at `path`."""
        self._leases.setdefault(lease, _Lease()).admissions[use] = Admission(frozenset(peers), path)

    def preconnect(self, peer: NodeId) -> None:
        """Open a tunnel to `peer` for a lease that is about to be proposed; its header is sent when it is used."""
        self._drop(self._preconnected.pop(peer, None))
        self._preconnected[peer] = self._owner.start(self._preconnect(peer), f"rpc tunnel to {short(peer)}")

    async def listen(
        self,
        lease: LeaseKey,
        use: TunnelUse,
        peer: NodeId,
        path: Path,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """Forward connections to the Unix socket at `path` to `peer`, for `lease` and that use. Raises OSError.

        A tunnel for commands is opened at once, so that the worker's first bytes are here when the engine connects.
        While the lease is held, `on_failure` is called for each tunnel that cannot be opened or that the peer ends.
        """
        held = self._leases.setdefault(lease, _Lease())

        def failed() -> None:
            if on_failure is not None and self._leases.get(lease) is held:
                on_failure()

        def accepted(near: PipeEnd) -> None:
            self._owner.start(self._lead(held, lease, use, peer, near, failed), f"rpc tunnel to {short(peer)}")

        def accept() -> asyncio.Protocol:
            return PipeEnd(lambda count: self._sent(held, peer, count), accepted)

        held.listeners.append(await asyncio.get_running_loop().create_unix_server(accept, str(path)))
        if use is TunnelUse.COMMANDS:
            making = self._make_ready(held, lease, use, peer, failed)
            held.ready[peer] = self._owner.start(making, f"rpc tunnel to {short(peer)}")

    def revoke(self, lease: LeaseKey) -> None:
        """End a lease: close its tunnels and listeners; admit no more."""
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

    def traffic(self, lease: LeaseKey) -> dict[NodeId, Traffic]:
        """Traffic of the lease per peer."""
        held = self._leases.get(lease)
        counts, now = held.counts if held is not None else {}, self._clock()
        return {p: Traffic(c.sent, c.received, round(c.meter.rate(now)), c.transport) for p, c in counts.items()}

    async def close(self) -> None:
        """End all leases and tasks."""
        for lease in list(self._leases):
            self.revoke(lease)
        for opening in self._preconnected.values():
            self._drop(opening)
        await self._owner.close()

    # -- out

    async def _lead(
        self,
        held: _Lease,
        lease: LeaseKey,
        use: TunnelUse,
        peer: NodeId,
        near: PipeEnd,
        on_failure: Callable[[], None],
    ) -> None:
        """Join a new connection of the engine to a tunnel."""
        try:
            far = await self._ready(held, peer) or await self._make(held, lease, use, peer, on_failure)
        except (MeshError, OSError) as error:
            log.warning("RPC tunnel to node %s failed: %s", short(peer), error)
            near.close()
            on_failure()
            return
        if far.transport is None or near.transport is None or self._leases.get(lease) is not held:
            far.close()
            near.close()
            return
        self._join(held, peer, near, far)

    async def _make(
        self, held: _Lease, lease: LeaseKey, use: TunnelUse, peer: NodeId, on_failure: Callable[[], None]
    ) -> PipeEnd:
        """A tunnel with its header sent. Raises MeshError and OSError."""
        far = await self._take_preconnected(peer) or await self._open(peer)
        far.assign(lambda count: self._received(held, peer, count), on_failure)
        if far.transport is not None:
            far.transport.write(HEADER.pack(*lease, use))
        return far

    async def _open(self, peer: NodeId) -> PipeEnd:
        """A tunnel without a header. Raises MeshError and OSError."""
        far = PipeEnd(lambda count: None)
        await self._mesh.open(peer, StreamKind.RPC_TUNNEL, lambda: far)
        return far

    async def _preconnect(self, peer: NodeId) -> _Preconnected | None:
        try:
            far = await self._open(peer)
        except (MeshError, OSError):
            return None  # `_lead` tries again and reports the error
        return _Preconnected(far, asyncio.get_running_loop().time())

    async def _take_preconnected(self, peer: NodeId) -> PipeEnd | None:
        opening = self._preconnected.pop(peer, None)
        found = await opening if opening is not None else None
        if found is None or not found.end.is_open():
            return None
        if asyncio.get_running_loop().time() - found.opened <= PRECONNECT_SECONDS:
            return found.end
        found.end.close()
        return None

    def _drop(self, opening: asyncio.Task[_Preconnected | None] | None) -> None:
        """Close a preconnected tunnel that is not needed."""
        if opening is None:
            return
        if not opening.done():
            opening.cancel()
        elif not opening.cancelled() and (opened := opening.result()) is not None:
            opened.end.close()

    async def _make_ready(
        self, held: _Lease, lease: LeaseKey, use: TunnelUse, peer: NodeId, on_failure: Callable[[], None]
    ) -> PipeEnd | None:
        try:
            far = await self._make(held, lease, use, peer, on_failure)
        except (MeshError, OSError):
            return None  # `_lead` tries again and reports the error
        if self._leases.get(lease) is not held:
            far.close()
            return None
        return far

    async def _ready(self, held: _Lease, peer: NodeId) -> PipeEnd | None:
        making = held.ready.pop(peer, None)
        found = await making if making is not None else None
        return found if found is not None and found.is_open() else None

    # -- in

    def _serve(self, peer: NodeId) -> asyncio.BaseProtocol:
        return InboundTunnel(lambda inbound, header: self._admitted(peer, inbound, header))

    def _admitted(self, peer: NodeId, inbound: InboundTunnel, header: bytes) -> None:
        session, generation, use = HEADER.unpack(header)
        held = self._leases.get((session, generation))
        admission = None if held is None else held.admissions.get(use)
        if held is None or admission is None or peer not in admission.peers or held.open() >= MAX_CONNECTIONS:
            log.warning("refused an RPC tunnel of node %s: no lease admits it", short(peer))
            inbound.close()
            return
        inbound.assign(lambda count: self._received(held, peer, count))
        self._owner.start(self._connect_engine(held, peer, inbound, admission.path), f"rpc tunnel of {short(peer)}")

    async def _connect_engine(self, held: _Lease, peer: NodeId, inbound: InboundTunnel, path: Path) -> None:
        near = PipeEnd(lambda count: self._sent(held, peer, count))
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: near, str(path))
        except OSError as error:
            log.warning("cannot connect to the rpc-server: %s", error)
            inbound.close()
            return
        if inbound.transport is None or not any(held is lease for lease in self._leases.values()):
            near.close()
            inbound.close()
            return
        self._join(held, peer, near, inbound)

    # -- both

    def _join(self, held: _Lease, peer: NodeId, near: PipeEnd, far: PipeEnd) -> None:
        self._count(held, peer).transport = far.transport_name()
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
