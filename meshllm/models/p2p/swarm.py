"""Downloads from peers: several peers at once, chunk by chunk.

Invariants: a file is identified by the sha256 that is known beforehand, which decides whether it is right. Digests of
chunks are claims of peers. A peer whose chunk does not match its claim, or whose claim the whole file disproves, is
banned until the program ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from meshllm.models.p2p.downloader import DigestLists, PeerNetwork, SwarmDownload, SwarmPeer
from meshllm.models.p2p.peer_connection import PeerConnection
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.util.rate_meter import RateMeter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PeerDownload:
    """A download from one peer: model, bytes received, current bytes/s; `transport` is "lane" or "quic"."""

    peer: SwarmPeer
    model: str
    received: int
    rate: float
    transport: str


class Swarm:
    """All downloads of this node from peers, and the peers it has banned."""

    def __init__(self, mesh: PeerNetwork, clock: Callable[[], float] | None = None) -> None:
        self.mesh = mesh
        self.clock = clock or asyncio.get_running_loop().time
        self.banned: dict[SwarmPeer, str] = {}
        """The reason of each ban."""
        self._banned_ids: set[str] = set()
        self._ended_bytes = 0
        self._connections: dict[PeerConnection, tuple[SwarmPeer, str, RateMeter]] = {}

    def source(self, model: str) -> SwarmSource:
        """Peers as a source for the files of `model`."""
        return SwarmSource(self, model)

    def downloads(self) -> list[PeerDownload]:
        """The downloads in progress."""
        now = self.clock()
        found = [(*facts, connection.transport) for connection, facts in self._connections.items()]
        return [
            PeerDownload(peer, model, meter.total, meter.rate(now), transport)
            for peer, model, meter, transport in found
            if transport
        ]

    def connection_opened(self, peer: SwarmPeer, model: str, connection: PeerConnection, meter: RateMeter) -> None:
        """A connection to `peer` was opened; `meter` counts the bytes it receives."""
        self._connections[connection] = (peer, model, meter)

    def connection_closed(self, connection: PeerConnection) -> None:
        """The connection was closed."""
        if (facts := self._connections.pop(connection, None)) is not None:
            self._ended_bytes += facts[2].total

    @property
    def downloaded_bytes(self) -> int:
        """Bytes received from peers since the start."""
        return self._ended_bytes + sum(meter.total for _, _, meter in self._connections.values())

    def ban(self, peer: SwarmPeer, reason: str) -> None:
        """Download nothing more from `peer`."""
        if peer.id not in self._banned_ids:
            self._banned_ids.add(peer.id)
            self.banned[peer] = reason
            log.warning("Banned %s as a source of model files: %s", peer, reason)

    def is_banned(self, peer: SwarmPeer) -> bool:
        """Whether `peer` is banned."""
        return peer.id in self._banned_ids


class SwarmSource:
    """Peers as a source of one model's files."""

    def __init__(self, swarm: Swarm, model: str) -> None:
        self._swarm = swarm
        self._model = model
        self._lists: dict[str, DigestLists] = {}

    async def download_into(self, partial: PartialFile) -> None:
        """Download chunks until the file is complete. Raises DownloadFailed once no peer can serve it, and OSError.

        When cancelled, nothing is left running.
        """
        lists = self._lists.setdefault(partial.sha256, DigestLists())
        download = SwarmDownload(self._swarm.mesh, self._swarm, self._model, partial, lists)
        try:
            await download.run()
        finally:
            await download.close()

    def reject_claims(self, partial: PartialFile) -> bool:
        """Ban the peers that claimed `partial.expected`, which the file's sha256 disproves.

        Returns whether other peers claim another digest list; it is then in `partial.expected`.
        """
        lists = self._lists.get(partial.sha256)
        if lists is None or lists.chosen is None:
            return False
        for peer in lists.reject_chosen():
            self._swarm.ban(peer, f"its chunk digests of {self._model} do not match the file")
        partial.expected = lists.chosen
        return lists.chosen is not None
