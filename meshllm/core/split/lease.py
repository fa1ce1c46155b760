"""What host and workers of a split agree on, and the words for it.

Law: a lease is proposed by the host of the model alone and holds only while both ends keep it; a worker serves nothing
without one. A new generation of a session replaces the one before; what belongs to an older one changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.membership.messages import Message
from meshllm.core.records import NodeId
from meshllm.core.split.planner import WorkerShare

SESSION_BYTES = 16
# Parts of one model's files, and a share for each node of a split; far above what there is.
MAX_FILES = 256
MAX_SHARES = 17
MAX_LAYERS = 4096


class LeasePhase(Enum):
    """How far a worker is with a lease."""

    ASKED = "asked"  # the host waits for its first word
    PREPARING = "preparing"
    READY = "ready"
    COMMITTED = "committed"
    ENDED = "ended"  # refused, given back or broken; the reason says which


# What may follow what. Whatever else is told of a lease is about another one, or a lie.
TRANSITIONS: dict[LeasePhase, frozenset[LeasePhase]] = {
    LeasePhase.ASKED: frozenset({LeasePhase.PREPARING, LeasePhase.READY, LeasePhase.ENDED}),
    LeasePhase.PREPARING: frozenset({LeasePhase.PREPARING, LeasePhase.READY, LeasePhase.ENDED}),
    LeasePhase.READY: frozenset({LeasePhase.READY, LeasePhase.COMMITTED, LeasePhase.ENDED}),
    LeasePhase.COMMITTED: frozenset({LeasePhase.ENDED}),
    LeasePhase.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class LeasedFile:
    """One of the model's GGUF files: its name (for people and for the store), bytes, sha256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The agreement: who carries which layers of which model. The host's share comes first.

    `session` is random and names the split; `generation` counts how often it was agreed on anew.
    """

    session: bytes
    generation: int
    model: str
    files: tuple[LeasedFile, ...]
    shares: tuple[WorkerShare, ...]

    @property
    def host(self) -> NodeId:
        """Who proposed it."""
        return self.shares[0].node

    @property
    def members(self) -> tuple[NodeId, ...]:
        """The workers, in the order of their layers."""
        return tuple(share.node for share in self.shares[1:])

    def share(self, node: NodeId) -> WorkerShare | None:
        """What `node` carries; None if it has no part in this."""
        return next((share for share in self.shares if share.node == node), None)


@dataclass(frozen=True, slots=True)
class MemberState:
    """A worker as the host sees it. `detail` and `name` are for people; `heard` is when it last spoke (seconds)."""

    node: NodeId
    phase: LeasePhase = LeasePhase.ASKED
    detail: str = ""
    heard: float = 0.0
    name: str = ""


# -- what they say to each other


@dataclass(frozen=True, slots=True)
class LeaseMessage(Message):
    """Base of the messages about leases. They count only on the link between the two whom they concern."""


@dataclass(frozen=True, slots=True)
class Propose(LeaseMessage):
    """From the host: carry your share of this."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class WorkerReport(LeaseMessage):
    """From a worker: how far it is. It repeats PREPARING while that lasts, and says ENDED once."""

    session: bytes
    generation: int
    phase: LeasePhase
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Commit(LeaseMessage):
    """From the host: all are ready, it begins."""

    session: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class Release(LeaseMessage):
    """From the host: this is over; what was taken for it is free."""

    session: bytes
    generation: int
    reason: str = ""
