"""Which links a node has, whom it watches, whom it looks for and whom it remembers.

Law: pure policy over the table and the links; the number of links does not grow with the mesh.
"""

from __future__ import annotations

from collections.abc import Callable

from meshllm.core import commands as c
from meshllm.core.membership.links import LinkTable, Rng
from meshllm.core.membership.messages import Ping
from meshllm.core.membership.own_record import OwnRecord
from meshllm.core.membership.table import SMALL_MESH, MembershipTable
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import NODE_ID_BYTES, BootstrapAddress, NodeId, NodeRecord, Role

# A link that nothing wants is closed after this long; the next need of it may be near.
LINK_IDLE_SECONDS = 60.0
# The dead are looked for, one each time, so that a mesh that was cut in two finds together again; and every sixth time
# a member without a link is, so that no two parts of a mesh can live side by side without ever exchanging a word.
HEAL_SECONDS = 5.0
HEAL_ROUNDS_PER_VISIT = 6
# Dials for a model that only unverified peers are said to have.
MAX_SOUGHT = 4
# Watched beside the watched: hosts that are linked, whose load and round trip routing wants to know.
MAX_HOSTS_WATCHED = 16
# Peers worth remembering over a restart, among them so many that are lost: a mesh that was cut in two, and of which
# everybody was started anew meanwhile, would have forgotten its other half.
MAX_SAVED = 64
MAX_SAVED_LOST = 16


class LinkPolicy:
    """The links of one node and what they are for."""

    def __init__(
        self, members: MembershipTable, links: LinkTable, own: OwnRecord, out: list[c.Command], rng: Rng
    ) -> None:
        self._members = members
        self._links = links
        self._own = own
        self._out = out
        self._rng = rng
        self._heals = 0
        self._saved: tuple[BootstrapAddress, ...] = ()
        # Known in an earlier run; of interest while nobody here has told of them.
        self._remembered: dict[NodeId, BootstrapAddress] = {}

    def way(self, node: NodeId) -> BootstrapAddress | None:
        """Where `node` says it can be reached, if anywhere."""
        signed = self._members.signed(node)
        return (
            BootstrapAddress(node, signed.record.addresses) if signed is not None and signed.record.addresses else None
        )

    def dial(self, node: NodeId, now: float) -> bool:
        """Have a link to `node` on its way. False if that cannot be (now)."""
        way = self.way(node)
        return way is not None and (self._links.dialling(node, now) or self._links.dial(way, now))

    def alive(self) -> list[NodeRecord]:
        """What the nodes say that live."""
        entries = self._members.entries.values()
        return [entry.record for entry in entries if entry.status is PeerStatus.ALIVE]

    def linked(self, node: NodeId) -> bool:
        """Whether there is a link to `node`."""
        return node in self._links

    # -- what the prober needs done

    def rtt(self, node: NodeId) -> float | None:
        """The round trip on the link to `node`; None without a link."""
        link = self._links.get(node)
        return link.rtt if link is not None else None

    def ping(self, node: NodeId, number: int) -> None:
        """Ask it on its link."""
        self._out.append(c.Send(node, Ping(number)))

    def unanswered(self, node: NodeId) -> None:
        """It has not answered for too long: a complaint."""
        entry = self._members.entries.get(node)
        if entry is not None and not self._members.buried(node):
            self._own.complain(node, entry.record.version.incarnation)

    def answered(self, node: NodeId) -> None:
        """It answered. About the dead the complaint stands all the same: a new incarnation is due."""
        if not self._members.buried(node):
            self._own.absolve(node)

    # -- what is due now and then

    def mend(self, now: float) -> None:
        """Have the links that are wanted, and close those that nothing has wanted for a while."""
        small = self._members.size <= SMALL_MESH
        wanted = self._members.members() if small else self._members.rings.neighbours(self._members.own)
        for node in list(wanted):
            link = self._links.get(node)
            if link is not None:
                link.needed = now
            else:
                self.dial(node, now)
        for peer, link in self._links.items():
            if link.role is Role.NODE and now - link.needed > LINK_IDLE_SECONDS:
                link.needed = now
                self._out.append(c.HangUp(peer, "this link is not needed any more"))

    def watched(self, doubted: Callable[[NodeId], bool]) -> list[NodeId]:
        """Whom to ask for signs of life; past those that are `doubted` also the next ones."""
        if self._members.size <= SMALL_MESH:
            return list(self._members.members())

        def good(node: NodeId) -> bool:
            return not doubted(node) and self._members.answering(node)

        watched = dict.fromkeys(self._members.rings.subjects(self._members.own, good))
        entries = self._members.entries
        hosts = [node for node in self._links.nodes if node in entries and entries[node].record.serves]
        watched.update(dict.fromkeys(hosts[:MAX_HOSTS_WATCHED]))
        # Whoever is complained about is asked until it answers, or is gone.
        watched.update(dict.fromkeys(self._own.complaints))
        return [node for node in watched if node in entries and not self._members.buried(node)]

    def heal(self, now: float) -> None:
        """Try to find again who is lost, or meet somebody new."""
        lost = self._lost()
        if lost:
            node = lost[self._rng.randrange(len(lost))]
            way = self._remembered.get(node) or self.way(node)
            if way is not None:
                self._links.dial(way, now)
        self._heals += 1
        summary = self._members.summary
        if self._heals % HEAL_ROUNDS_PER_VISIT == 0 and len(summary):
            self.dial(summary[self._rng.randrange(len(summary))], now)

    def seek(self, model: str, now: float) -> None:
        """Somebody wants `model`, and nobody that is known to live has it: find out about those that may."""
        asked = 0
        for node, entry in self._members.entries.items():
            if entry.status is PeerStatus.UNVERIFIED and any(served.name == model for served in entry.record.serves):
                asked += self.dial(node, now)
                if asked == MAX_SOUGHT:
                    return

    def remember(self, ways: tuple[BootstrapAddress, ...]) -> None:
        """Who was known in an earlier run."""
        known = [way for way in ways if len(way.pin) == NODE_ID_BYTES and way.pin != self._members.own]
        self._remembered = {NodeId(way.pin): way for way in known[:MAX_SAVED] if way.addresses}

    def _lost(self) -> list[NodeId]:
        """Who is gone without a goodbye, and who was known before and is not known now; the last to go is the last."""
        for node in [node for node in self._remembered if self._members.status(node) is not None]:
            del self._remembered[node]
        return [*self._remembered, *self._members.dead()]

    def save(self) -> None:
        """Remember who to look for after a restart: the linked first, then as before, then who was seen last, then the
        lost."""
        members = self._members
        lost = self._lost()[-MAX_SAVED_LOST:]
        found = dict.fromkeys(sorted(self._links.nodes))
        kept = [NodeId(way.pin) for way in self._saved]
        found.update(dict.fromkeys([node for node in kept if members.status(node) is PeerStatus.ALIVE]))
        for other in members.latest():
            if len(found) >= MAX_SAVED - len(lost):
                break
            if members.status(other) is PeerStatus.ALIVE:
                found[other] = None
        nodes = [*list(found)[: MAX_SAVED - len(lost)], *reversed(lost)]
        ways = tuple([w for node in nodes if (w := self._remembered.get(node) or self.way(node)) is not None])
        # Being alone is no reason to forget everybody: they are who to look for.
        if ways and set(ways) != set(self._saved):
            self._saved = ways
            self._out.append(c.SavePeers(ways))
