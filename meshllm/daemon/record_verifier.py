"""Verifies the records that peers send: only news, a few per turn of the event loop, and a limited number per peer.

A signature check takes about 0.1 ms of the event loop. The same record arrives from several peers, so most records
need no check: their bytes were verified before, or a newer record of the node is known.

Invariant: beside a few records, only those are remembered that the core keeps. What its quotas refuse takes no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from meshllm.core.membership.messages import Message, TableUpdate
from meshllm.core.records import NodeId, SignedRecord
from meshllm.errors import BadMessage
from meshllm.wire.mesh.codec import ParsedMessage, Verify
from meshllm.wire.mesh.records import decode_record, peek_version, read_signed, signed_bytes

# The record as far as its certificate allows, None without one that counts.
Admit = Callable[[SignedRecord], SignedRecord | None]

# Records of one turn of the event loop: 2 ms when each needs a check.
RECORDS_PER_TURN = 16
# Records of a link that ends which are still verified, at once: a node that leaves says so in its last message.
LAST_RECORDS = 64
# Records that are remembered though the core may not keep them: those in messages that are not delivered yet, and one's
# own that come back.
MAX_RECENT = 64
# Other signatures that are remembered, with what they sign: some 500 bytes each.
MAX_OTHERS = 256


class RecordVerifier:
    """Remembers the newest verified record of each node, and checks the signature of others."""

    def __init__(self, verify: Verify, admit: Admit | None = None) -> None:
        """`admit` returns the record as far as its certificate allows, None without one that counts; by default there
        is no mesh key, and every signed record counts."""
        self._verify = verify
        self._admit = admit
        self.left_out = 0  # records without a certificate that counts
        self._newest: WeakValueDictionary[NodeId, SignedRecord] = WeakValueDictionary()
        self._by_signature: WeakValueDictionary[bytes, SignedRecord] = WeakValueDictionary()
        self._recent: deque[SignedRecord] = deque(maxlen=MAX_RECENT)
        # Other signatures that were valid: the same entry of the blackboard comes from several peers.
        self._others: dict[tuple[NodeId, bytes, bytes], None] = {}
        self.checks = 0  # signatures that were checked so far

    def known(self, body: bytes, signature: bytes) -> SignedRecord | None:
        """The record with exactly these bytes, if it was verified before."""
        signed = self._by_signature.get(signature)
        if signed is None or signed.body != body:
            return None
        # The node may have been expelled since, or its certificate has expired; that costs no signature check.
        return signed if self._admit is None or self._admit(signed) is not None else None

    def stale(self, body: bytes) -> NodeId | None:
        """The node of a record that is older than a verified one of the same node, else None. Raises BadMessage."""
        node, version = peek_version(body)
        newest = self._newest.get(node)
        return node if newest is not None and version < newest.record.version else None

    def check(self, body: bytes, signature: bytes) -> SignedRecord | None:
        """Verify a record. None for one that is genuine but of a newer format, or without a certificate that counts:
        the peer may not know of an expulsion yet. Raises BadMessage."""
        if self._admit is not None:
            return self._check_member(body, signature, self._admit)
        self.checks += 1
        signed = read_signed(body, signature, self._verify)
        if signed is not None:
            self._keep(signed)
        return signed

    def check_other(self, check: tuple[NodeId, bytes, bytes]) -> None:
        """Verify a signature that belongs to no record, unless that was done a short time ago. Raises BadMessage."""
        if check in self._others:
            return
        self.checks += 1
        if not self._verify(*check):
            raise BadMessage("entry: invalid signature")
        self._others[check] = None
        if len(self._others) > MAX_OTHERS:
            del self._others[next(iter(self._others))]

    def _check_member(self, body: bytes, signature: bytes, admit: Admit) -> SignedRecord | None:
        """As `check`. The certificate comes first: made-up nodes cost no signature check, and no memory."""
        try:
            record = decode_record(body)
        except BadMessage:
            self.checks += 1
            return read_signed(body, signature, self._verify)
        signed = admit(SignedRecord(record, body, signature))
        if signed is None:
            self.left_out += 1
            return None
        self.checks += 1
        if not self._verify(record.node, signed_bytes(body), signature):
            raise BadMessage("record: invalid signature")
        self._keep(signed)
        return signed

    def _keep(self, signed: SignedRecord) -> None:
        node = signed.record.node
        newest = self._newest.get(node)
        if newest is not None:
            if newest.record.version > signed.record.version:
                return
            self._by_signature.pop(newest.signature, None)
        self._newest[node] = signed
        self._by_signature[signed.signature] = signed
        self._recent.append(signed)


@dataclass(slots=True)
class PendingMessage:
    """A message with records that are not all verified yet. `is_table`: its records replace what this provider sent
    before, so that older ones count too."""

    parsed: ParsedMessage
    is_table: bool
    next: int = 0
    checked: int = 0  # of its other signatures
    verified: list[SignedRecord] = field(default_factory=list)
    stale: list[NodeId] = field(default_factory=list)

    def advance(self, verifier: RecordVerifier, count: int) -> int:
        """Verify the next `count` records and other signatures at most; returns how many. Raises BadMessage."""
        portion = self.parsed.records[self.next : self.next + count]
        for body, signature in portion:
            known = verifier.known(body, signature)
            if known is not None:
                self.verified.append(known)
            elif not self.is_table and (node := verifier.stale(body)) is not None:
                self.stale.append(node)
            elif (signed := verifier.check(body, signature)) is not None:
                self.verified.append(signed)
            else:
                # Who asked for it must not wait for it.
                self.stale.append(peek_version(body)[0])
        self.next += len(portion)
        others = self.parsed.checks[self.checked : self.checked + count - len(portion)]
        for check in others:
            verifier.check_other(check)
        self.checked += len(others)
        return len(portion) + len(others)

    @property
    def done(self) -> bool:
        """Whether all records and other signatures are verified."""
        return self.next >= len(self.parsed.records) and self.checked >= len(self.parsed.checks)

    def message(self) -> Message:
        """The message with its verified records."""
        return self.parsed.build(tuple(self.verified), tuple(self.stale))


class MessageQueues:
    """The received messages of each peer whose records wait for verification, in their order."""

    def __init__(
        self,
        verifier: RecordVerifier,
        deliver: Callable[[NodeId, Message], None],
        refuse: Callable[[NodeId, BadMessage], None],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        """`deliver` gets each message, `refuse` the error of a bad record; `later` runs a function in the next turn of
        the event loop."""
        self._verifier = verifier
        self._deliver = deliver
        self._refuse = refuse
        self._later = later
        self._queues: dict[NodeId, deque[PendingMessage]] = {}
        self._scheduled = False

    def put(self, peer: NodeId, parsed: ParsedMessage) -> None:
        """Take a message in. Without records, and with nothing before it, it is delivered at once."""
        queue = self._queues.get(peer)
        if queue is None and not parsed.records and not parsed.checks:
            self._deliver(peer, parsed.build((), ()))
            return
        if queue is None:
            queue = self._queues[peer] = deque()
        queue.append(PendingMessage(parsed, isinstance(parsed.build((), ()), TableUpdate)))
        self._schedule()

    def drop(self, peer: NodeId) -> None:
        """Forget what `peer` sent."""
        self._queues.pop(peer, None)

    def finish(self, peer: NodeId) -> None:
        """The link of `peer` has ended: deliver what `LAST_RECORDS` allow of its messages, and forget the rest."""
        left = LAST_RECORDS
        for pending in self._queues.pop(peer, ()):
            try:
                left -= pending.advance(self._verifier, left)
            except BadMessage:
                return
            if not pending.done:
                return
            self._deliver(peer, pending.message())

    def _schedule(self) -> None:
        if self._queues and not self._scheduled:
            self._scheduled = True
            self._later(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        left = RECORDS_PER_TURN
        while self._queues and left > 0:
            # The peers take turns, so that a long message of one does not delay the others.
            peer = next(iter(self._queues))
            queue = self._queues.pop(peer)
            pending = queue[0]
            try:
                left -= pending.advance(self._verifier, left)
            except BadMessage as error:
                self._refuse(peer, error)
                continue
            if pending.done:
                queue.popleft()
            if queue:
                self._queues[peer] = queue
            if pending.done:
                self._deliver(peer, pending.message())
        self._schedule()
