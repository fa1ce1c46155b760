"""Downloads one file from peers.

Invariants: a chunk is right only once `hash_arriving` has accepted it; a peer whose chunk does not match the list that
it claims is banned; buffers are bounded by the number of peers; a failed peer's chunks are free at once.
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

# Peers used for one file at once, enough to fill any line; each costs MAX_OUTSTANDING chunks of memory.
MAX_SEEDERS: Final = 6
# Chunks requested from one peer at a time: one is hashed, one is received, one is read by the peer.
MAX_OUTSTANDING: Final = 3
# Seconds after the first reply in which further replies count before a digest list is chosen.
QUORUM_SECONDS: Final = 0.5
# Seconds before a peer without the file is asked again: it may be downloading it.
ASK_AGAIN_SECONDS: Final = 30.0
# Seconds before a peer with another digest list is asked again: the others may be gone by then.
DISAGREE_RETRY_SECONDS: Final = 3.0
# Seconds before a failed peer is tried again, doubled up to the second number.
RETRY_SECONDS, RETRY_MOST_SECONDS = 1.0, 30.0
# After this many failures in a row a peer is not waited for.
MAX_FAILURES: Final = 4
# Seconds without any arrival after which a download without a usable peer fails.
NO_PEER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class SwarmPeer:
    """A node of the mesh: node id in hexadecimal, and display name."""

    id: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.id[:10]})"


class PeerNetwork(Protocol):
    """The parts of the mesh that a download uses."""

    def holders(self, model: str) -> Sequence[SwarmPeer]:
        """Peers that may have the model's files, likely ones first; a bounded number."""

    async def open(self, peer: str, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Open a file tunnel to a peer with a protocol of `factory`. Raises MeshError within seconds."""

    async def changed(self) -> None:
        """Return when the result of `holders` may have changed."""

    @property
    def settling(self) -> bool:
        """Whether this node is still looking for its mesh."""


class DigestLists:
    """Digest lists of a file's chunks, as peers claim them; peers with equal lists support each other."""

    def __init__(self) -> None:
        self.chosen: bytes | None = None
        self._claimants: dict[bytes, dict[SwarmPeer, None]] = {}
        self._present: dict[SwarmPeer, bytes] = {}

    def add(self, peer: SwarmPeer, digests: bytes) -> None:
        """Add the list that the connected `peer` claims."""
        self._claimants.setdefault(digests, {})[peer] = None
        self._present[peer] = digests

    def claims(self, peer: SwarmPeer) -> bool:
        """Whether `peer` claims the chosen list."""
        return self.chosen is not None and peer in self._claimants.get(self.chosen, ())

    def remove_source(self, peer: SwarmPeer) -> None:
        """`peer` is disconnected; its claim stays."""
        self._present.pop(peer, None)

    def choose(self) -> bytes | None:
        """The list that most connected peers claim (the first of equal ones). It stays chosen while one of them is
        connected."""
        present = list(self._present.values())
        if present and (self.chosen is None or self.chosen not in present):
            self.chosen = max(present, key=present.count)
        return self.chosen

    def peer(self, identity: str) -> SwarmPeer | None:
        """The peer with that id, if it claims a list."""
        known = (peer for claimants in self._claimants.values() for peer in claimants)
        return next((peer for peer in known if peer.id == identity), None)

    def withdraw(self, peer: SwarmPeer) -> None:
        """Withdraw the claims of `peer`. A list without claimants is forgotten."""
        self._present.pop(peer, None)
        for claimants in self._claimants.values():
            claimants.pop(peer, None)
        self._claimants = {digests: claimants for digests, claimants in self._claimants.items() if claimants}
        if self.chosen not in self._claimants:
            self._replace()

    def reject_chosen(self) -> list[SwarmPeer]:
        """Reject the chosen list; returns the peers that claimed it."""
        claimants = list(self._claimants.pop(self.chosen, {})) if self.chosen is not None else []
        for peer in claimants:
            self._present.pop(peer, None)
        self._replace()
        return claimants

    def _replace(self) -> None:
        """Choose another list, preferably of connected peers."""
        self.chosen = None
        if self.choose() is None:
            self.chosen = max(self._claimants, key=lambda digests: len(self._claimants[digests]), default=None)


class DownloadObserver(Protocol):
    """Receives connections and bans of a download."""

    def is_banned(self, peer: SwarmPeer) -> bool:
        """Whether the peer is banned."""

    def ban(self, peer: SwarmPeer, reason: str) -> None:
        """Ban the peer: download nothing more from it."""

    def connection_opened(self, peer: SwarmPeer, model: str, connection: PeerConnection, meter: RateMeter) -> None:
        """A connection was opened; `meter` counts its bytes."""

    def connection_closed(self, connection: PeerConnection) -> None:
        """The connection was closed."""


@dataclass(slots=True)
class _PeerState:
    """The result of the last attempt with a peer, and the time of the next."""

    retry_at: float = 0.0
    failures: int = 0
    reason: str = ""
    may_continue: bool = True


class _TryLater(Exception):
    """The peer does not serve the file now; `wait`: seconds until it may (0: it does not have it)."""

    def __init__(self, reason: str, wait: float) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class SwarmDownload:
    """Downloads chunks of one partial file from `holders` of a model."""

    def __init__(
        self, network: PeerNetwork, observer: DownloadObserver, model: str, partial: PartialFile, lists: DigestLists
    ) -> None:
        loop = asyncio.get_running_loop()
        self._network = network
        self._observer = observer
        self._model = model
        self._partial = partial
        self._lists = lists
        self._clock = loop.time
        # The starter of each task awaits it and handles its errors.
        self._owner = Owner(f"download {model}", awaited=True)
        self._states: dict[str, _PeerState] = {}
        self._running: dict[asyncio.Task[None], SwarmPeer] = {}
        self._connections: dict[SwarmPeer, PeerConnection] = {}
        self._awaited_replies = 0
        self._quorum: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._arrived = partial.arrived
        self._last_arrival = float("-inf")

    async def run(self) -> None:
        """Download until the file is complete. Raises OSError; DownloadFailed once no peer is usable and nothing has
        arrived from other sources for NO_PEER_SECONDS."""
        news: asyncio.Task[None] | None = None
        self._ban_sources_of_wrong_chunks()
        while not self._partial.complete:
            if news is None or news.done():
                news = self._owner.start(self._network.changed(), "news of the mesh")
            holders = [peer for peer in self._network.holders(self._model) if not self._observer.is_banned(peer)]
            self._ask_peers(holders)
            if not self._can_continue(holders):
                raise DownloadFailed(self._failure_reason())
            arrivals = self._owner.start(self._partial.changed(), "arrivals")
            until = min((self._states[peer.id].retry_at for peer in self._idle_peers(holders)), default=float("inf"))
            pause = None if until == float("inf") else max(0.0, until - self._clock())
            await asyncio.wait([news, arrivals, *self._running], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            arrivals.cancel()
            self._ban_sources_of_wrong_chunks()
            for task in [task for task in self._running if task.done()]:
                self._record_result(self._running.pop(task), task)

    async def close(self) -> None:
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
        await self._owner.close()

    # -- choosing peers

    def _ask_peers(self, holders: Sequence[SwarmPeer]) -> None:
        """Connect to idle peers whose retry time has come."""
        now = self._clock()
        for peer in self._idle_peers(holders):
            if len(self._running) < MAX_SEEDERS and self._states[peer.id].retry_at <= now:
                self._awaited_replies += 1
                self._running[self._owner.start(self._download_from(peer), f"from {peer}")] = peer

    def _idle_peers(self, holders: Sequence[SwarmPeer]) -> list[SwarmPeer]:
        """Peers without a connection; none if MAX_SEEDERS are connected."""
        busy = {peer.id for peer in self._running.values()}
        for peer in holders:
            self._states.setdefault(peer.id, _PeerState())
        return [peer for peer in holders if peer.id not in busy] if len(busy) < MAX_SEEDERS else []

    def _can_continue(self, holders: Sequence[SwarmPeer]) -> bool:
        """Whether a peer is in use or may become usable, or data still arrives."""
        now = self._clock()
        if self._partial.arrived != self._arrived:
            self._arrived, self._last_arrival = self._partial.arrived, now
        may_continue = (
            self._running or self._network.settling or any(self._states[peer.id].may_continue for peer in holders)
        )
        return bool(may_continue) or now - self._last_arrival < NO_PEER_SECONDS

    def _record_result(self, peer: SwarmPeer, task: asyncio.Task[None]) -> None:
        """Record how an attempt ended. Raises errors that the peer did not cause."""
        state, error, now = self._states[peer.id], task.exception(), self._clock()
        state.may_continue = True
        match error:
            case None:
                state.retry_at = now + RETRY_SECONDS
                state.failures = 0
            case _TryLater():
                state.retry_at, state.may_continue = now + (error.wait or ASK_AGAIN_SECONDS), error.wait > 0
                state.reason = error.reason
            case BadMessage():
                self._observer.ban(peer, error.message)
                state.reason, state.may_continue = error.message, False
            case MeshError():
                state.retry_at = now + backoff(state.failures, base=RETRY_SECONDS, cap=RETRY_MOST_SECONDS)
                state.failures += 1
                state.reason, state.may_continue = error.message, state.failures < MAX_FAILURES
            case _:
                raise error

    def _ban_sources_of_wrong_chunks(self) -> None:
        """Ban peers whose chunk failed verification and switch to another digest list."""
        for chunk, source in self._partial.take_rejections():
            peer = self._lists.peer(source)
            if peer is None or not self._lists.claims(peer):
                continue
            error = BadMessage(f"chunk {chunk} does not match its claimed digest")
            self._observer.ban(peer, error.message)
            self._states.setdefault(peer.id, _PeerState()).reason = error.message
            if (connection := self._connections.get(peer)) is not None:
                connection.end(error)
            self._lists.withdraw(peer)
            self._partial.expected = self._lists.chosen

    def _failure_reason(self) -> str:
        reasons = {state.reason for state in self._states.values() if state.reason}
        if not reasons:
            return "No other node of the mesh could be asked for it."
        return f"No node of the mesh serves it: {'; '.join(sorted(reasons))[:500]}"

    # -- one peer

    async def _download_from(self, peer: SwarmPeer) -> None:
        """Download chunks from one peer. Raises MeshError, _TryLater and OSError."""
        meter = RateMeter(self._clock())
        connection = PeerConnection(lambda count: meter.add(count, self._clock()))
        replied = False
        self._observer.connection_opened(peer, self._model, connection, meter)
        self._connections[peer] = connection
        try:
            await self._network.open(peer.id, lambda: connection)
            listing = await connection.request_listing(self._partial.sha256, self._partial.count)
            digests = self._checked(listing)
            self._lists.add(peer, digests)
            replied = True
            self._count_reply()
            await asyncio.shield(self._quorum)
            self._partial.expected = self._lists.choose()
            if self._lists.chosen != digests:
                raise _TryLater("its chunk digests differ from those of other peers", DISAGREE_RETRY_SECONDS)
            await self._fetch_chunks(connection, peer)
        finally:
            if not replied:
                self._count_reply()
            self._lists.remove_source(peer)
            self._connections.pop(peer, None)
            connection.end(LinkClosed("The download from this peer ended."))
            self._observer.connection_closed(connection)

    def _checked(self, listing: w.ChunkListing | w.FileRefusal) -> bytes:
        """The digests of a valid listing. Raises BadMessage and _TryLater."""
        if isinstance(listing, w.FileRefusal):
            raise _refused(listing)
        if listing.size != self._partial.size:
            raise BadMessage("it lists the file with another size")
        if listing.chunk_bytes != self._partial.chunk_bytes:
            raise _TryLater("it uses another chunk size (another version)", 0)
        if digest_of(listing.digests, self._partial.count - 1).hex() != self._partial.sha256:
            raise BadMessage("its list of chunk digests does not end with the file's digest")
        return listing.digests

    def _count_reply(self) -> None:
        """Count a reply (or a failed peer); choose a list when all have replied, or QUORUM_SECONDS after the first."""
        self._awaited_replies -= 1
        if not self._awaited_replies:
            self._choose_list()
        elif self._timer is None and not self._quorum.done():
            self._timer = asyncio.get_running_loop().call_later(QUORUM_SECONDS, self._choose_list)

    def _choose_list(self) -> None:
        self._timer = None
        if self._lists.choose() is not None and not self._quorum.done():
            self._quorum.set_result(None)

    async def _fetch_chunks(self, connection: PeerConnection, peer: SwarmPeer) -> None:
        """Download chunks over the connection, MAX_OUTSTANDING at a time, until there are no more to claim."""
        asked: set[int] = set()
        workers = [
            self._owner.start(self._fetch_all(connection, peer, asked), f"{peer} {number}")
            for number in range(MAX_OUTSTANDING)
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _fetch_all(self, connection: PeerConnection, peer: SwarmPeer, asked: set[int]) -> None:
        partial = self._partial
        while not partial.complete:
            # The connection must not take over a chunk that it is receiving already.
            piece = partial.claim(str(peer), 1, lambda chunk: chunk not in asked)
            if piece is None:
                await partial.changed()
                continue
            try:
                while piece.held and piece.position < piece.end:
                    chunk = piece.position // partial.chunk_bytes
                    asked.add(chunk)
                    try:
                        await self._fetch(connection, peer, chunk)
                    finally:
                        asked.discard(chunk)
            finally:
                partial.release(piece)

    async def _fetch(self, connection: PeerConnection, peer: SwarmPeer, chunk: int) -> None:
        """Download one chunk and write it. Raises MeshError, _TryLater and OSError."""
        begin, end = self._partial.span(chunk)
        data = self._partial.buffers.take()[: end - begin]
        if (refusal := await connection.read_chunk(chunk, data)) is not None:
            raise _refused(refusal)

        def keep(stop: StopSignal) -> None:
            with stop:
                self._partial.write_chunk(str(peer), chunk, data, peer.id)

        await in_thread(keep, "write-chunk")


def _refused(refusal: w.FileRefusal) -> _TryLater:
    reasons = {
        w.FileRefusalReason.ABSENT: "it does not have the file",
        w.FileRefusalReason.PREPARING: f"it is preparing the file ({refusal.percent} %)",
        w.FileRefusalReason.NOT_SHARED: "uploads are disabled there",
        w.FileRefusalReason.BUSY: "its upload slots are in use",
        w.FileRefusalReason.CHANGED: "the file has changed there",
        w.FileRefusalReason.NOT_UNDERSTOOD: "it does not understand the request (another version)",
    }
    return _TryLater(reasons[refusal.reason], refusal.wait)
