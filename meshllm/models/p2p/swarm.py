"""Taking files from peers: several at once, chunk by chunk, from whoever has them.

Law: only what was asked for is taken, and by what it is, not by who says so: the file's sha256 is known beforehand and
is the judge. What the sha256 is up to the end of each chunk, givers only claim. Whoever sends a chunk that does not fit
its claim, or claimed what the whole file disproves, or talks nonsense, is taken from no more while this program runs,
and people are told. Whoever is slow, silent or gone costs time and nothing else.
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
    """What is taken from one peer: of which model, bytes, and bytes/s of late; `via` is "lane" or "quic"."""

    peer: SwarmPeer
    model: str
    received: int
    rate: float
    via: str


class Swarm:
    """All taking of this node: whom it trusts no more, and what is under way."""

    def __init__(self, mesh: PeerNetwork, clock: Callable[[], float] | None = None) -> None:
        self.mesh = mesh
        self.clock = clock or asyncio.get_running_loop().time
        self.banned: dict[SwarmPeer, str] = {}
        """Why, in words."""
        self._banned_ids: set[str] = set()
        self._ended_bytes = 0
        self._lines: dict[PeerConnection, tuple[SwarmPeer, str, RateMeter]] = {}

    def source(self, model: str) -> SwarmSource:
        """Peers as a source for the files of `model`."""
        return SwarmSource(self, model)

    def taken(self) -> list[PeerDownload]:
        """What is being taken now."""
        now = self.clock()
        found = [(*facts, line.via) for line, facts in self._lines.items()]
        return [
            PeerDownload(peer, model, meter.total, meter.rate(now), via) for peer, model, meter, via in found if via
        ]

    def began(self, peer: SwarmPeer, model: str, line: PeerConnection, meter: RateMeter) -> None:
        """Something may come by that line from now on."""
        self._lines[line] = (peer, model, meter)

    def ended(self, line: PeerConnection) -> None:
        """Nothing more."""
        if (facts := self._lines.pop(line, None)) is not None:
            self._ended_bytes += facts[2].total

    @property
    def downloaded_bytes(self) -> int:
        """Bytes received from peers since the start."""
        return self._ended_bytes + sum(meter.total for _, _, meter in self._lines.values())

    def ban(self, peer: SwarmPeer, reason: str) -> None:
        """Take nothing more from `peer`."""
        if peer.id not in self._banned_ids:
            self._banned_ids.add(peer.id)
            self.banned[peer] = reason
            log.warning("no files are taken from %s any more: %s", peer, reason)

    def is_banned(self, peer: SwarmPeer) -> bool:
        """Whether nothing is to be taken from it."""
        return peer.id in self._banned_ids


class SwarmSource:
    """Peers as a source of one model's files."""

    def __init__(self, swarm: Swarm, model: str) -> None:
        self._swarm = swarm
        self._model = model
        self._lists: dict[str, DigestLists] = {}

    async def feed(self, assembly: PartialFile) -> None:
        """Take chunks until the file is complete. Raises DownloadFailed once nobody is left who could give, and
        OSError. When cancelled, nothing is left running."""
        lists = self._lists.setdefault(assembly.sha256, DigestLists())
        taking = SwarmDownload(self._swarm.mesh, self._swarm, self._model, assembly, lists)
        try:
            await taking.run()
        finally:
            await taking.close()

    def disown(self, assembly: PartialFile) -> bool:
        """The file's sha256 is wrong although each chunk that somebody answers for fits what `expected` says of it:
        whoever vouched for that lied. False if nobody says otherwise."""
        lists = self._lists.get(assembly.sha256)
        if lists is None or lists.chosen is None:
            return False
        for peer in lists.drop():
            self._swarm.ban(peer, f"what it said of {self._model} is not true of the file")
        assembly.expected = lists.chosen
        return lists.chosen is not None
