"""This node's own record: what it publishes, kept signed.

Invariants: each written record has a higher version than the one before; a change of load or demand alone writes none.
Demand travels with the next heartbeat, unless it is news.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshllm.core.board.entries import SignEntry
from meshllm.core.demand.levels import keyed
from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import NO_RIGHTS, Right
from meshllm.core.records import (
    MAX_BACKEND_MODELS,
    MAX_FAILURE_REPORTS,
    MAX_NUMBER,
    MAX_SERVED,
    FailureReport,
    MeshId,
    ModelLoad,
    NodeId,
    NodeRecord,
    OwnFacts,
    PeerAddress,
    RecordVersion,
    Role,
    SignedRecord,
    Signer,
    machine_in,
)

# Reports about dead nodes stay this long, so that a node that was unreachable derives the same death.
REPORT_KEPT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """Who this node is. `incarnation` is for this run: higher than that of any run before, and saved.

    `mesh` is the id it holds (of its own mesh at the first start, or adopted), `protocol` the lowest and highest
    version it speaks; `sign` signs its records (not called by a client). `idle`: it serves no model that only others
    request. `authority`: who is a member, None in a mesh without a mesh key; `certificate` and `rights`: this node's;
    `key_grace`: how long those of the previous mesh key count yet (seconds). `lease_refusal`: why it accepts no lease
    at all ("": it does). `rejoins`: it was in this mesh with others before, so that without an answer it is alone for
    now, and nothing has failed. `moved`: this home comes from another place; if another machine has the same identity,
    this one steps back. `machine`: the secret id of this machine, published as `machine_in`. `sign_entry` signs entries
    of the blackboard; None: this node has none.
    """

    node: NodeId
    mesh: MeshId
    role: Role
    incarnation: int
    name: str
    software: str
    protocol: tuple[int, int]
    sign: Signer
    idle: bool = False
    lease_refusal: str = ""
    authority: Authority | None = None
    certificate: bytes = b""
    rights: Right = NO_RIGHTS
    key_grace: float = 0.0
    rejoins: bool = False
    moved: bool = False
    machine: bytes = b""
    sign_entry: SignEntry | None = None


@dataclass(frozen=True, slots=True)
class _Report:
    """A failure report. `until`: when it expires; None: when the node answers."""

    incarnation: int
    until: float | None = None


class OwnRecord:
    """The record and its parts. `changed`: it has to be written at once; `stale`: written with the next chance."""

    def __init__(self, config: MeshConfig) -> None:
        self._sign = config.sign
        self._machine = config.machine
        self._record = NodeRecord(
            node=config.node,
            version=RecordVersion(config.incarnation, 0),
            mesh=config.mesh,
            name=config.name,
            software=config.software,
            protocol=config.protocol,
            idle=config.idle,
            certificate=config.certificate,
            machine=machine_in(config.mesh, config.machine),
        )
        self._loads: tuple[ModelLoad, ...] = ()
        self._reports: dict[NodeId, _Report] = {}
        self.changed = True
        self.stale = False
        self.signed = SignedRecord(self._record, b"", b"")

    @property
    def version(self) -> RecordVersion:
        """The version of the newest record."""
        return self._record.version

    @property
    def mesh(self) -> MeshId:
        """The mesh this node belongs to."""
        return self._record.mesh

    @property
    def loads(self) -> tuple[ModelLoad, ...]:
        """The load of this node's models."""
        return self._loads

    @property
    def reported(self) -> list[NodeId]:
        """The nodes that this node reports as failed."""
        return list(self._reports)

    def reported_incarnation(self, node: NodeId) -> int | None:
        """The incarnation of `node` that is reported as failed; None if it is not reported."""
        report = self._reports.get(node)
        return report.incarnation if report is not None else None

    def update_facts(self, facts: OwnFacts) -> None:
        """Take in what the rest of the core knows. Loads travel with the next record and with each pong."""
        self._loads = facts.loads
        self._update(
            replace(
                self._record,
                serves=facts.serves,
                wants=facts.wants,
                on_disk=facts.on_disk,
                aliases=facts.aliases,
                splits=facts.splits,
                memory=facts.memory,
                devices=facts.devices,
                speed=facts.speed,
                machine_memory=facts.machine_memory,
                planned=facts.planned,
                used=facts.used,
                demand=keyed(facts.demand),
                disk_sizes=facts.disk_sizes,
                loading=facts.loading,
                room=facts.room,
                download_room=facts.download_room,
                unserved=facts.unserved,
            )
        )
        self.changed = self.changed or facts.demand_is_news

    def set_addresses(self, addresses: tuple[PeerAddress, ...]) -> None:
        """This node listens at `addresses`, best first."""
        self._update(replace(self._record, addresses=addresses))

    def set_mesh(self, mesh: MeshId) -> None:
        """This node belongs to `mesh`."""
        self._update(replace(self._record, mesh=mesh, machine=machine_in(mesh, self._machine)))

    def set_certificate(self, certificate: bytes) -> None:
        """This node has a new certificate."""
        self._update(replace(self._record, certificate=certificate))

    def set_leaving(self) -> None:
        """This node leaves the mesh: it serves nothing."""
        self._update(replace(self._record, leaving=True, serves=(), wants=(), demand=(), loading=(), unserved=()))

    def report_failure(self, node: NodeId, incarnation: int) -> bool:
        """Report that `node` does not answer. False if that is reported already, or the record has no space left."""
        report = self._reports.get(node)
        if report is not None and report.incarnation == incarnation:
            return False
        if report is None and len(self._reports) >= MAX_FAILURE_REPORTS:
            old = next((other for other, known in self._reports.items() if known.until is not None), None)
            if old is None:
                return False
            del self._reports[old]
        self._reports[node] = _Report(incarnation)
        self._reports_changed()
        return True

    def withdraw_report(self, node: NodeId) -> None:
        """Remove the failure report about `node`, if there is one."""
        if self._reports.pop(node, None) is not None:
            self._reports_changed()

    def keep_report_of_dead(self, node: NodeId, now: float) -> None:
        """`node` is dead: its failure report stays for `REPORT_KEPT_SECONDS`."""
        report = self._reports.get(node)
        if report is not None and report.until is None:
            self._reports[node] = replace(report, until=now + REPORT_KEPT_SECONDS)

    def expire(self, now: float) -> None:
        """Remove the reports whose time is over."""
        expired = [node for node, report in self._reports.items() if report.until is not None and report.until <= now]
        for node in expired:
            self.withdraw_report(node)

    def write(self, incarnation: int | None = None) -> SignedRecord:
        """Sign a new record: the next version, or the first of a higher `incarnation`."""
        version = self._record.version
        if incarnation is not None:
            version = RecordVersion(min(MAX_NUMBER, incarnation), 1)
        else:
            version = RecordVersion(version.incarnation, version.version + 1)
        self._record = replace(self._record, version=version)
        self.changed = self.stale = False
        self.signed = self._sign(replace(self._record, loads=self._loads[: MAX_SERVED + MAX_BACKEND_MODELS]))
        return self.signed

    def _update(self, record: NodeRecord) -> None:
        if record == self._record:
            return
        if _without_measurements(record) != _without_measurements(self._record):
            self.changed = True
        elif replace(record, demand=()) != replace(self._record, demand=()):
            self.stale = True
        self._record = record

    def _reports_changed(self) -> None:
        reports = tuple([FailureReport(node, report.incarnation) for node, report in sorted(self._reports.items())])
        self._update(replace(self._record, failure_reports=reports))


def _without_measurements(record: NodeRecord) -> NodeRecord:
    """The record without the figures that vary all the time. Used memory does not: it grows while a model is loaded and
    its caches fill, and is quantised."""
    splits = tuple([replace(candidate, free_bytes=0) for candidate in record.splits])
    serves = tuple([replace(m, movable=False, pressed=False) if m.movable or m.pressed else m for m in record.serves])
    quiet = replace(record, memory=0, devices=(), splits=splits, speed=0, machine_memory=0, demand=(), serves=serves)
    return replace(quiet, room=min(record.room, 1), download_room=min(record.download_room, 1))
