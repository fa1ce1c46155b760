"""One round of anti-entropy with a peer, from either side: digest, difference, wanted, records.

A difference is accepted only as the answer to a digest that was sent. Everything is bounded; what does not fit follows
in the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from meshllm.core.membership.links import LinkState, LinkTable
from meshllm.core.membership.messages import Difference, Digest, Message, Records, Wanted
from meshllm.core.membership.summary import MAX_WANTED_NODES, chunks, plan_exchange
from meshllm.core.membership.table import MembershipTable
from meshllm.core.records import MAX_NUMBER, NodeId, RecordVersion, SignedRecord


class AntiEntropy:
    """The exchanges of one node with its peers."""

    def __init__(
        self,
        table: MembershipTable,
        links: LinkTable,
        send: Callable[[NodeId, Message], None],
        statements_hash: Callable[[], bytes],
        board_hash: Callable[[], bytes],
    ) -> None:
        """`statements_hash` returns the hash of the statements of the mesh key, `board_hash` that of the blackboard, or
        nothing."""
        self._statements_hash = statements_hash
        self._board_hash = board_hash
        self._table = table
        self._links = links
        self._send = send

    def begin(self, peer: NodeId) -> None:
        """Send `peer` a digest of the table."""
        digest = replace(self._table.summary.digest(), statements=self._statements_hash(), board=self._board_hash())
        self._links[peer].digest_bits = digest.bits
        self._send(peer, digest)

    def answer(self, peer: NodeId, digest: Digest) -> None:
        """Answer a digest of `peer`. It is always answered, so that the peer knows when nothing differs."""
        difference = self._table.summary.difference(digest)
        if difference is not None:
            self._send(peer, difference)

    def compare(self, peer: NodeId, link: LinkState, difference: Difference) -> bool:
        """Exchange what differs. Returns False for a difference that answers no digest of this node."""
        if link.digest_bits is None or difference.bits != link.digest_bits:
            return False
        if not difference.buckets and difference.held:
            return False  # from `remind`, not an answer
        plan = plan_exchange(self._table.summary, self._final_version, difference)
        if plan is None:
            return False
        link.digest_bits = None
        wanted = tuple([node for node in plan.wanted if node != self._table.own])
        link.wanted = set(wanted)
        if wanted:
            self._send(peer, Wanted(wanted))
        self.give(peer, plan.offered)
        signed = self._table.signed(peer)
        if signed is not None and self._table.is_gone(peer) and any(node == peer for node, _ in difference.held):
            self.remind(peer, signed)
        return True

    def give(self, peer: NodeId, nodes: Iterable[NodeId]) -> None:
        """Send the records of these nodes, as far as the summary lists them."""
        summary = self._table.summary
        found = []
        for node in dict.fromkeys(list(nodes)[:MAX_WANTED_NODES]):
            signed = self._table.signed(node)
            if signed is not None and summary.version(node) is not None:
                found.append(signed)
        for portion in chunks(found):
            self._send(peer, Records(portion))

    def remind(self, peer: NodeId, signed: SignedRecord) -> None:
        """Tell `peer` that it counts as gone here: only a higher incarnation brings it back."""
        held = self._final_version(peer) or signed.record.version
        self._send(peer, Difference(0, (), ((peer, held),)))

    def _final_version(self, node: NodeId) -> RecordVersion | None:
        """The highest possible version of the incarnation in which `node` died or left; None if it is not gone."""
        entry = self._table.entries.get(node)
        if entry is None or not self._table.is_gone(node):
            return None
        return RecordVersion(entry.record.version.incarnation, MAX_NUMBER)
