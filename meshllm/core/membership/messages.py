"""Messages on the control stream of a link. `wire/mesh/codec.py` encodes and decodes them, and bounds their length."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshllm.core.demand.levels import DemandLevel
from meshllm.core.membership.certificates import Right
from meshllm.core.records import MeshId, ModelLoad, NodeId, RecordVersion, SignedRecord

# A digest has at most 2**8 buckets: 1 KiB, whatever the size of the mesh.
MAX_DIGEST_BITS = 8
# Statements in one message: 12 KiB, and 6 ms of signature checks.
MAX_STATEMENTS_SENT = 64


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages."""


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """A request for a `Pong` with the same `number`."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to a `Ping`, with the load of the sender's models. `board`: to a client, as in `Digest`."""

    number: int
    loads: tuple[ModelLoad, ...] = ()
    board: bytes = b""


@dataclass(frozen=True, slots=True)
class Digest(Message):
    """A digest of the sender's table: 2**`bits` buckets by the first bits of the node id, 4 bytes each.

    A bucket's hash is the XOR of the hashes of each id and version in it (`summary.Summary`). `statements`: the hash of
    the sender's statements (`Authority.hash`), empty if it has no mesh key. `board`: the hash of its blackboard, empty
    if it has none.
    """

    bits: int
    hashes: bytes
    statements: bytes = b""
    board: bytes = b""


@dataclass(frozen=True, slots=True)
class Difference(Message):
    """The answer to a `Digest`: the versions that the answerer holds in the buckets whose hashes differ."""

    bits: int
    buckets: tuple[int, ...]
    held: tuple[tuple[NodeId, RecordVersion], ...]


@dataclass(frozen=True, slots=True)
class Wanted(Message):
    """A request for the records of these nodes."""

    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Records(Message):
    """Records that the receiver may lack. `push`: each receiver that did not have them forwards them at once.

    `stale` is not sent: the receiving daemon lists there the nodes whose records it left out, unverified, because it
    had newer ones.
    """

    records: tuple[SignedRecord, ...]
    push: bool = False
    stale: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscribe(Message):
    """From a client: send the whole table, and from now on its changes. `statements` as in `Digest`; `name` of the
    client, for users."""

    statements: bytes = b""
    name: str = ""


@dataclass(frozen=True, slots=True)
class TableUpdate(Message):
    """To a client: new records, and nodes that get no more requests.

    A whole table comes in portions: `first` marks the first of them, `more` every one except the last.
    """

    records: tuple[SignedRecord, ...]
    gone: tuple[NodeId, ...] = ()
    first: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True)
class Adopted(Message):
    """The sender has adopted this mesh id (see `mesh_merge`)."""

    mesh: MeshId


@dataclass(frozen=True, slots=True)
class Statements(Message):
    """Signed statements that the receiver may lack, and the hash of all the sender's (`Authority.hash`).

    The core checks the signatures. A receiver with another hash after taking them in answers with its own.
    """

    statements: tuple[bytes, ...]
    hash: bytes


@dataclass(frozen=True, slots=True)
class RenewCertificate(Message):
    """To a member with `Right.ADMIT`: the sender's certificate, which it asks to have renewed."""

    certificate: bytes


@dataclass(frozen=True, slots=True)
class RenewedCertificate(Message):
    """The answer: the new certificate, and the private mesh key (32 bytes) if its rights contain `ADMIT`, else none."""

    certificate: bytes
    mesh_private: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class ReplaceKey(Message):
    """To a member with `Right.ADMIT`: the sender wants to have the id `successor` from now on. Both keys sign the
    request (`wire/mesh/certificates.py`). The answer is the statement, which all members get, or `ReplaceRefused`."""

    successor: NodeId
    old_signature: bytes
    new_signature: bytes


@dataclass(frozen=True, slots=True)
class ReplaceRefused(Message):
    """The answer to a `ReplaceKey` that is not carried out, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskInvite(Message):
    """To a member with `Right.ADMIT`: make an invite. `expires` in unix seconds, `lifetime` of the certificates in
    seconds, `flags` as in the invite."""

    rights: Right
    expires: int
    lifetime: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class GrantedInvite(Message):
    """The answer: the invite's serial, rights, expiry and key (16 bytes); all empty with the reason of a refusal."""

    serial: bytes
    rights: Right
    expires: int
    lifetime: int
    key: bytes = field(default=b"", repr=False)
    refused: str = ""


@dataclass(frozen=True, slots=True)
class ReportDemand(Message):
    """From a client: what its callers ask for (`core/demand`). It replaces the last report, and expires."""

    demand: tuple[DemandLevel, ...]


# Those that `MeshParticipant` answers alike for nodes and clients.
MembershipMessage = RenewCertificate | RenewedCertificate | AskInvite | GrantedInvite | ReplaceKey | ReplaceRefused
