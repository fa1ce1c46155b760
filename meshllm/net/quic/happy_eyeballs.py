"""One dial: all addresses of a node nearly at once, the first that answers as that node is greeted, the others dropped.

Law: a dial ends within DIAL_SECONDS, with a link or with the reason; nothing of it is left then. Only one address is
greeted at a time, so that a node which answers at several never sees two links. No tasks: callbacks and timers.
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

# Between one address and the next: longer than a round trip at home, so that mostly only the first one is used.
STAGGER_SECONDS = 0.05
# At most so many addresses of one way are tried.
MAX_ADDRESSES_TRIED = 12
# A dialled node that does not answer the greeting within this leaves the turn to its other addresses.
CANDIDATE_SECONDS = 3.0


class Attempt(Protocol):
    """One address being tried, until it is `ready` or `failed`."""

    def drop(self) -> None:
        """No longer wanted; nothing is reported any more."""


class Dialler(Protocol):
    """The verbs a dial needs of the transport."""

    def attempt(self, address: PeerAddress, dial: PendingDial) -> Attempt:
        """Try an address. Later (never at once) `dial.ready` or `dial.failed` is called, once."""

    def greet(self, attempt: Attempt, peer: NodeId, seconds: float) -> NodeLink:
        """Begin the handshake on an attempt that is ready. Raises PeerRefused."""


class PendingDial:
    """Being dialled: `future` gets the link, PeerRefused or PeerUnreachable."""

    def __init__(
        self,
        way: BootstrapAddress,
        dialler: Dialler,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[PendingDial], None],
    ) -> None:
        self.way = way
        self.future: asyncio.Future[NodeLink] = loop.create_future()
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.greeted: NodeLink | None = None
        self._dialler = dialler
        self._loop = loop
        self._done = done
        self._addresses = deque(dict.fromkeys(way.addresses[:MAX_ADDRESSES_TRIED]))
        self._trying: dict[Attempt, PeerAddress] = {}
        self._ready: deque[tuple[Attempt, NodeId]] = deque()
        self._reasons: list[str] = []
        self._wrong_node: PeerRefused | None = None
        self._waits = False  # for a link that the peer is about to make
        self._expiry = loop.call_later(DIAL_SECONDS, self._expire)
        self._next: asyncio.TimerHandle | asyncio.Handle | None = loop.call_soon(self._try)

    def matches(self, node: NodeId) -> bool:
        """Whether that is the node being dialled."""
        return node.startswith(self.way.pin)

    def ready(self, attempt: Attempt, peer: NodeId) -> None:
        """The node answers at that address."""
        self._ready.append((attempt, peer))
        self._greet()

    def failed(self, attempt: Attempt, reason: str, wrong_node: bool = False) -> None:
        """Nothing comes of that address. `wrong_node`: another node is there."""
        address = self._trying.pop(attempt, None)
        if address is not None:
            self._reasons.append(f"{address}: {reason}")
        if wrong_node:
            self._wrong_node = PeerRefused(
                f"Another node than {short(NodeId(self.way.pin))} answers at {address}.",
                advice="The node may have a new identity: ask for a fresh invite.",
                reason="wrong_node",
            )
        self._check()

    def greeting_failed(self, link: NodeLink, error: PeerRefused | str) -> None:
        """The node that was greeted refused, or said nothing."""
        if link is not self.greeted:
            return
        self.greeted = None
        if isinstance(error, PeerRefused) and error.reason != "duplicate":
            self._finish(error)
            return
        # "duplicate": the peer has dialled us at the same time, and that link stays.
        self._waits = isinstance(error, PeerRefused)
        self._reasons.append(f"{link.carrier.address}: {error}")
        self._greet()
        self._check()

    def linked(self, link: NodeLink) -> None:
        """There is a link to the node, made here or by the peer."""
        if not self.future.done():
            self.future.set_result(link)
            self._clear(keep=link)

    def drop(self, error: MeshError) -> None:
        """No longer wanted."""
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

    def _greet(self) -> None:
        while self._ready and self.greeted is None and not self.future.done():
            attempt, peer = self._ready.popleft()
            self._trying.pop(attempt, None)
            try:
                self.greeted = self._dialler.greet(attempt, peer, CANDIDATE_SECONDS)
            except PeerRefused as error:
                self._finish(error)

    def _check(self) -> None:
        """Whether there is anything left to hope for."""
        busy = self._addresses or self._trying or self._ready or self.greeted or self._next or self._waits
        if not busy:
            self._finish(self._wrong_node or self._unreachable())

    def _expire(self) -> None:
        self._reasons += [f"{address}: no answer" for address in self._trying.values()]
        self._finish(self._wrong_node or self._unreachable())

    def _unreachable(self) -> PeerUnreachable:
        tried = "; ".join(self._reasons) or "it has no address"
        return PeerUnreachable(
            f"Node {short(NodeId(self.way.pin))} cannot be reached ({tried}).",
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
        greeted, self.greeted = self.greeted, None
        self._done(self)
        if greeted is not None and greeted is not keep:
            greeted.close("not needed any more")
