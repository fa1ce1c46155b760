"""This node's own record: what it says of itself, kept signed and in step with what is true.

Law: it is written anew only when what it says has changed, or as a heartbeat; each time with a higher stamp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from meshllm.core.records import (
    MAX_BACKEND_MODELS,
    MAX_COMPLAINTS,
    MAX_NUMBER,
    MAX_SERVED,
    FailureReport,
    MeshId,
    ModelLoad,
    NodeId,
    NodeRecord,
    RecordVersion,
    Role,
    SignedRecord,
    Signer,
)

# Complaints about the dead stay for so long, so that whoever was away derives the same death. Whoever comes later is
# not told of the dead any more.
COMPLAINT_KEPT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """Who this node is. `incarnation` is for this run: already one higher than that of any run before, and saved.

    `mesh` is the id it holds (founded at its first start, or adopted), `protocol` the window it speaks; `sign` signs
    its records (a client never signs any). `idle`: it takes no model that only others want.
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


class OwnRecord:
    """The record and what goes into it."""

    def __init__(self, config: MeshConfig) -> None:
        self._sign = config.sign
        self._said = NodeRecord(
            node=config.node,
            version=RecordVersion(config.incarnation, 0),
            mesh=config.mesh,
            name=config.name,
            software=config.software,
            protocol=config.protocol,
            idle=config.idle,
        )
        self._loads: tuple[ModelLoad, ...] = ()
        # About whom, at which incarnation, and until when it stays (None: until it answers).
        self._complaints: dict[NodeId, tuple[int, float | None]] = {}
        self.changed = True
        self.signed = SignedRecord(self._said, b"", b"")

    @property
    def stamp(self) -> RecordVersion:
        """Of the newest record."""
        return self._said.version

    @property
    def mesh(self) -> MeshId:
        """The mesh this node belongs to."""
        return self._said.mesh

    @property
    def loads(self) -> tuple[ModelLoad, ...]:
        """How busy this node's models are."""
        return self._loads

    @property
    def complaints(self) -> dict[NodeId, tuple[int, float | None]]:
        """About whom this node complains."""
        return self._complaints

    def say(self, **fields: Any) -> None:
        """These fields are so from now on. What is there to be written is known by `changed`."""
        new = replace(self._said, **fields)
        if new != self._said:
            self._said = new
            self.changed = True

    def busy(self, loads: tuple[ModelLoad, ...]) -> None:
        """Loads go with the next record and with every pong; alone they are not worth a record."""
        self._loads = loads

    def complain(self, node: NodeId, incarnation: int) -> bool:
        """`node` does not answer. False if that was said already, or there is no room for more."""
        said = self._complaints.get(node)
        if said is not None and said[0] == incarnation:
            return False
        if said is None and len(self._complaints) >= MAX_COMPLAINTS:
            old = next((other for other, (_, until) in self._complaints.items() if until is not None), None)
            if old is None:
                return False
            del self._complaints[old]
        self._complaints[node] = (incarnation, None)
        self._complaints_changed()
        return True

    def absolve(self, node: NodeId) -> None:
        """Take the complaint back, if there is one."""
        if self._complaints.pop(node, None) is not None:
            self._complaints_changed()

    def died(self, node: NodeId, now: float) -> None:
        """`node` is dead: the complaint stays for a while."""
        said = self._complaints.get(node)
        if said is not None and said[1] is None:
            self._complaints[node] = (said[0], now + COMPLAINT_KEPT_SECONDS)

    def expire(self, now: float) -> None:
        """Drop the complaints that have been kept for long enough."""
        for node in [node for node, (_, until) in self._complaints.items() if until is not None and until <= now]:
            self.absolve(node)

    def write(self, incarnation: int | None = None) -> SignedRecord:
        """A new record, of the next version, or the first of a higher `incarnation`."""
        stamp = self._said.version
        if incarnation is not None:
            stamp = RecordVersion(min(MAX_NUMBER, incarnation), 1)
        else:
            stamp = RecordVersion(stamp.incarnation, stamp.version + 1)
        self._said = replace(self._said, version=stamp)
        self.changed = False
        self.signed = self._sign(replace(self._said, loads=self._loads[: MAX_SERVED + MAX_BACKEND_MODELS]))
        return self.signed

    def _complaints_changed(self) -> None:
        said = [FailureReport(node, incarnation) for node, (incarnation, _) in sorted(self._complaints.items())]
        self.say(failure_reports=tuple(said))
