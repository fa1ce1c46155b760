"""The lease of a pipeline split: its states, its timing and its messages.

A lease says which worker computes which layers of a model for a host. It has a time to live: the host renews it, and a
worker whose lease is not renewed frees itself. A higher generation of a session replaces the lower ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.membership.messages import Message
from meshllm.core.records import NodeId
from meshllm.core.split.planner import WorkerShare

# The host renews a lease this often (seconds). A renewal is 25 bytes: 13 bytes a second for each worker.
RENEW_SECONDS = 2.0
# A worker whose lease was not renewed for this long is free again (seconds). Five renewals in a row must be missing: a
# host that stalls for some seconds loses nothing. A dead host holds the memory of its workers no longer than a dead
# link would (net's idle timeout is of the same size).
LEASE_TTL_SECONDS = 10.0

SESSION_BYTES = 16
# Parts of one model's files, and a share for each node of a split; far above what there is.
MAX_FILES = 256
MAX_SHARES = 17
MAX_LAYERS = 4096


class LeasePhase(Enum):
    """The state of one worker's lease."""

    ASKED = "asked"  # the host waits for the worker's first report
    PREPARING = "preparing"
    READY = "ready"
    COMMITTED = "committed"
    ENDED = "ended"  # refused, released, expired or broken; the reason says which


_P = LeasePhase
TRANSITIONS: dict[tuple[LeasePhase, LeasePhase], str] = {
    (_P.ASKED, _P.PREPARING): "the worker accepts the proposal",
    (_P.ASKED, _P.READY): "the worker accepted an earlier copy of the proposal",
    (_P.ASKED, _P.ENDED): "refused, or no report in time",
    (_P.PREPARING, _P.PREPARING): "progress",
    (_P.PREPARING, _P.READY): "the rpc-server runs",
    (_P.PREPARING, _P.ENDED): "failed, released or expired",
    (_P.READY, _P.READY): "repeated report",
    (_P.READY, _P.COMMITTED): "all workers are ready",
    (_P.READY, _P.ENDED): "failed, released or expired",
    (_P.COMMITTED, _P.COMMITTED): "renewed",
    (_P.COMMITTED, _P.ENDED): "failed, released or expired",
}


@dataclass(frozen=True, slots=True)
class LeasedFile:
    """One GGUF file of the model: name (for users and for the store), bytes, sha256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The layers of a model that each node computes; the host's share is the first.

    `session` is random and names the split. `generation` grows with each new plan of the session.
    """

    session: bytes
    generation: int
    model: str
    files: tuple[LeasedFile, ...]
    shares: tuple[WorkerShare, ...]

    @property
    def host(self) -> NodeId:
        """The node that proposed the lease."""
        return self.shares[0].node

    @property
    def members(self) -> tuple[NodeId, ...]:
        """The workers, in the order of their layers."""
        return tuple(share.node for share in self.shares[1:])

    def share(self, node: NodeId) -> WorkerShare | None:
        """The layers of `node`; None if `node` is not part of the lease."""
        return next((share for share in self.shares if share.node == node), None)


@dataclass(frozen=True, slots=True)
class MemberState:
    """A worker as the host sees it. `detail` and `name` are for users; `reported_at` is the time of its last report;
    `leaving`: it is about to stop."""

    node: NodeId
    phase: LeasePhase = LeasePhase.ASKED
    detail: str = ""
    reported_at: float = 0.0
    name: str = ""
    leaving: bool = False


# -- messages


@dataclass(frozen=True, slots=True)
class LeaseMessage(Message):
    """Base of the messages about leases. A message counts only on the link between host and worker."""


@dataclass(frozen=True, slots=True)
class Propose(LeaseMessage):
    """Host to worker: prepare your share of `lease`."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class WorkerReport(LeaseMessage):
    """Worker to host: the phase of the lease. Repeated until the lease is committed; ENDED answers each message about a
    lease that the worker does not hold. `leaving`: the worker is about to stop; it goes on until the host releases the
    lease, but not for long."""

    session: bytes
    generation: int
    phase: LeasePhase
    detail: str = ""
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Commit(LeaseMessage):
    """Host to worker: all workers are ready, the host starts its engine."""

    session: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class Release(LeaseMessage):
    """Host to worker: the lease is over; free the memory."""

    session: bytes
    generation: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Renew(LeaseMessage):
    """Host to worker, every `RENEW_SECONDS`: the lease goes on for `LEASE_TTL_SECONDS`. `committed` repeats a Commit
    that may have been lost."""

    session: bytes
    generation: int
    committed: bool = False
