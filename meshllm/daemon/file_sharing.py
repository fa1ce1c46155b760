"""Model files between this node and its mesh: whom to ask for them, who may have them, and how fast.

Law: files are given to nodes of the mesh alone, and never at the cost of this node's answers: while its engine works,
giving slows down to what cannot be felt. Nothing is fetched that nobody here asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import NodeId, Role, short
from meshllm.models.hub.manifest import Manifest
from meshllm.models.p2p.downloader import SwarmPeer
from meshllm.models.p2p.model_lookup import find
from meshllm.models.p2p.seed_index import StoreSeedIndex
from meshllm.models.p2p.seeder import Seeder
from meshllm.models.p2p.swarm import Swarm, SwarmSource
from meshllm.net.base import StreamKind
from meshllm.web.console.status import BannedStatus, SharingStatus, TransferStatus
from meshllm.web.console.status_model import transport_kind
from meshllm.wire.mesh import files as w

if TYPE_CHECKING:
    from meshllm.daemon.mesh_session import MeshSession
    from meshllm.models.library.store import Store

# Bytes per second that are given away while this node's own engine works. Measured on 2 cores: giving so much takes
# 1.5 % of one, twice as much 2.8 %. The engine's threads wait for each other, so that what one of them loses all lose;
# to be interrupted costs a few times what the interruption takes, and no more than a tenth may be lost.
BUSY_RATE: Final = 8e6
# Peers that are asked for a model that none of them is known to have: a small mesh as a whole, of a large one a part.
MAX_UNLIKELY: Final = 24
MAX_HOLDERS: Final = 48


class FileSharing:
    """Gives and takes model files; `membership` leads to the peers, and `working` says whether the engine works."""

    def __init__(
        self,
        membership: MeshSession,
        store: Store,
        working: Callable[[], bool],
        *,
        share: bool = True,
        rate: float | None = None,
    ) -> None:
        """`share`: whether to give at all; `rate`: bytes per second that are given away at most, None for any."""
        self._membership = membership
        self._working = working
        self._share = share
        self._limit = rate
        self._index = StoreSeedIndex(store, working)
        self._seeder = Seeder(self._index, self._rate)
        self._swarm = Swarm(self)
        self._view: MeshView | None = None
        self._waiting: list[asyncio.Future[None]] = []
        membership.serve(StreamKind.FILES, self._serve)

    async def close(self) -> None:
        """Hang up on everybody."""
        await self._seeder.close()
        await self._index.close()

    def publish(self, view: MeshView | None) -> None:
        """What the core knows of the mesh now."""
        self._view = view
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # -- taking

    def source(self, model: str) -> SwarmSource:
        """The mesh as a source for the files of `model`."""
        return self._swarm.source(model)

    async def find(self, name: str, sha256: str, tell: Callable[[str], None]) -> Manifest:
        """What the mesh means by a name that somebody here has asked for. Raises UnknownModel, AmbiguousModel."""
        return await find(self, name, sha256=sha256, ban=self._swarm.ban, tell=tell)

    def holders(self, model: str) -> Sequence[SwarmPeer]:
        """Who serves the model or says that it is on its disk, linked ones first; then the others."""
        peers = [peer for peer in (self._view.peers if self._view is not None else ()) if _is_there(peer)]
        likely = [peer for peer in peers if _has(peer, model)]
        unlikely = [peer for peer in peers if not _has(peer, model)]
        chosen = sorted(likely, key=_distance) + sorted(unlikely, key=_distance)[:MAX_UNLIKELY]
        return [SwarmPeer(peer.node.hex(), peer.record.name or short(peer.node)) for peer in chosen[:MAX_HOLDERS]]

    async def open(self, peer: str, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """A tunnel for files to a peer. Raises MeshError."""
        await self._membership.open(NodeId(bytes.fromhex(peer)), StreamKind.FILES, factory)

    async def changed(self) -> None:
        """Return when the mesh has changed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    @property
    def settling(self) -> bool:
        """Whether this node is still looking for its mesh."""
        return self._view is None or self._view.settling

    # -- giving

    def _serve(self, peer: NodeId) -> asyncio.BaseProtocol:
        # Clients serve nothing, so that they have no use for a model's files.
        if not self._share or self._membership.role_of(peer) is not Role.NODE:
            return _Refusing(w.FileRefusalReason.NOT_SHARED)
        return self._seeder.serve(peer.hex())

    def transferred(self) -> tuple[int, int]:
        """Bytes of model files sent to peers and received from them since the start."""
        return self._seeder.uploaded_bytes, self._swarm.downloaded_bytes

    def _rate(self) -> float | None:
        if not self._working():
            return self._limit
        return BUSY_RATE if self._limit is None else min(BUSY_RATE, self._limit)

    # -- for people

    def status(self) -> SharingStatus:
        """Current uploads and downloads."""
        names = {} if self._view is None else {peer.node.hex(): peer.record.name for peer in self._view.peers}
        uploads = [
            TransferStatus(
                peer=given.peer,
                name=names.get(given.peer, ""),
                what=given.file,
                bytes=given.sent,
                rate=round(given.rate),
                transport=transport_kind(given.transport),
            )
            for given in self._seeder.uploads()
        ]
        downloads = [
            TransferStatus(
                peer=taken.peer.id,
                name=taken.peer.name,
                what=taken.model,
                bytes=taken.received,
                rate=round(taken.rate),
                transport=transport_kind(taken.transport),
            )
            for taken in self._swarm.downloads()
        ]
        banned = [
            BannedStatus(peer=peer.id, name=peer.name, reason=reason) for peer, reason in self._swarm.banned.items()
        ]
        limit = self._rate()
        return SharingStatus(
            upload_enabled=self._share,
            upload_limit=None if limit is None else round(limit),
            uploaded_bytes=self._seeder.uploaded_bytes,
            uploads=uploads,
            downloads=downloads,
            banned=banned,
        )


class _Refusing(asyncio.Protocol):
    """Answers whatever is asked with the same reason, once, and hangs up."""

    def __init__(self, reason: w.FileRefusalReason) -> None:
        self._answer = w.encode_answer(w.FileRefusal(reason))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._answer)
            self._transport.close()


def _is_there(peer: PeerView) -> bool:
    return peer.linked or peer.status is PeerStatus.ALIVE


def _has(peer: PeerView, model: str) -> bool:
    record = peer.record
    return model in record.on_disk or any(served.name == model for served in record.serves)


def _distance(peer: PeerView) -> tuple[bool, float, bytes]:
    return (not peer.linked, peer.rtt if peer.rtt is not None else float("inf"), peer.node)
