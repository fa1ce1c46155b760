"""Who is a member: the mesh key, the statements it signed, and the certificates that count.

Invariants: only what the current mesh key signed counts, and for a while after a rotation the certificates that were
known by then; no others of the old key, which may be in wrong hands. An expulsion is never forgotten, not even by a
rotation. The set only grows, and its hash is that of its meaning: nodes with the same set have the same hash, in
whatever order they took the statements in. A node that replaced its key is one member: its old id counts no longer, and
an expulsion of one of its ids is one of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b

from meshllm.core.ids import NodeId
from meshllm.core.membership.certificates import (
    MAX_STATEMENTS,
    NO_RIGHTS,
    NODE_RIGHTS,
    Certificate,
    CertificateTerms,
    MeshKey,
    Right,
    SignedCertificate,
    SignedStatement,
    Statement,
    StatementKind,
)
from meshllm.core.records import PIN_BYTES, NodeRecord, SignedRecord

# How long certificates of the previous mesh key count, for nodes that were known when the key changed.
KEY_GRACE_SECONDS = 3600.0
# Certificates whose signature is not checked again. One takes about 600 bytes.
MAX_READ = 4096
HASH_BYTES = 8
# Replaced keys that are kept: half of the room, so that members cannot fill what expulsions need. One member may
# replace its key this often in this time (seconds).
MAX_REPLACED = MAX_STATEMENTS // 2
# Guests stop at a quarter of that: the rest is for the owner's machines.
MAX_REPLACED_FOR_GUESTS = MAX_REPLACED // 4
MAX_REPLACED_RECENTLY, REPLACED_RECENTLY = 4, 30 * 86_400
# Statements that a refused node is shown as the reason.
MAX_REASONS = 3

# Bytes to a value with a verified signature of one of the keys, else None.
ReadCertificate = Callable[[bytes, tuple[MeshKey, ...]], SignedCertificate | None]
ReadStatement = Callable[[bytes, tuple[MeshKey, ...]], SignedStatement | None]


class Authority:
    """What one node knows of the mesh key and its statements. The shell reads it; the core alone changes it."""

    def __init__(
        self,
        key: MeshKey,
        read_certificate: ReadCertificate,
        read_statement: ReadStatement,
        statements: Iterable[bytes] = (),
        previous: MeshKey | None = None,
    ) -> None:
        """`statements` and `previous` as saved (`SaveStatements`)."""
        self._read_certificate = read_certificate
        self._read_statement = read_statement
        self.adopt(key, statements, previous)

    def adopt(self, key: MeshKey, statements: Iterable[bytes] = (), previous: MeshKey | None = None) -> None:
        """Begin with the key of a mesh, knowing nothing of any other; before the first link to it is up."""
        self.key = key
        self.previous = previous
        self.rotation: SignedStatement | None = None
        self._known: dict[tuple[StatementKind, bytes], SignedStatement] = {}
        self._prefixes: set[bytes] = set()
        self._successors: dict[NodeId, set[NodeId]] = {}
        self._predecessors: dict[NodeId, set[NodeId]] = {}
        self._grace: frozenset[CertificateTerms] = frozenset()
        self._grace_nodes: frozenset[NodeId] = frozenset()
        self._read: dict[bytes, SignedCertificate] = {}
        self._hash = _hash_of(b"key", key)
        for data in statements:
            self._restore(data)

    # -- statements

    @property
    def hash(self) -> bytes:
        """Equal at two nodes exactly if both have the same key and the same statements."""
        return self._hash.to_bytes(HASH_BYTES, "big")

    @property
    def statements(self) -> tuple[SignedStatement, ...]:
        """All that counts, the change to the current key first."""
        return (*((self.rotation,) if self.rotation is not None else ()), *self._known.values())

    def is_expelled(self, node: NodeId) -> bool:
        """Whether `node` is no member any more: it was expelled, under this or an earlier id, or replaced its key."""
        if (StatementKind.EXPEL, node) in self._known or node in self._successors:
            return True
        before = self._before(node)
        # More than one successor is a member that tries to become two.
        return any((StatementKind.EXPEL, old) in self._known or len(self._successors[old]) > 1 for old in before)

    def is_gone(self, node: NodeId) -> bool:
        """Whether the member that had the id `node` once is no member any more, under whichever id."""
        return self.is_expelled(self.successor(node))

    def successor(self, node: NodeId) -> NodeId:
        """The newest id of a node that replaced its key, else `node`."""
        seen = set()
        while node not in seen and len(found := self._successors.get(node, set())) == 1:
            seen.add(node)
            (node,) = found
        return node

    def _before(self, node: NodeId) -> set[NodeId]:
        """All earlier ids of `node`."""
        found: set[NodeId] = set()
        left = list(self._predecessors.get(node, ()))
        while left:
            old = left.pop()
            if old not in found:
                found.add(old)
                left += self._predecessors.get(old, ())
        return found

    def may_replace(self, node: NodeId, successor: NodeId, now_unix: float, *, owned: bool) -> str:
        """Why `node` may not get the new id `successor`; "" if it may, or has it already. `owned`: it is one of the
        owner's machines."""
        if node == successor:
            return "the new key is the old one"
        if self._successors.get(node) == {successor}:
            return ""
        if node in self._successors or successor in self._predecessors or self.is_expelled(successor):
            return "one of the keys was replaced before"
        replaced = [known.statement for place, known in self._known.items() if place[0] is StatementKind.REPLACE]
        before = self._before(node)
        recent = sum(each.subject in before and each.made > now_unix - REPLACED_RECENTLY for each in replaced)
        if recent >= MAX_REPLACED_RECENTLY:
            return f"the node replaced its key {recent} times in the last {REPLACED_RECENTLY // 86_400} days"
        if len(replaced) >= (MAX_REPLACED if owned else MAX_REPLACED_FOR_GUESTS) or len(self._known) >= MAX_STATEMENTS:
            return "the mesh has no room for more replaced keys"
        return ""

    def replaced_since(self, made: float) -> set[NodeId]:
        """The newest ids of the nodes that replaced their key after `made` (unix seconds)."""
        said = [known.statement for (kind, _), known in self._known.items() if kind is StatementKind.REPLACE]
        return {self.successor(NodeId(each.subject)) for each in said if each.made > made}

    def expulsion_of(self, node: NodeId) -> tuple[bytes, ...]:
        """The statements that tell `node` why it is no member any more, the change to the current key first."""
        ids = {node, *self._before(node)}
        found = [self._known[place].data for old in ids if (place := (StatementKind.EXPEL, old)) in self._known]
        found += [
            known.data
            for (kind, _), known in self._known.items()
            if kind is StatementKind.REPLACE and known.statement.subject == node
        ]
        return (*((self.rotation.data,) if self.rotation is not None else ()), *found[:MAX_REASONS])

    def may_dial(self, pin: bytes) -> bool:
        """Whether the node of that id, or of those first bytes of an id, is not expelled."""
        return pin[:PIN_BYTES] not in self._prefixes

    def is_revoked(self, invite: bytes) -> bool:
        """Whether the invite of that serial was revoked."""
        return (StatementKind.REVOKE_INVITE, invite) in self._known

    def knows(self, data: bytes) -> bool:
        """Whether these bytes are known, so that no signature needs a check."""
        return any(known.data == data for known in self.statements)

    def learn(self, data: bytes) -> SignedStatement | None:
        """Take in a statement; returns it if it is new, None if it is known, invalid or there is no room."""
        signed = self._read_statement(data, (self.key,))
        if signed is None:
            return None
        if signed.statement.kind is StatementKind.NEW_KEY:
            self._rotate(signed)
            return signed
        known = self._known.get(_place(signed.statement))
        if known is None and not self._has_room(signed.statement.kind):
            return None
        if known is not None and known.key == self.key:
            return None
        self._keep(signed)
        return signed

    def _restore(self, data: bytes) -> None:
        signed = self._read_statement(data, (self.key,) if self.previous is None else (self.key, self.previous))
        if signed is None:
            return
        if signed.statement.kind is not StatementKind.NEW_KEY:
            self._keep(signed)
        elif signed.key == self.previous and signed.statement.subject == self.key:
            self.rotation = signed

    def _keep(self, signed: SignedStatement) -> None:
        kind, what = place = _place(signed.statement)
        if place not in self._known:
            self._hash ^= _hash_of(kind.name.encode(), what)
        self._known[place] = signed
        if kind is StatementKind.REVOKE_INVITE:
            return
        old, new = NodeId(signed.statement.subject), signed.statement.by
        if kind is StatementKind.REPLACE:
            self._successors.setdefault(old, set()).add(new)
            self._predecessors.setdefault(new, set()).add(old)
            self._grace |= {_renamed(terms, old, new) for terms in self._grace if old in (terms[0], terms[4])}
            self._grace_nodes = frozenset([terms[0] for terms in self._grace])
        self._prefixes |= {node[:PIN_BYTES] for node in self._ids(old) if self.is_expelled(node)}

    def _ids(self, node: NodeId) -> set[NodeId]:
        """`node`, and the ids that it got later."""
        found: set[NodeId] = set()
        left = [node]
        while left:
            now = left.pop()
            if now not in found:
                found.add(now)
                left += self._successors.get(now, ())
        return found

    def _has_room(self, kind: StatementKind) -> bool:
        """Whether another statement fits. A revoked invite expires by itself, so the oldest yields to an expulsion."""
        if len(self._known) < MAX_STATEMENTS:
            return True
        old = next((place for place in self._known if place[0] is StatementKind.REVOKE_INVITE), None)
        if kind not in (StatementKind.EXPEL, StatementKind.REPLACE) or old is None:
            return False
        del self._known[old]
        self._hash ^= _hash_of(old[0].name.encode(), old[1])
        return True

    def _rotate(self, signed: SignedStatement) -> None:
        """The next key counts from now on. What is known stays known: an expelled node must not slip in between."""
        new = MeshKey(signed.statement.subject)
        self._hash ^= _hash_of(b"key", self.key) ^ _hash_of(b"key", new)
        self.previous, self.key, self.rotation = self.key, new, signed
        self._read.clear()

    # -- the time after a rotation

    def begin_grace(self, known: Iterable[Certificate]) -> None:
        """Certificates of the previous key with the terms of these still count. Others do not: who has the old private
        key could give a member more rights, or the same for longer."""
        self._grace = frozenset([certificate.terms for certificate in known])
        self._grace_nodes = frozenset([terms[0] for terms in self._grace])

    @property
    def grace(self) -> frozenset[CertificateTerms]:
        """The terms of the certificates of the previous key that still count."""
        return self._grace

    def restore_grace(self, terms: frozenset[CertificateTerms]) -> None:
        """As it was before a restart."""
        self._grace = terms
        self._grace_nodes = frozenset([each[0] for each in terms])

    def grace_left(self, now_unix: float) -> float:
        """How long after the last change of the key certificates of the one before count yet (seconds, or 0)."""
        if self.rotation is None:
            return 0.0
        left = self.rotation.statement.made + KEY_GRACE_SECONDS - now_unix
        return min(max(left, 0.0), KEY_GRACE_SECONDS)

    def end_grace(self) -> None:
        """Certificates of the previous key count no longer."""
        self._grace = frozenset()
        self._grace_nodes = frozenset()

    # -- certificates

    def is_current(self, data: bytes) -> bool:
        """Whether the certificate of these bytes was signed by the current key; it was read before."""
        read = self._read.get(data)
        return read is not None and read.key == self.key

    def is_current_member(self, member: Certificate) -> bool:
        """Whether the current key signed this certificate; it was read before."""
        said = member.serial, member.rights, member.issued, member.expires
        found = [read.certificate for read in self._read.values() if read.key == self.key]
        return any((each.serial, each.rights, each.issued, each.expires) == said for each in found)

    def certificate(self, data: bytes, node: NodeId, now_unix: float) -> Certificate | None:
        """The certificate of `node` in these bytes if it counts now, else None. A known one costs no check of a
        signature."""
        read = self._read.get(data)
        if read is None:
            keys: tuple[MeshKey, ...] = (self.key,)
            if self.previous is not None and node in self._grace_nodes:
                keys = (self.key, self.previous)
            read = self._read_certificate(data, keys)
            if read is None:
                return None
            if len(self._read) >= MAX_READ:
                del self._read[next(iter(self._read))]
            self._read[data] = read
        found = read.certificate
        ours = found.node == node or self.successor(found.node) == node
        if not ours or not found.valid_at(now_unix) or self.is_expelled(node):
            return None
        inviter = self.successor(found.inviter)
        if found.node != node or found.inviter != inviter:
            found = replace(found, node=node, inviter=inviter)
        void = read.key != self.key and (read.key != self.previous or found.terms not in self._grace)
        return None if void else found

    def holder(self, data: bytes, now_unix: float) -> NodeId | None:
        """Whose certificate these bytes are, if it counts now."""
        keys = (self.key,) if self.previous is None else (self.key, self.previous)
        read = self._read.get(data) or self._read_certificate(data, keys)
        if read is None:
            return None
        node = self.successor(read.certificate.node)
        return node if self.certificate(data, node, now_unix) is not None else None

    def admit(self, signed: SignedRecord, now_unix: float) -> SignedRecord | None:
        """The record as far as its certificate allows; None if its node is no member with a record."""
        record = signed.record
        member = self.certificate(record.certificate, record.node, now_unix)
        if member is None or not member.rights & NODE_RIGHTS:
            return None
        return replace(signed, record=restricted(record, member.rights), member=member)


def restricted(record: NodeRecord, rights: Right) -> NodeRecord:
    """`record` without what its node has no right to offer or to ask for."""
    offers = record.serves or record.on_disk or record.aliases or record.loading or record.room or record.download_room
    if Right.SERVE not in rights and (offers or record.unserved):
        record = replace(record, serves=(), loads=(), on_disk=(), aliases=(), disk_sizes=(), loading=(), unserved=())
        record = replace(record, room=0, download_room=0)
    if Right.WORK not in rights and (record.memory or record.devices):
        record = replace(record, memory=0, devices=(), speed=0, machine_memory=0)
    if Right.HOST not in rights and record.splits:
        record = replace(record, splits=())
    if Right.USE not in rights and (record.wants or record.demand):
        record = replace(record, wants=(), demand=())
    return record


def rights_of(member: Certificate | None, authority: Authority | None) -> Right:
    """The rights of a peer with that certificate; none without a certificate or a mesh key."""
    return NO_RIGHTS if member is None or authority is None or authority.is_expelled(member.node) else member.rights


def _renamed(terms: CertificateTerms, old: NodeId, new: NodeId) -> CertificateTerms:
    """`terms` of a node, or of an invited one, that has a new id."""
    node, rights, issued, expires, inviter, invite = terms
    return (new if node == old else node, rights, issued, expires, new if inviter == old else inviter, invite)


def portions(statements: tuple[SignedStatement, ...], most: int) -> Iterator[tuple[bytes, ...]]:
    """The bytes of statements, at most `most` at a time."""
    for first in range(0, len(statements), most):
        yield tuple([signed.data for signed in statements[first : first + most]])


def _place(statement: Statement) -> tuple[StatementKind, bytes]:
    """What a statement says, without when and by whom. Two successors of one node are two statements."""
    more = statement.by if statement.kind is StatementKind.REPLACE else b""
    return statement.kind, statement.subject + more


def _hash_of(what: bytes, subject: bytes) -> int:
    return int.from_bytes(blake2b(what + b"\0" + subject, digest_size=HASH_BYTES).digest(), "big")
