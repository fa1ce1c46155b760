"""Which links a node has, which nodes it watches, looks for and remembers. The number of links has a fixed bound."""

from __future__ import annotations

from collections.abc import Callable

from meshllm.core import commands as c
from meshllm.core.membership.links import LinkProbes, LinkTable, Rng
from meshllm.core.membership.own_record import OwnRecord
from meshllm.core.membership.table import SMALL_MESH, MembershipTable
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import BootstrapAddress, NodeId, NodeRecord, Role

# A link that nothing needs is closed after this time.
LINK_IDLE_SECONDS = 60.0
# One dead node is dialled at each interval, so that the halves of a partitioned mesh find each other again; every sixth
# time a member without a link is dialled, so that no two parts of a mesh stay without any exchange.
RECONNECT_SECONDS = 5.0
RECONNECTS_PER_VISIT = 6
# Dials for a model that only unverified peers serve.
MAX_MODEL_DIALS = 4
# Linked hosts that are watched beside the ring neighbours: routing needs their load and round-trip time.
MAX_HOSTS_WATCHED = 16
# Links with trusted nodes that are kept while nodes of other inviters are about.
MAX_TRUSTED_KEPT = 16
# Peers to remember over a restart, and how many of them may be lost ones: if all nodes of one half of a partitioned
# mesh restart, they still know the other half.
MAX_SAVED = 64
MAX_SAVED_LOST = 16


class LinkPolicy(LinkProbes):
    """The links of one node and their purpose. Also what its failure detector acts through."""

    def __init__(
        self, table: MembershipTable, links: LinkTable, own: OwnRecord, out: list[c.Command], rng: Rng
    ) -> None:
        super().__init__(links, out)
        self._table = table
        self._own = own
        self._rng = rng
        self._reconnects = 0
        self._saved: tuple[BootstrapAddress, ...] = ()
        # Known in an earlier run, as long as no record of them has come in this run.
        self._remembered: dict[NodeId, BootstrapAddress] = {}

    def address_of(self, node: NodeId) -> BootstrapAddress | None:
        """Where `node` listens according to its record, or None."""
        signed = self._table.signed(node)
        return (
            BootstrapAddress(node, signed.record.addresses) if signed is not None and signed.record.addresses else None
        )

    def alive(self) -> list[NodeRecord]:
        """The records of the nodes that are alive."""
        entries = self._table.entries.values()
        return [entry.record for entry in entries if entry.status is PeerStatus.ALIVE]

    def linked(self, node: NodeId) -> bool:
        """Whether there is a link to `node`."""
        return node in self._links

    # -- for the failure detector

    def dial(self, node: NodeId, now: float) -> bool:
        """Dial `node`, unless a dial is under way. Returns whether one is under way now."""
        address = self.address_of(node)
        return address is not None and (self._links.dialling(node, now) or self._links.dial(address, now))

    def unanswered(self, node: NodeId) -> None:
        """`node` has not answered for too long: report the failure."""
        entry = self._table.entries.get(node)
        if entry is not None and not self._table.is_gone(node):
            self._own.report_failure(node, entry.record.version.incarnation)

    def answered(self, node: NodeId) -> None:
        """`node` answered. A report about a dead node stays until it comes back with a new incarnation."""
        if not self._table.is_gone(node):
            self._own.withdraw_report(node)

    # -- at intervals

    def maintain_links(self, now: float) -> None:
        """Dial the nodes that should have a link, and close the links that nothing has needed for a while."""
        small = self._table.watchers <= SMALL_MESH
        table = self._table
        wanted = table.watching() if small else table.rings.neighbours(table.own, table.is_trusted)
        if table.has_untrusted:
            # Nodes that were seen alive do not yield to nodes only heard of, of which one inviter may make many.
            kept = [node for node in self._links.nodes if table.is_trusted(node)]
            wanted = list(dict.fromkeys([*wanted, *kept[:MAX_TRUSTED_KEPT]]))
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
        """The nodes to probe. Behind each one that is `doubted`, the next on its ring is probed too."""
        if self._table.watchers <= SMALL_MESH:
            return list(dict.fromkeys([*self._table.watching(), *self._table.doubted_links()]))

        def good(node: NodeId) -> bool:
            return not doubted(node) and self._table.answering(node)

        watched = dict.fromkeys(self._table.rings.subjects(self._table.own, good, self._table.is_trusted))
        entries = self._table.entries
        hosts = [node for node in self._links.nodes if node in entries and entries[node].record.serves]
        watched.update(dict.fromkeys(hosts[:MAX_HOSTS_WATCHED]))
        # A reported node is probed until it answers or is gone.
        watched.update(dict.fromkeys(self._own.reported))
        watched.update(dict.fromkeys(self._table.doubted_links()))
        return [node for node in watched if node in entries and not self._table.is_gone(node)]

    def reconnect(self, now: float) -> None:
        """Dial a random lost node, and now and then a random member without a link."""
        lost = self._lost()
        if lost:
            node = lost[self._rng.randrange(len(lost))]
            address = self._remembered.get(node) or self.address_of(node)
            if address is not None:
                self._links.dial(address, now)
        self._reconnects += 1
        summary = self._table.summary
        if self._reconnects % RECONNECTS_PER_VISIT == 0 and len(summary):
            self.dial(summary[self._rng.randrange(len(summary))], now)

    def seek_model(self, model: str, now: float) -> None:
        """No node that is alive serves `model`: dial unverified nodes that do."""
        dials = 0
        for node, entry in self._table.entries.items():
            serves = any(served.name == model for served in entry.record.serves)
            if serves and entry.status is PeerStatus.UNVERIFIED:
                dials += self.dial(node, now)
                if dials == MAX_MODEL_DIALS:
                    return

    def remember(self, addresses: tuple[BootstrapAddress, ...]) -> None:
        """Set the nodes that were known in an earlier run."""
        known = {address.node: address for address in addresses if address.node not in (None, self._table.own)}
        found = [(node, address) for node, address in known.items() if node is not None]
        self._remembered = {node: address for node, address in found[:MAX_SAVED] if address.addresses}

    def forget(self, node: NodeId) -> None:
        """`node` was expelled: it is not looked for, nor remembered over a restart."""
        self._remembered.pop(node, None)
        self._saved = tuple([address for address in self._saved if address.node != node])

    def _lost(self) -> list[NodeId]:
        """Nodes of the earlier run without a record so far, then dead nodes, the latest death last."""
        for node in [node for node in self._remembered if self._table.status(node) is not None]:
            del self._remembered[node]
        return [*self._remembered, *self._table.dead()]

    def save(self) -> None:
        """Save the peers to look for after a restart: linked ones, those saved before, the latest seen, lost ones."""
        table = self._table
        lost = self._lost()[-MAX_SAVED_LOST:]
        found = dict.fromkeys(sorted(self._links.nodes))
        kept = [address.node for address in self._saved if address.node is not None]
        found.update(dict.fromkeys([node for node in kept if table.status(node) is PeerStatus.ALIVE]))
        for other in table.latest():
            if len(found) >= MAX_SAVED - len(lost):
                break
            if table.status(other) is PeerStatus.ALIVE:
                found[other] = None
        nodes = [*list(found)[: MAX_SAVED - len(lost)], *reversed(lost)]
        addresses = [self._remembered.get(node) or self.address_of(node) for node in nodes]
        saved = tuple([address for address in addresses if address is not None])
        # An empty list is not saved: a node that has lost all peers must look for them.
        if saved and set(saved) != set(self._saved):
            self._saved = saved
            self._out.append(c.SavePeers(saved))
