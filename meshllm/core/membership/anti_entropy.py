"""One round of anti-entropy, seen from either side: digest, difference, wanted, records.

Law: a difference counts only as the answer to a digest that was sent; everything is bounded, and what does not fit
comes in the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshllm.core.membership import summary as gossip
from meshllm.core.membership.links import LinkState, LinkTable
from meshllm.core.membership.messages import Difference, Digest, Message, Records, Wanted
from meshllm.core.membership.table import MembershipTable
from meshllm.core.records import MAX_NUMBER, NodeId, RecordVersion, SignedRecord


class AntiEntropy:
    """The exchanges of one node with its peers."""

    def __init__(self, members: MembershipTable, links: LinkTable, send: Callable[[NodeId, Message], None]) -> None:
        self._members = members
        self._links = links
        self._send = send

    def begin(self, peer: NodeId) -> None:
        """Tell `peer` in short what is held here."""
        digest = self._members.summary.digest()
        self._links[peer].digest_bits = digest.bits
        self._send(peer, digest)

    def answer(self, peer: NodeId, digest: Digest) -> None:
        """`peer` told in short what it holds. It is always answered, so that it knows when there is nothing new."""
        difference = self._members.summary.difference(digest)
        if difference is not None:
            self._send(peer, difference)

    def compare(self, peer: NodeId, link: LinkState, difference: Difference) -> bool:
        """`peer` answers to a digest. False if it was not asked, or the answer is none."""
        if link.digest_bits is None or difference.bits != link.digest_bits:
            return False
        if not difference.buckets and difference.held:
            return False  # a reminder, not an answer
        plan = gossip.plan(self._members.summary, self._buried, difference)
        if plan is None:
            return False
        link.digest_bits = None
        wanted = tuple([node for node in plan.wanted if node != self._members.own])
        link.wanted = set(wanted)
        if wanted:
            self._send(peer, Wanted(wanted))
        self.give(peer, plan.offered)
        signed = self._members.signed(peer)
        if signed is not None and self._members.buried(peer) and any(node == peer for node, _ in difference.held):
            self.remind(peer, signed)
        return True

    def give(self, peer: NodeId, nodes: Iterable[NodeId]) -> None:
        """Send the records of these nodes, as far as they are spoken of here."""
        summary = self._members.summary
        found = []
        for node in dict.fromkeys(list(nodes)[: gossip.MAX_WANTED_NODES]):
            signed = self._members.signed(node)
            if signed is not None and summary.stamp(node) is not None:
                found.append(signed)
        for portion in gossip.chunks(found):
            self._send(peer, Records(portion))

    def remind(self, peer: NodeId, signed: SignedRecord) -> None:
        """Tell `peer` that its life, by all that is known here, is over: it has to begin a new one to get past that."""
        held = self._buried(peer) or signed.record.version
        self._send(peer, Difference(0, (), ((peer, held),)))

    def _buried(self, node: NodeId) -> RecordVersion | None:
        """Of one that is gone: the highest stamp of that life there can be."""
        entry = self._members.entries.get(node)
        if entry is None or not self._members.buried(node):
            return None
        return RecordVersion(entry.record.version.incarnation, MAX_NUMBER)
