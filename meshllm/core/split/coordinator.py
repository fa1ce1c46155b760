"""A node's part in pipeline splits: as a host of several, and as a worker of one.

Each node decides from the records of all nodes which node hosts a model: of the nodes asked to serve it, the one with
most free memory. A node that already serves the model stays its host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.links import Rng
from meshllm.core.membership.views import JoinPhase
from meshllm.core.records import ModelLoad, NodeId, NodeRecord, SplitCandidate, short
from meshllm.core.snapshot import ModelState
from meshllm.core.split.corrections import Correction, Corrections
from meshllm.core.split.host import SplitHost, SplitState
from meshllm.core.split.lease import Lease, LeaseMessage, Propose, WorkerReport
from meshllm.core.split.measurement import Circumstances
from meshllm.core.split.planner import WorkerOffer, choose_host
from meshllm.core.split.worker import SplitWorker, WorkerLeaseState

# A model that this node could serve slowly, with weights read from the disk, waits this long for workers (seconds).
DISK_PAGING_SECONDS = 5.0
# While members are away, callers wait this long for them before they are refused: after a power cut all machines start,
# one later than the other.
AWAY_SECONDS = 30.0
# And this long after a node has come: it publishes its free memory a moment after its link is up.
NEW_NODE_SECONDS = 5.0
# Why a lease of a client, or of a member without the right, is refused.
NO_HOST = "your membership does not let you host splits on other nodes: ask for an invite with the right 'host'"


# Members that a message names.
MAX_NAMES = 3


class SplitNeighbors(Protocol):
    """What the split needs to know of the other nodes."""

    def alive(self) -> list[NodeRecord]:
        """The records of the live nodes."""

    def rtt(self, node: NodeId) -> float | None:
        """The round trip to `node` in seconds; None if it was never measured."""

    def linked(self, node: NodeId) -> bool:
        """Whether there is a link to `node`."""

    def dial(self, node: NodeId, now: float) -> bool:
        """Dial `node`. False if that cannot be done now."""


class SplitCoordinator:
    """Passes events to `SplitHost` and `SplitWorker`, and collects their commands."""

    def __init__(
        self,
        own: NodeId,
        mesh: SplitNeighbors,
        rng: Rng,
        phase: Callable[[], JoinPhase],
        away: Callable[[], tuple[str, ...]] = tuple,
        machine: Callable[[], tuple[bytes, int]] = lambda: (b"", 0),
        corrections: Iterable[Correction] = (),
    ) -> None:
        """`phase`: how far this node is with joining its mesh; `away`: the names of members that are away; `machine`:
        `machine` and `machine_memory` of this node's record; `corrections`: what earlier splits took."""
        self._own = own
        self._mesh = mesh
        self._phase = phase
        self._away = away
        self._machine = machine
        self._loads: dict[str, int] = {}  # running requests by model
        self._most_loads: dict[str, int] = {}  # the most at a time since the last measurement
        self._linked_at = float("-inf")  # when the last link to a node came up
        self._refused_since: dict[str, float] = {}
        self._commands: list[c.Command] = []
        self._opened: dict[NodeId, tuple[bytes, int]] = {}  # the newest lease proposed to each worker
        self._hosts: set[NodeId] = set()  # linked peers that may host splits
        self._host = SplitHost(own, rng, self._send, mesh.linked, mesh.dial, Corrections(corrections))
        self._worker = SplitWorker(own, self._send)

    def _send(self, peer: NodeId, message: LeaseMessage) -> None:
        self._commands.append(c.Send(peer, message))
        if isinstance(message, Propose):
            key = (message.lease.session, message.lease.generation)
            if self._opened.get(peer) != key:
                self._opened[peer] = key
                self._commands.append(c.OpenAhead(peer))

    def drain_commands(self) -> list[c.Command]:
        """The commands since the last call."""
        done = [*self._commands, *map(self._with_sharers, self._worker.drain_commands())]
        self._commands.clear()
        return done

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        times = (self._host.next_deadline(), self._worker.next_deadline())
        return min((at for at in times if at is not None), default=None)

    # -- as a worker

    @property
    def worker_lease(self) -> WorkerLeaseState | None:
        """The lease that this node holds as a worker; None if it holds none."""
        return self._worker.state

    @property
    def leased_memory(self) -> int:
        """Bytes that this node's share of that lease needs."""
        state = self._worker.state
        share = state.lease.share(self._own) if state is not None else None
        return share.memory if share is not None else 0

    def on_worker_event(self, event: e.WorkerProgress | e.WorkerReady | e.WorkerGone, now: float) -> None:
        """The rpc-server of a lease, or its preparation, made progress or ended."""
        self._worker.on_worker_event(event, now)

    def memory_used(self, used: int) -> None:
        """Bytes that the worker process takes now."""
        self._worker.memory_used(used)

    # -- events of other nodes

    def on_message(
        self, peer: NodeId, message: LeaseMessage, free: int, busy: Callable[[str], str], now: float
    ) -> None:
        """A message of `peer` about a lease. `free`: bytes this node offers; `busy(model)`: why it accepts no lease for
        that model, "" if it does."""
        if not self._mesh.linked(peer):
            return
        match message:
            case Propose(lease):
                if peer not in self._hosts:
                    self._worker.refuse(peer, lease, NO_HOST)
                    return
                self._worker.on_propose(peer, message, free, busy(lease.model), now)
            case WorkerReport():
                self._host.on_worker_status(peer, message, now)
            case _:
                self._worker.on_message(peer, message, now)

    def link_up(self, peer: NodeId, now: float, *, may_host: bool) -> None:
        """A link to `peer` is up. `may_host`: whether its certificate lets it host splits."""
        if may_host:
            self._hosts.add(peer)
            self._linked_at = now
        self._host.link_up(peer, now)

    def link_down(self, peer: NodeId, now: float) -> None:
        """The link to `peer` is closed, and every tunnel to it."""
        self._host.drop_member(peer, "disconnected", now)
        self._worker.host_lost(peer)
        self._opened.pop(peer, None)
        self._hosts.discard(peer)

    def tunnel_broken(self, event: e.TunnelBroken, now: float) -> None:
        """The engine here lost the tunnel to one of its workers; the link may still be up."""
        self._host.tunnel_broken(event.worker, event.session, event.generation, now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._host.tick(now)
        self._worker.tick(now)

    def leave(self) -> None:
        """This node is about to stop: it works for a host only until the answers of now have ended."""
        self._worker.leave()

    def stop(self) -> None:
        """This node stops."""
        self._worker.stop()
        for model, _ in list(self._host.states()):
            self._host.release(model, "the host stops")

    # -- as a host

    def candidate(self, model: ModelState) -> SplitCandidate | None:
        """What this node publishes about a model that it would host as a split; None if it would not."""
        measured = model.measured
        if not model.wanted or measured is None or (measured.fits_locally and not model.force_split):
            return None
        return SplitCandidate(model.name, measured.free_bytes, model.force_split)

    def advance_lease(self, model: ModelState, speed: int, now: float) -> SplitState:
        """Advance the lease of `model` by one step. `speed`: bytes of weights that this node reads per second."""
        assert model.measured is not None
        phase = self._phase()
        if phase in (JoinPhase.DIALLING, JoinPhase.SYNCING):
            return SplitState(f"it needs other nodes, and this node has not joined the mesh yet ({phase.value})")
        alive = self._mesh.alive()
        other = self._other_host(model, alive)
        if other is not None:
            self._host.release(model.name, "another node hosts it")
            name = next((record.name for record in alive if record.node == other), "") or short(other)
            return SplitState(f"{name} will host this model (more memory, or already serving it)")
        workers = [self._offer(record) for record in alive if is_idle_worker(record, model.name)]
        host = self._own_offer(model.measured.free_bytes, speed)
        split = self._host.advance_lease(model.name, model.measured, host, workers, now, force=model.force_split)
        if not split.refused:
            self._refused_since.pop(model.name, None)
            return split
        # Workers may still join.
        since = self._refused_since.setdefault(model.name, now)
        alone = phase is JoinPhase.ALONE or now - since >= DISK_PAGING_SECONDS
        if model.measured.disk_paging and alone and not model.force_split:
            return replace(split, disk_paging=True)
        awaited = self._awaited(since, now)
        return replace(split, refused=False, reason=f"{split.reason}; waiting for {awaited}") if awaited else split

    def _awaited(self, since: float, now: float) -> str:
        """What a model may still wait for that was refused first at `since`; "" if for nothing."""
        away = self._away()
        if away and now - since < AWAY_SECONDS:
            return ", ".join(away[:MAX_NAMES])
        return "the free memory of a node that has just come" if now - self._linked_at < NEW_NODE_SECONDS else ""

    def loads_changed(self, loads: Iterable[ModelLoad]) -> None:
        """The load of the models served here."""
        self._loads = {load.name: load.active for load in loads}
        for name, active in self._loads.items():
            self._most_loads[name] = max(active, self._most_loads.get(name, 0))

    def on_decode(self, model: ModelState, event: e.DecodeMeasured, speed: int, now: float) -> SplitState | None:
        """The engine of a split has written more: compare that with the forecast, and learn from it.

        Returns the split; None if this node does not host it."""
        split = self._host.state(model.name)
        if split is None or split.plan is None or model.measured is None:
            return None
        records = {record.node: record for record in self._mesh.alive()}
        team = (
            self._own_offer(model.measured.free_bytes, speed),
            *[self._offer(records[share.node]) for share in split.plan.members if share.node in records],
        )
        found = Circumstances(team, self._most_loads.pop(model.name, 1), event.others)
        self._most_loads[model.name] = self._loads.get(model.name, 0)
        need = model.measured.need_of(split.size)
        if self._host.on_decode(model.name, need, event.counts, found, now):
            self._commands.append(c.SaveCorrections(self._host.corrections.all))
        return self._host.state(model.name)

    def state(self, model: str) -> SplitState | None:
        """The split of `model`; None if there is none."""
        return self._host.state(model)

    def release(self, model: str, reason: str) -> None:
        """Release the lease of `model`, if there is one."""
        self._host.release(model, reason)

    def _offer(self, record: NodeRecord) -> WorkerOffer:
        return WorkerOffer(
            record.node,
            record.memory,
            self._mesh.rtt(record.node),
            record.speed,
            record.devices,
            record.name,
            record.machine,
            record.machine_memory,
        )

    def _own_offer(self, free: int, speed: int) -> WorkerOffer:
        return WorkerOffer(self._own, free, 0.0, speed, (), "this node", *self._machine())

    def sharers(self, lease: Lease) -> int:
        """How many nodes of `lease` share the processor of this machine, this one included."""
        machine, memory = self._machine()
        if not machine or not memory:
            return 1
        others = [record for record in self._mesh.alive() if lease.share(record.node) is not None]
        return 1 + sum(record.machine == machine and record.machine_memory > 0 for record in others)

    def _with_sharers(self, command: c.Command) -> c.Command:
        """A command of the worker, which knows nothing of the other nodes."""
        return replace(command, sharers=self.sharers(command.lease)) if isinstance(command, c.StartWorker) else command

    def _other_host(self, model: ModelState, alive: Iterable[NodeRecord]) -> NodeId | None:
        """The node that hosts `model`; None if that is this node."""
        assert model.measured is not None
        candidates = [WorkerOffer(self._own, model.measured.free_bytes)]
        for record in alive:
            if record.leaving:
                continue
            if any(served.name == model.name for served in record.serves):
                return record.node
            candidates += [
                WorkerOffer(record.node, split.free_bytes) for split in record.splits if split.model == model.name
            ]
        host = choose_host(candidates, model.name)
        return host if host != self._own else None


def is_idle_worker(record: NodeRecord, model: str) -> bool:
    """Whether that node may be asked to serve layers of `model`: it serves, and was asked for, no other model."""
    return not record.serves and not record.leaving and record.memory > 0 and set(record.wants) <= {model}
