"""What readers may know of the mesh: the frozen part of the snapshot that speaks of other nodes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeId, NodeRecord, Role


class PeerStatus(Enum):
    """Where a peer is in its life. Only `ALIVE` is routable and counted; the table of changes is in `membership.py`."""

    UNVERIFIED = "unverified"  # others spoke of it; nothing has shown yet that it lives
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer. `rtt` in seconds, None if never measured; `linked`: there is a connection; `since`: of the status.

    `loads` are the newest known, by answer or by record.
    """

    record: NodeRecord
    status: PeerStatus
    linked: bool = False
    rtt: float | None = None
    loads: tuple[ModelLoad, ...] = ()
    since: float = 0.0
    reason: str = ""

    @property
    def node(self) -> NodeId:
        """Who it is."""
        return self.record.node


class JoinPhase(Enum):
    """How far this node is with finding its mesh."""

    ALONE = "alone"  # nothing to join; others may join us
    DIALLING = "dialling"
    SYNCING = "syncing"  # a link is there, the table is on its way
    JOINED = "joined"
    FAILED = "failed"  # nobody answered within the deadline; it goes on trying, slowly


class JoinAttemptState(Enum):
    """How far one bootstrap address is. `WAITING` ones are not shown."""

    WAITING = "waiting"
    DIALLING = "dialling"
    LINKED = "linked"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class JoinAttempt:
    """One way in and what became of it, in words for people. `at` in seconds, monotonic."""

    address: BootstrapAddress
    state: JoinAttemptState
    reason: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class MeshView:
    """The mesh as this node sees it. `record` is its own (None for a client)."""

    node: NodeId
    mesh: MeshId
    role: Role
    phase: JoinPhase = JoinPhase.ALONE
    join_attempts: tuple[JoinAttempt, ...] = ()
    record: NodeRecord | None = None
    peers: tuple[PeerView, ...] = ()
    clients: int = 0
    reason: str = ""

    @property
    def settling(self) -> bool:
        """Whether models may still turn up because the join has not come to an end."""
        return self.phase in (JoinPhase.DIALLING, JoinPhase.SYNCING)
