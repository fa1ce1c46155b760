"""One file, while it is taken from peers.

Law: a chunk is only as good as the giver that answers for it, until whoever follows the file (`checking.follow`) has
come to it; a giver whose chunk is refuted by the list that it vouches for is asked no more. What is under way is
bounded by the number of givers, and its memory is used again. What goes wrong with one giver is over as soon as it is
seen, and what that one was to bring is free for the others at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from meshllm.errors import BadMessage, DownloadFailed, LinkClosed, MeshError
from meshllm.models.p2p.peer_connection import PeerConnection
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.models.transfer.prefix_hash import digest_of
from meshllm.tasks import Owner
from meshllm.util.backoff import backoff
from meshllm.util.rate_meter import RateMeter
from meshllm.util.threads import StopSignal, in_thread
from meshllm.wire.mesh import files as w

# Peers a file is taken from at once: more than fill any line; each costs OUTSTANDING chunks of memory.
MAX_GIVERS: Final = 6
# Chunks asked of one peer at a time: one is checked, one is coming, one is being read by the giver.
OUTSTANDING: Final = 3
# Givers that answer within so many seconds of the first are heard before a list of digests is chosen.
COUNCIL_SECONDS: Final = 0.5
# Who has not got the file is asked again after so many seconds: it may be fetching it too.
ASK_AGAIN_SECONDS: Final = 30.0
# Who says of the file what others do not is asked again after so many: they may be gone by then.
OTHERWISE_SECONDS: Final = 3.0
# Who cannot be reached, or breaks off, is tried again after some seconds, doubled each time up to the last number.
RETRY_SECONDS, RETRY_MOST_SECONDS = 1.0, 30.0
# As long as there is somebody else, it goes on without those who have failed so often in a row.
MOST_FAILURES: Final = 4
# Where nobody has the file, somebody may still turn up with it as long as it arrives from elsewhere (seconds).
LONELY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class SwarmPeer:
    """A node of the mesh: its id in hexadecimal, and what people call it."""

    id: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.id[:10]})"


class PeerNetwork(Protocol):
    """What taking needs of the mesh."""

    def holders(self, model: str) -> Sequence[SwarmPeer]:
        """Who may have the model's files, likely ones first; a bounded number."""

    async def open(self, peer: str, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """A tunnel for files to a peer, with a protocol of `factory` on it. Raises MeshError, within some seconds."""

    async def changed(self) -> None:
        """Return when `holders` may say something else."""

    @property
    def settling(self) -> bool:
        """Whether this node is still looking for its mesh."""


class DigestLists:
    """What givers say the digests of a file's chunks are. Those that say the same vouch for each other."""

    def __init__(self) -> None:
        self.chosen: bytes | None = None
        self._vouchers: dict[bytes, dict[SwarmPeer, None]] = {}
        self._present: dict[SwarmPeer, bytes] = {}

    def add(self, peer: SwarmPeer, digests: bytes) -> None:
        """`peer`, who is there to give, says that these are they."""
        self._vouchers.setdefault(digests, {})[peer] = None
        self._present[peer] = digests

    def vouches(self, peer: SwarmPeer) -> bool:
        """Whether `peer` said that the chosen one is right."""
        return self.chosen is not None and peer in self._vouchers.get(self.chosen, ())

    def left(self, peer: SwarmPeer) -> None:
        """`peer` gives nothing for now; what it said stands."""
        self._present.pop(peer, None)

    def choose(self) -> bytes | None:
        """The list most givers vouch for, of equal ones the first. It stays chosen as long as one of them is there."""
        present = list(self._present.values())
        if present and (self.chosen is None or self.chosen not in present):
            self.chosen = max(present, key=present.count)
        return self.chosen

    def peer(self, identity: str) -> SwarmPeer | None:
        """Who of those that vouch for something has that id."""
        known = (peer for vouchers in self._vouchers.values() for peer in vouchers)
        return next((peer for peer in known if peer.id == identity), None)

    def refute(self, peer: SwarmPeer) -> None:
        """What `peer` says counts no more. A list that nobody else has vouched for is forgotten."""
        self._present.pop(peer, None)
        for vouchers in self._vouchers.values():
            vouchers.pop(peer, None)
        self._vouchers = {digests: vouchers for digests, vouchers in self._vouchers.items() if vouchers}
        if self.chosen not in self._vouchers:
            self._replace()

    def drop(self) -> list[SwarmPeer]:
        """Not the chosen one. Who ever vouched for it."""
        vouchers = list(self._vouchers.pop(self.chosen, {})) if self.chosen is not None else []
        for peer in vouchers:
            self._present.pop(peer, None)
        self._replace()
        return vouchers

    def _replace(self) -> None:
        """Choose another one, of givers that are there if possible."""
        self.chosen = None
        if self.choose() is None:
            self.chosen = max(self._vouchers, key=lambda digests: len(self._vouchers[digests]), default=None)


class DownloadObserver(Protocol):
    """Who hears what becomes of givers."""

    def is_banned(self, peer: SwarmPeer) -> bool:
        """Whether nothing is to be taken from it."""

    def ban(self, peer: SwarmPeer, reason: str) -> None:
        """Take nothing more from `peer`."""

    def began(self, peer: SwarmPeer, model: str, line: PeerConnection, meter: RateMeter) -> None:
        """Something may come by that line from now on."""

    def ended(self, line: PeerConnection) -> None:
        """Nothing more."""


@dataclass(slots=True)
class _Standing:
    """How it went with a peer so far: when it may be asked again, and what was the matter."""

    at: float = 0.0
    failures: int = 0
    reason: str = ""
    hopeful: bool = True


class _NotNow(Exception):
    """A giver that is in order but does not give, and when to ask again (seconds; 0: it has nothing)."""

    def __init__(self, reason: str, wait: float) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class SwarmDownload:
    """Takes chunks for one assembly from `holders` of a model."""

    def __init__(
        self, mesh: PeerNetwork, watch: DownloadObserver, model: str, assembly: PartialFile, lists: DigestLists
    ) -> None:
        loop = asyncio.get_running_loop()
        self._mesh = mesh
        self._watch = watch
        self._model = model
        self._assembly = assembly
        self._lists = lists
        self._clock = loop.time
        # Whoever starts a task here waits for it, and hears of its errors.
        self._owner = Owner(f"take {model}", awaited=True)
        self._standing: dict[str, _Standing] = {}
        self._from: dict[asyncio.Task[None], SwarmPeer] = {}
        self._lines: dict[SwarmPeer, PeerConnection] = {}
        self._unheard = 0
        self._council: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._arrived = assembly.arrived
        self._lonely_since = float("-inf")

    async def run(self) -> None:
        """Until the file is complete. Raises OSError; and DownloadFailed once there is nobody left who could give, and
        nothing has arrived from anywhere else for LONELY_SECONDS."""
        news: asyncio.Task[None] | None = None
        self._judge()
        while not self._assembly.complete:
            if news is None or news.done():
                news = self._owner.start(self._mesh.changed(), "news of the mesh")
            holders = [peer for peer in self._mesh.holders(self._model) if not self._watch.is_banned(peer)]
            self._begin(holders)
            if not self._is_hopeful(holders):
                raise DownloadFailed(self._why_nobody())
            arrivals = self._owner.start(self._assembly.changed(), "arrivals")
            until = min((self._standing[peer.id].at for peer in self._resting(holders)), default=float("inf"))
            pause = None if until == float("inf") else max(0.0, until - self._clock())
            await asyncio.wait([news, arrivals, *self._from], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            arrivals.cancel()
            self._judge()
            for task in [task for task in self._from if task.done()]:
                self._settle(self._from.pop(task), task)

    async def close(self) -> None:
        """Hang up on everybody."""
        if self._timer is not None:
            self._timer.cancel()
        await self._owner.close()

    # -- whom to ask

    def _begin(self, holders: Sequence[SwarmPeer]) -> None:
        """Ask whoever is not being asked and may be asked now."""
        now = self._clock()
        for peer in self._resting(holders):
            if len(self._from) < MAX_GIVERS and self._standing[peer.id].at <= now:
                self._unheard += 1
                self._from[self._owner.start(self._take_from(peer), f"from {peer}")] = peer

    def _resting(self, holders: Sequence[SwarmPeer]) -> list[SwarmPeer]:
        """Those that are not being asked; none if enough others are."""
        busy = {peer.id for peer in self._from.values()}
        for peer in holders:
            self._standing.setdefault(peer.id, _Standing())
        return [peer for peer in holders if peer.id not in busy] if len(busy) < MAX_GIVERS else []

    def _is_hopeful(self, holders: Sequence[SwarmPeer]) -> bool:
        """Whether it is worth waiting: somebody gives, may give soon, or may turn up; or something arrives anyway."""
        now = self._clock()
        if self._assembly.arrived != self._arrived:
            self._arrived, self._lonely_since = self._assembly.arrived, now
        hope = self._from or self._mesh.settling or any(self._standing[peer.id].hopeful for peer in holders)
        return bool(hope) or now - self._lonely_since < LONELY_SECONDS

    def _settle(self, peer: SwarmPeer, task: asyncio.Task[None]) -> None:
        """Remember how it ended with a peer. Raises what is not the peer's doing."""
        standing, error, now = self._standing[peer.id], task.exception(), self._clock()
        standing.hopeful = True
        match error:
            case None:
                standing.at = now + RETRY_SECONDS
                standing.failures = 0
            case _NotNow():
                standing.at, standing.hopeful = now + (error.wait or ASK_AGAIN_SECONDS), error.wait > 0
                standing.reason = error.reason
            case BadMessage():
                self._watch.ban(peer, error.message)
                standing.reason, standing.hopeful = error.message, False
            case MeshError():
                standing.at = now + backoff(standing.failures, base=RETRY_SECONDS, cap=RETRY_MOST_SECONDS)
                standing.failures += 1
                standing.reason, standing.hopeful = error.message, standing.failures < MOST_FAILURES
            case _:
                raise error

    def _judge(self) -> None:
        """Take nothing more from those whose chunks are not what they vouched for; perhaps others say otherwise."""
        for chunk, giver in self._assembly.accused():
            peer = self._lists.peer(giver)
            if peer is None or not self._lists.vouches(peer):
                continue
            error = BadMessage(f"chunk {chunk} is not what it said that it would be")
            self._watch.ban(peer, error.message)
            self._standing.setdefault(peer.id, _Standing()).reason = error.message
            if (line := self._lines.get(peer)) is not None:
                line.end(error)
            self._lists.refute(peer)
            self._assembly.expected = self._lists.chosen

    def _why_nobody(self) -> str:
        reasons = {standing.reason for standing in self._standing.values() if standing.reason}
        if not reasons:
            return "No other node of the mesh could be asked for it."
        return f"No node of the mesh gives it: {'; '.join(sorted(reasons))[:500]}"

    # -- one giver

    async def _take_from(self, peer: SwarmPeer) -> None:
        """Raises MeshError, _NotNow and OSError."""
        meter = RateMeter(self._clock())
        line = PeerConnection(lambda count: meter.add(count, self._clock()))
        heard = False
        self._watch.began(peer, self._model, line, meter)
        self._lines[peer] = line
        try:
            await self._mesh.open(peer.id, lambda: line)
            listing = await line.have(self._assembly.sha256, self._assembly.count)
            digests = self._checked(listing)
            self._lists.add(peer, digests)
            heard = True
            self._heard()
            await asyncio.shield(self._council)
            self._assembly.expected = self._lists.choose()
            if self._lists.chosen != digests:
                raise _NotNow("what it says of the file is not what others say", OTHERWISE_SECONDS)
            await self._work(line, peer)
        finally:
            if not heard:
                self._heard()
            self._lists.left(peer)
            self._lines.pop(peer, None)
            line.end(LinkClosed("It was hung up."))
            self._watch.ended(line)

    def _checked(self, listing: w.ChunkListing | w.FileRefusal) -> bytes:
        """The digests of a listing that can be one of this file. Raises BadMessage and _NotNow."""
        if isinstance(listing, w.FileRefusal):
            raise _refused(listing)
        if listing.size != self._assembly.size:
            raise BadMessage("it says that the file has another size")
        if listing.chunk_bytes != self._assembly.chunk_bytes:
            raise _NotNow("it cuts files in another way; it is of another version", 0)
        if digest_of(listing.digests, self._assembly.count - 1).hex() != self._assembly.sha256:
            raise BadMessage("what it says of the file's chunks does not end with the file's own digest")
        return listing.digests

    def _heard(self) -> None:
        """One of those who were asked has answered, or never will. Once enough have, a list is chosen."""
        self._unheard -= 1
        if not self._unheard:
            self._convene()
        elif self._timer is None and not self._council.done():
            self._timer = asyncio.get_running_loop().call_later(COUNCIL_SECONDS, self._convene)

    def _convene(self) -> None:
        self._timer = None
        if self._lists.choose() is not None and not self._council.done():
            self._council.set_result(None)

    async def _work(self, line: PeerConnection, peer: SwarmPeer) -> None:
        """Take chunks by that line, several at a time, until there are none left to take."""
        asked: set[int] = set()
        workers = [
            self._owner.start(self._fetch_all(line, peer, asked), f"{peer} {number}") for number in range(OUTSTANDING)
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _fetch_all(self, line: PeerConnection, peer: SwarmPeer, asked: set[int]) -> None:
        assembly = self._assembly
        while not assembly.complete:
            # What this line is busy with already is not to be taken over by it.
            piece = assembly.claim(str(peer), 1, lambda chunk: chunk not in asked)
            if piece is None:
                await assembly.changed()
                continue
            try:
                while piece.held and piece.position < piece.end:
                    chunk = piece.position // assembly.chunk_bytes
                    asked.add(chunk)
                    try:
                        await self._fetch(line, peer, chunk)
                    finally:
                        asked.discard(chunk)
            finally:
                assembly.give_back(piece)

    async def _fetch(self, line: PeerConnection, peer: SwarmPeer, chunk: int) -> None:
        """Take a chunk and write it. Raises MeshError, _NotNow and OSError."""
        begin, end = self._assembly.span(chunk)
        data = self._assembly.rooms.take()[: end - begin]
        if (refusal := await line.get(chunk, data)) is not None:
            raise _refused(refusal)

        def keep(stop: StopSignal) -> None:
            with stop:
                self._assembly.put(str(peer), chunk, data, peer.id)

        await in_thread(keep, "write-chunk")


def _refused(refusal: w.FileRefusal) -> _NotNow:
    words = {
        w.FileRefusalReason.ABSENT: "it does not have the file",
        w.FileRefusalReason.PREPARING: f"it is preparing the file ({refusal.percent} %)",
        w.FileRefusalReason.NOT_SHARED: "it shares no models",
        w.FileRefusalReason.BUSY: "it gives to as many others as it can",
        w.FileRefusalReason.CHANGED: "the file has changed there",
        w.FileRefusalReason.NOT_UNDERSTOOD: "it is of another version",
    }
    return _NotNow(words[refusal.reason], refusal.wait)
