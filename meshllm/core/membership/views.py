"""The mesh as readers see it: the part of the snapshot about other nodes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeId, NodeRecord, Role, short


class PeerStatus(Enum):
    """The status of a peer. Only `ALIVE` peers get requests; the transitions are in `table.TRANSITIONS`."""

    UNVERIFIED = "unverified"  # known from other nodes only; nothing has proved that it is alive
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer. `rtt` in seconds, None if never measured; `since`: when the status began.

    `loads`: the newest, from a pong or from the record. `owned`: its certificate says that it is one of the owner's own
    machines (`certificates.is_owner`).
    """

    record: NodeRecord
    status: PeerStatus
    linked: bool = False
    rtt: float | None = None
    loads: tuple[ModelLoad, ...] = ()
    since: float = 0.0
    reason: str = ""
    owned: bool = False

    @property
    def node(self) -> NodeId:
        """The node id."""
        return self.record.node


@dataclass(frozen=True, slots=True)
class AwayMember:
    """A member that is not here now. `served`: the models that it served last; `seen`: when it was alive last, on the
    monotonic clock (before its start for a member of an earlier run)."""

    node: NodeId
    name: str
    served: tuple[str, ...] = ()
    seen: float = 0.0

    @property
    def label(self) -> str:
        """The name for users."""
        return self.name or short(self.node)


@dataclass(frozen=True, slots=True)
class ClientView:
    """A client that is linked to this node. `since`: when the link came up; `rtt` in seconds."""

    node: NodeId
    name: str
    since: float
    rtt: float

    @property
    def label(self) -> str:
        """The name for users."""
        return self.name or short(self.node)


class JoinPhase(Enum):
    """How far the join is."""

    ALONE = "alone"  # nothing to join; other nodes may join this one
    DIALLING = "dialling"
    SYNCING = "syncing"  # linked; the table is being transferred
    JOINED = "joined"
    ALONE_FOR_NOW = "alone for now"  # a member whose other members are all away; the retries go on
    FAILED = "failed"  # no answer within the deadline; the retries go on
    REFUSED = "refused"  # the invite is used, revoked, expired or void: nothing is dialled
    DUPLICATE = "duplicate"  # another machine has the same identity: nothing is dialled
    EXPELLED = "expelled"  # no member any more: nothing is dialled


class JoinAttemptState(Enum):
    """How far one bootstrap address is. `WAITING` ones are not shown."""

    WAITING = "waiting"
    DIALLING = "dialling"
    LINKED = "linked"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class JoinAttempt:
    """A bootstrap address and its state. `at`: when the state began, in seconds of the monotonic clock."""

    address: BootstrapAddress
    state: JoinAttemptState
    reason: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class MeshView:
    """The mesh as this node sees it. `record`: its own (None for a client); `clients`: those that are linked to it;
    `away`: members that were known and are not here now, the last seen first. `duplicate`: a record that another
    machine wrote with this node's key."""

    node: NodeId
    mesh: MeshId
    role: Role
    phase: JoinPhase = JoinPhase.ALONE
    join_attempts: tuple[JoinAttempt, ...] = ()
    record: NodeRecord | None = None
    peers: tuple[PeerView, ...] = ()
    clients: tuple[ClientView, ...] = ()
    reason: str = ""
    away: tuple[AwayMember, ...] = ()
    duplicate: NodeRecord | None = None

    @property
    def settling(self) -> bool:
        """Whether the join is under way, so that more models may appear."""
        return self.phase in (JoinPhase.DIALLING, JoinPhase.SYNCING)
