"""Upload and download of model files between this node and the other nodes of its mesh.

Only nodes of the mesh get files, not clients. While this node's engine works, uploads are limited to `BUSY_RATE`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import NodeId, Role, short
from meshllm.models.hub.manifest import Manifest
from meshllm.models.p2p.downloader import SwarmPeer
from meshllm.models.p2p.model_lookup import find
from meshllm.models.p2p.seed_index import StoreSeedIndex
from meshllm.models.p2p.seeder import Seeder
from meshllm.models.p2p.share_policy import Share, SharePolicy
from meshllm.models.p2p.swarm import Swarm, SwarmSource
from meshllm.net.base import StreamKind
from meshllm.wire.mesh import files as w

if TYPE_CHECKING:
    from meshllm.daemon.mesh_session import MeshSession
    from meshllm.models.catalog.entry import Wanted
    from meshllm.models.library.store import Store
    from meshllm.web.console.status import SharingStatus

# Upload limit in bytes per second while this node's engine works. Measured on 2 cores: this rate takes 1.5 % of one
# core, twice the rate 2.8 %. The engine's threads wait for each other, so that an interruption of one delays all, by a
# few times its own length; at most a tenth of the engine's speed may be lost.
BUSY_RATE: Final = 8e6
# Peers asked for a model that they do not list: all nodes of a small mesh, some of a large one.
MAX_UNLISTED_PEERS: Final = 24
MAX_HOLDERS: Final = 48


class FileSharing:
    """Uploads and downloads model files. `session` opens tunnels to peers; `working`: whether the engine works."""

    def __init__(
        self,
        session: MeshSession,
        store: Store,
        working: Callable[[], bool],
        *,
        share: Share = Share.KNOWN,
        rate: float | None = None,
        on_digest: Callable[[], None] = lambda: None,
    ) -> None:
        """`share`: what to upload; `rate`: upload limit in bytes per second, None for no limit; `on_digest` is called
        after each file that was hashed."""
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._working = working
        self._policy = SharePolicy(share, store, self._running)
        self._limit = rate
        self._index = StoreSeedIndex(store, working, self._policy, on_digest)
        self._seeder = Seeder(self._index, self._rate)
        self._swarm = Swarm(self)
        self._view: MeshView | None = None
        self._waiting: list[asyncio.Future[None]] = []
        session.serve(StreamKind.FILES, self._serve)

    async def close(self) -> None:
        """End all transfers."""
        await self._seeder.close()
        await self._index.close()

    def publish(self, view: MeshView | None) -> None:
        """Take the newest view of the mesh."""
        self._view = view
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # -- download

    def source(self, model: str) -> SwarmSource:
        """The mesh as a source of the files of `model`."""
        return self._swarm.source(model)

    async def find(self, name: str, sha256: str, tell: Callable[[str], None], *, owned_only: bool = False) -> Manifest:
        """Ask the mesh for the manifest of a model that was requested here; `owned_only`: the owner's machines alone.
        Raises UnknownModel, AmbiguousModel."""

        def asks(peer: SwarmPeer) -> bool:
            return not owned_only or peer.id in self._owned()

        return await find(self, name, sha256=sha256, ban=self._swarm.ban, tell=tell, asks=asks)

    def _owned(self) -> set[str]:
        """The ids of the owner's machines in the mesh."""
        return {peer.node.hex() for peer in (self._view.peers if self._view is not None else ()) if peer.owned}

    def holders(self, model: str) -> Sequence[SwarmPeer]:
        """Peers to ask for the model: first those that list it, linked ones first; then others."""
        peers = [peer for peer in (self._view.peers if self._view is not None else ()) if _reachable(peer)]
        listing = [peer for peer in peers if _lists(peer, model)]
        others = [peer for peer in peers if not _lists(peer, model)]
        chosen = sorted(listing, key=_distance) + sorted(others, key=_distance)[:MAX_UNLISTED_PEERS]
        return [SwarmPeer(peer.node.hex(), peer.record.name or short(peer.node)) for peer in chosen[:MAX_HOLDERS]]

    async def open(self, peer: str, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Open a file tunnel to a peer. Raises MeshError."""
        await self._session.open(NodeId(bytes.fromhex(peer)), StreamKind.FILES, factory)

    async def changed(self) -> None:
        """Wait for the next change of the mesh."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    @property
    def settling(self) -> bool:
        """Whether the join is under way."""
        return self._view is None or self._view.settling

    # -- upload

    def _serve(self, peer: NodeId) -> asyncio.BaseProtocol:
        # Clients serve no models and need no files.
        if self._policy.share is Share.NONE or self._session.role_of(peer) is not Role.NODE:
            return _Refusing(w.FileRefusalReason.NOT_SHARED)
        return self._seeder.serve(peer.hex())

    def _running(self) -> frozenset[str]:
        """The models that the mesh runs or that the owner's machines ask for: not those that others only ask for, who
        could find out what is on this disk by that."""
        view = self._view
        if view is None:
            return frozenset()
        names = {served.name for peer in view.peers for served in peer.record.serves}
        names.update(wanted for peer in view.peers if peer.owned for wanted in peer.record.wants)
        if (own := view.record) is not None:
            names |= {served.name for served in own.serves} | set(own.wants) | {each.model for each in own.splits}
        return frozenset(names)

    def allows(self, found: Mapping[str, Wanted]) -> tuple[str, ...]:
        """The names of models on this disk that other nodes may learn. Blocks."""
        return tuple(name for name, source in found.items() if self._policy.allows_model(name, source))

    def check(self, paths: Sequence[Path]) -> None:
        """Hash files that have a name of the catalogue, before they count as that model. From any thread."""
        if paths:
            self._loop.call_soon_threadsafe(self._index.check, paths)

    def transferred(self) -> tuple[int, int]:
        """Bytes of model files sent to peers and received from them since the start."""
        return self._seeder.uploaded_bytes, self._swarm.downloaded_bytes

    def _rate(self) -> float | None:
        if not self._working():
            return self._limit
        return BUSY_RATE if self._limit is None else min(BUSY_RATE, self._limit)

    # -- status

    def status(self) -> SharingStatus:
        """Current uploads and downloads."""
        from meshllm.web.console.status import BannedStatus, CheckStatus, SharingStatus, TransferStatus
        from meshllm.web.console.status_model import transport_kind

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
            upload_enabled=self._policy.share is not Share.NONE,
            upload_limit=None if limit is None else round(limit),
            uploaded_bytes=self._seeder.uploaded_bytes,
            uploads=uploads,
            downloads=downloads,
            banned=banned,
            checks=[CheckStatus(file=path.name, percent=percent) for path, percent in self._index.reading().items()],
        )


class _Refusing(asyncio.Protocol):
    """Refuses the first request with a reason and closes the tunnel."""

    def __init__(self, reason: w.FileRefusalReason) -> None:
        self._answer = w.encode_answer(w.FileRefusal(reason))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._answer)
            self._transport.close()


def _reachable(peer: PeerView) -> bool:
    return peer.linked or peer.status is PeerStatus.ALIVE


def _lists(peer: PeerView, model: str) -> bool:
    record = peer.record
    return model in record.on_disk or any(served.name == model for served in record.serves)


def _distance(peer: PeerView) -> tuple[bool, float, bytes]:
    return (not peer.linked, peer.rtt if peer.rtt is not None else float("inf"), peer.node)
