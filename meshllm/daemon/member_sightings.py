"""When each member was seen last, under which name, and what it served: kept over a restart in the book of members.

After a restart a node can say "cellar was last seen at 18:53" of a machine that is switched off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from meshllm.core.membership.certificates import NODE_RIGHTS, Certificate, Right
from meshllm.core.membership.views import AwayMember, MeshView, PeerStatus, PeerView
from meshllm.core.records import NodeId
from meshllm.daemon.invite_book import InviteBook

log = logging.getLogger(__name__)

# While nothing changes, the time is written this often: what a power cut can lose.
WRITE_SECONDS: Final = 600.0
# A machine that was not seen for longer is not looked for, nor shown.
REMEMBERED_SECONDS: Final = 14 * 86_400.0


class MemberSightings:
    """Follows the views of the mesh. Everything runs on the event loop."""

    def __init__(
        self, book: InviteBook, wall: Callable[[], float], certificate: Callable[[PeerView], Certificate | None]
    ) -> None:
        """`wall` returns unix seconds; `certificate`: that of a peer, None if it does not count."""
        self._book = book
        self._wall = wall
        self._certificate = certificate
        self._here: dict[NodeId, PeerView] = {}
        self._changed = False
        self._written = wall()

    def remembered(self, own: NodeId, expelled: Callable[[NodeId], bool], now: float) -> tuple[AwayMember, ...]:
        """The members of earlier runs that can be nodes. `now`: the monotonic clock of the result."""
        wall, found = self._wall(), []
        for text, entry in self._book.members.items():
            node, ago = NodeId(bytes.fromhex(text)), wall - entry.seen
            if node != own and not expelled(node) and Right(entry.rights) & NODE_RIGHTS and ago <= REMEMBERED_SECONDS:
                found.append(AwayMember(node, entry.name, tuple(entry.served), now - max(0.0, ago)))
        return tuple(found)

    def publish(self, view: MeshView) -> None:
        """Take the newest view: note who came, changed or went."""
        here = {peer.node: peer for peer in view.peers if peer.status is PeerStatus.ALIVE}
        for node, peer in here.items():
            before = self._here.get(node)
            if before is peer:
                continue  # a view stays the same object until something changes
            if before is None or before.record.name != peer.record.name or _served(before) != _served(peer):
                self._note(peer)
        for node in self._here.keys() - here.keys():
            self._note(self._here[node])
        self._here = here
        known = self._book.members
        for client in view.clients:
            entry = known.get(client.node.hex())
            if entry is not None and client.name and entry.name != client.name:
                self._book.rename(client.node, client.name)
                self._changed = True

    def tick(self, *, last: bool = False) -> None:
        """Write what changed; now and then, and at the end, that all who are here are still here."""
        if last or self._wall() - self._written >= WRITE_SECONDS:
            for peer in self._here.values():
                self._note(peer)
        if self._changed:
            self._changed = False
            self._written = self._wall()
            try:
                self._book.flush()
            except OSError as error:
                log.warning("when members were seen last cannot be saved: %s", error.strerror or error)

    def _note(self, peer: PeerView) -> None:
        member = self._certificate(peer)
        if member is not None:
            self._book.note(member, peer.record.name, self._wall(), _served(peer))
            self._changed = True


def _served(peer: PeerView) -> tuple[str, ...]:
    return tuple([model.name for model in peer.record.serves])
