"""A node's part in splits: those that it hosts, and the one that it may lend to.

Law: which node hosts a model that needs several follows from what all of them say of themselves, so that nobody has to
be asked: of those that were asked to serve it, the one with most room. Once somebody serves it nobody else begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.links import Rng
from meshllm.core.membership.views import JoinPhase
from meshllm.core.records import NodeId, NodeRecord, SplitCandidate, short
from meshllm.core.snapshot import ModelState
from meshllm.core.split.host import SplitHost, SplitState
from meshllm.core.split.lease import LeaseMessage, Propose, WorkerReport
from meshllm.core.split.planner import WorkerOffer, choose_host
from meshllm.core.split.worker import SplitWorker, WorkerLeaseState

# A model that could be served from the disk, slowly, waits so long for nodes to share it with, where there is a mesh.
DISK_PAGING_SECONDS = 5.0


class SplitNeighbors(Protocol):
    """What is known of the others."""

    def alive(self) -> list[NodeRecord]:
        """What the nodes say that live."""

    def rtt(self, node: NodeId) -> float | None:
        """The round trip to `node` in seconds; None where it was never measured."""

    def linked(self, node: NodeId) -> bool:
        """Whether there is a link."""

    def dial(self, node: NodeId, now: float) -> bool:
        """Have a link to it made. False if that cannot be."""


class SplitCoordinator:
    """Hands what happens to `Hosting` and `Lending`, and collects what is to be done."""

    def __init__(self, own: NodeId, mesh: SplitNeighbors, rng: Rng, phase: Callable[[], JoinPhase]) -> None:
        """`phase`: how far this node is with finding its mesh."""
        self._own = own
        self._mesh = mesh
        self._phase = phase
        self._refused: dict[str, float] = {}  # since when
        self._out: list[c.Command] = []
        self._hosting = SplitHost(own, rng, self._send, mesh.linked, mesh.dial)
        self._lending = SplitWorker(own, self._send)

    def _send(self, peer: NodeId, message: LeaseMessage) -> None:
        self._out.append(c.Send(peer, message))
        if isinstance(message, Propose):
            self._out.append(c.OpenAhead(peer))

    def drain_commands(self) -> list[c.Command]:
        """What is to be done since the last time."""
        done = [*self._out, *self._lending.drain_commands()]
        self._out.clear()
        return done

    def next_deadline(self) -> float | None:
        """When to look at the clock again."""
        times = (self._hosting.next_deadline(), self._lending.next_deadline())
        return min((at for at in times if at is not None), default=None)

    # -- as a worker

    @property
    def worker_lease(self) -> WorkerLeaseState | None:
        """What this node carries for others, if anything."""
        return self._lending.state

    def on_worker_event(self, event: e.WorkerProgress | e.WorkerReady | e.WorkerGone) -> None:
        """Something happened to the process of a lease."""
        self._lending.on_worker_event(event)

    # -- what others do

    def on_message(
        self, peer: NodeId, message: LeaseMessage, free: int, busy: Callable[[str], str], now: float
    ) -> None:
        """A peer speaks of a lease. `free` bytes could be lent; `busy(model)` says why nothing can for that one."""
        if not self._mesh.linked(peer):
            return
        match message:
            case Propose(lease):
                self._lending.on_propose(peer, message, free, busy(lease.model), now)
            case WorkerReport():
                self._hosting.on_worker_status(peer, message, now)
            case _:
                self._lending.on_message(peer, message)

    def link_up(self, peer: NodeId, now: float) -> None:
        """There is a link to `peer`."""
        self._hosting.link_up(peer, now)

    def link_down(self, peer: NodeId, now: float) -> None:
        """The link to `peer` is gone, and every tunnel to it."""
        self._hosting.drop_member(peer, "the link to it is gone", now)
        self._lending.host_lost(peer)

    def tunnel_broken(self, event: e.TunnelBroken, now: float) -> None:
        """The engine here has lost one of its workers, whatever becomes of the link."""
        self._hosting.tunnel_broken(event.worker, event.session, event.generation, now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._hosting.tick(now)
        self._lending.tick(now)

    def stop(self) -> None:
        """This node ends."""
        self._lending.stop()
        for model, _ in list(self._hosting.states()):
            self._hosting.release(model, "the host stops")

    # -- as a host

    def candidate(self, model: ModelState) -> SplitCandidate | None:
        """What this node says of a model that it would host a split of."""
        measured = model.measured
        if not model.wanted or measured is None or (measured.fits_locally and not model.force_split):
            return None
        return SplitCandidate(model.name, measured.free_bytes, model.force_split)

    def advance_lease(self, model: ModelState, speed: int, now: float) -> SplitState:
        """How the agreement about `model` stands now, after the next step towards it. `speed` is this node's."""
        assert model.measured is not None
        phase = self._phase()
        if phase in (JoinPhase.DIALLING, JoinPhase.SYNCING):
            return SplitState(f"it needs other nodes, and this one is still {phase.value}")
        alive = self._mesh.alive()
        elsewhere = self._elsewhere(model, alive)
        if elsewhere is not None:
            self._hosting.release(model.name, "another node hosts it")
            name = next((record.name for record in alive if record.node == elsewhere), "") or short(elsewhere)
            return SplitState(f"{name} is the one to host it: it has more memory, or serves it already")
        lenders = [self._lender(record) for record in alive if lends(record, model.name)]
        host = WorkerOffer(self._own, model.measured.free_bytes, 0.0, speed)
        split = self._hosting.advance_lease(model.name, model.measured, host, lenders, now, force=model.force_split)
        if not split.refused:
            self._refused.pop(model.name, None)
            return split
        # Whoever could help may be about to be heard of.
        since = self._refused.setdefault(model.name, now)
        helpless = phase is JoinPhase.ALONE or now - since >= DISK_PAGING_SECONDS
        return replace(split, disk_paging=model.measured.disk_paging and helpless and not model.force_split)

    def state(self, model: str) -> SplitState | None:
        """How the agreement about `model` stands; None if there is none."""
        return self._hosting.state(model)

    def release(self, model: str, reason: str) -> None:
        """The lease of `model` is over, if there is one."""
        self._hosting.release(model, reason)

    def _lender(self, record: NodeRecord) -> WorkerOffer:
        return WorkerOffer(
            record.node, record.memory, self._mesh.rtt(record.node), record.speed, record.devices, record.name
        )

    def _elsewhere(self, model: ModelState, alive: Iterable[NodeRecord]) -> NodeId | None:
        """Who hosts `model` if not this node."""
        assert model.measured is not None
        candidates = [WorkerOffer(self._own, model.measured.free_bytes)]
        for record in alive:
            if record.leaving:
                continue
            if any(served.name == model.name for served in record.serves):
                return record.node
            candidates += [
                WorkerOffer(record.node, said.free_bytes) for said in record.splits if said.model == model.name
            ]
        host = choose_host(candidates, model.name)
        return host if host != self._own else None


def lends(record: NodeRecord, model: str) -> bool:
    """Whether that node has nothing else to do than to carry layers of `model`."""
    return not record.serves and not record.leaving and record.memory > 0 and set(record.wants) <= {model}
