"""One dial: the addresses of a node are tried staggered, the first that answers as that node gets the handshake (as RFC
8305).

Invariants: a dial ends within DIAL_SECONDS with a link or a reason. Only one address at a time is in the handshake, so
that a node with several addresses never sees two links. Callbacks and timers, no tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from meshllm.core.records import BootstrapAddress, NodeId, PeerAddress, short
from meshllm.errors import MeshError, PeerRefused, PeerUnreachable
from meshllm.net.base import DIAL_SECONDS
from meshllm.net.node_link import NodeLink

# Between two addresses: longer than a round trip in a LAN, so that usually only the first is used.
STAGGER_SECONDS = 0.05
# Addresses tried in one dial.
MAX_ADDRESSES_TRIED = 12
# Limit for the handshake at one address; then the others get their turn.
CANDIDATE_SECONDS = 3.0


class Attempt(Protocol):
    """One address being tried, until it is `ready` or `failed`."""

    def drop(self) -> None:
        """Stop; nothing is reported any more."""


class Dialler(Protocol):
    """What a dial needs of the transport."""

    def attempt(self, address: PeerAddress, dial: PendingDial) -> Attempt:
        """Try an address. Later (never in this call) `dial.ready` or `dial.failed` is called once."""

    def start_handshake(self, attempt: Attempt, peer: NodeId, seconds: float) -> NodeLink:
        """Start the handshake on a ready attempt. Raises PeerRefused."""


class PendingDial:
    """A dial in progress. `future` gets the link, PeerRefused or PeerUnreachable."""

    def __init__(
        self,
        target: BootstrapAddress,
        dialler: Dialler,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[PendingDial], None],
    ) -> None:
        self.target = target
        self.future: asyncio.Future[NodeLink] = loop.create_future()
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.candidate: NodeLink | None = None
        self._dialler = dialler
        self._loop = loop
        self._done = done
        self._addresses = deque(dict.fromkeys(target.addresses[:MAX_ADDRESSES_TRIED]))
        self._trying: dict[Attempt, PeerAddress] = {}
        self._ready: deque[tuple[Attempt, NodeId]] = deque()
        self._reasons: list[str] = []
        self._wrong_node: PeerRefused | None = None
        self._waits = False  # for the link that the peer dialled
        self._expiry = loop.call_later(DIAL_SECONDS, self._expire)
        self._next: asyncio.TimerHandle | asyncio.Handle | None = loop.call_soon(self._try)

    def matches(self, node: NodeId) -> bool:
        """Whether `node` is the node being dialled."""
        return node.startswith(self.target.pin)

    def ready(self, attempt: Attempt, peer: NodeId) -> None:
        """The node answers at that address."""
        self._ready.append((attempt, peer))
        self._start_next()

    def failed(self, attempt: Attempt, reason: str, wrong_node: bool = False) -> None:
        """That address failed. `wrong_node`: another node answers there."""
        address = self._trying.pop(attempt, None)
        if address is not None:
            self._reasons.append(f"{address}: {reason}")
        if wrong_node:
            self._wrong_node = PeerRefused(
                f"Another node answers at {address} instead of {short(NodeId(self.target.pin))}.",
                advice="The node may have a new identity: ask for a fresh invite.",
                reason="wrong_node",
            )
        self._check()

    def handshake_failed(self, link: NodeLink, error: PeerRefused | str) -> None:
        """The handshake failed: a refusal, or no answer."""
        if link is not self.candidate:
            return
        self.candidate = None
        if isinstance(error, PeerRefused) and error.reason != "duplicate":
            self._finish(error)
            return
        # "duplicate": the peer has dialled this node at the same time, and its link stays.
        self._waits = isinstance(error, PeerRefused)
        self._reasons.append(f"{link.connection.address}: {error}")
        self._start_next()
        self._check()

    def linked(self, link: NodeLink) -> None:
        """There is a link to the node, dialled by either side."""
        if not self.future.done():
            self.future.set_result(link)
            self._clear(keep=link)

    def drop(self, error: MeshError) -> None:
        """Give up."""
        self._finish(error)

    def _try(self) -> None:
        self._next = None
        if self._addresses:
            address = self._addresses.popleft()
            self._trying[self._dialler.attempt(address, self)] = address
        if self._addresses:
            self._next = self._loop.call_later(STAGGER_SECONDS, self._try)
        else:
            self._check()

    def _start_next(self) -> None:
        while self._ready and self.candidate is None and not self.future.done():
            attempt, peer = self._ready.popleft()
            self._trying.pop(attempt, None)
            try:
                self.candidate = self._dialler.start_handshake(attempt, peer, CANDIDATE_SECONDS)
            except PeerRefused as error:
                self._finish(error)

    def _check(self) -> None:
        """Finish if no attempt is left."""
        busy = self._addresses or self._trying or self._ready or self.candidate or self._next or self._waits
        if not busy:
            self._finish(self._wrong_node or self._unreachable())

    def _expire(self) -> None:
        self._reasons += [f"{address}: no answer" for address in self._trying.values()]
        self._finish(self._wrong_node or self._unreachable())

    def _unreachable(self) -> PeerUnreachable:
        tried = "; ".join(self._reasons) or "no address is known"
        return PeerUnreachable(
            f"Node {short(NodeId(self.target.pin))} cannot be reached ({tried}).",
            advice="Check that it runs and that its UDP port is open.",
        )

    def _finish(self, error: MeshError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self._clear(keep=None)

    def _clear(self, keep: NodeLink | None) -> None:
        self._expiry.cancel()
        if self._next is not None:
            self._next.cancel()
        for attempt in (*self._trying, *(attempt for attempt, _ in self._ready)):
            attempt.drop()
        self._trying.clear()
        self._ready.clear()
        self._addresses.clear()
        candidate, self.candidate = self.candidate, None
        self._done(self)
        if candidate is not None and candidate is not keep:
            candidate.close("not needed")
