"""The demand of one node or client: counts its callers' requests, takes in reports of clients, or sends such a report.

Invariants: only names that a record or this node knows are counted, so that invented ones cannot fill the counter. A
client reports to one node at a time; a node that is not linked any more does not count it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.demand.counter import REPORT_SECONDS, DemandCounter
from meshllm.core.demand.levels import DemandLevel, model_key
from meshllm.core.demand.mesh_demand import names_in
from meshllm.core.membership.client import ClientMember
from meshllm.core.membership.member import Member
from meshllm.core.membership.messages import ReportDemand
from meshllm.core.membership.participant import MeshParticipant
from meshllm.core.records import NodeId

# The names of the mesh's models are collected again after this time (seconds): of a thousand nodes it takes some 5 ms.
KNOWN_SECONDS = 5.0


class DemandChange(Enum):
    """How the levels changed: not, or so that the next heartbeat tells it, or by a model that the mesh must know of at
    once: it is neither served nor demanded elsewhere."""

    NONE = "none"
    LEVELS = "levels"
    NEWS = "news"


class NodeDemand:
    """The demand that this node publishes, or this client reports."""

    def __init__(
        self, mesh: MeshParticipant | None, own_names: Callable[[], Iterable[str]], catalog: Collection[str] = ()
    ) -> None:
        """`own_names`: the models that this node knows itself; `catalog`: those of the catalogue, which count while a
        node would download them."""
        self._mesh = mesh
        self._catalog = catalog
        self._own_names = own_names
        self._counter = DemandCounter()
        self._known: frozenset[str] = frozenset()
        self._known_until = float("-inf")
        self._reports_to: NodeId | None = None
        self._report_at: float | None = None
        self._sent: tuple[DemandLevel, ...] = ()

    @property
    def levels(self) -> tuple[DemandLevel, ...]:
        """What this node's callers and its clients ask for, by name."""
        return self._counter.levels

    def next_deadline(self) -> float | None:
        """When `handle` is due at the latest, or None."""
        times = (self._counter.next_deadline(), self._report_at)
        return min((time for time in times if time is not None), default=None)

    def handle(self, event: e.Event, now: float) -> tuple[DemandChange, list[c.Command]]:
        """Take in what concerns the demand; returns whether `levels` changed, and the commands that follow."""
        before = self.levels
        asked: set[str] = set()
        match event:
            case e.ModelsAsked(counts):
                known = {model: count for model, count in counts if self._is_known(model, now)}
                if known:
                    self._counter.add(known, now)
                    asked.update(known)
            case e.MessageReceived(peer, ReportDemand(demand)):
                if isinstance(self._mesh, Member) and self._mesh.takes_report(peer, now):
                    guest = self._mesh.is_guest(peer)
                    kept = [entry for entry in demand if self._is_known(entry.model, now)]
                    self._counter.report(peer, kept, guest=guest, now=now)
                    asked.update([entry.model for entry in kept])
            case e.LinkDown(peer):
                self._counter.forget(peer, now)
        due = self._counter.next_deadline()
        if due is not None and due <= now:
            self._counter.review(now)
        if asked and self._is_news(asked):
            return DemandChange.NEWS, self._report(now)
        changed = self.levels is not before and self.levels != before
        return DemandChange.LEVELS if changed else DemandChange.NONE, self._report(now)

    def _is_news(self, asked: set[str]) -> bool:
        """Whether one of the models is in no record yet: not in the demand of any, nor loaded or served by a node."""
        own = self._mesh.record if self._mesh is not None else None
        if self._mesh is None or own is None:
            return False
        models = {entry.model for entry in self.levels if entry.model in asked}
        models -= {served.name for served in own.serves}
        demanded = {entry.key for entry in own.demand}
        models = {model for model in models if model_key(model) not in demanded}
        if not models:
            return False
        found: set[str] = set(own.loading)
        for record in self._mesh.alive():
            found.update(record.loading)
            demanded.update([entry.key for entry in record.demand])
            found.update(served.name for served in record.serves)
        return any(model not in found and model_key(model) not in demanded for model in models)

    def _report(self, now: float) -> list[c.Command]:
        """A client's report, if one is due: after a change, after a change of the node, and again and again."""
        mesh = self._mesh
        if not isinstance(mesh, ClientMember):
            return []
        to = mesh.provider if self._reports_to is None or not mesh.is_linked(self._reports_to) else self._reports_to
        due = self._report_at is not None and self._report_at <= now
        if to == self._reports_to and self.levels == self._sent and not due:
            return []
        self._reports_to, had = to, self._sent
        self._sent = self.levels if to is not None else ()
        self._report_at = now + REPORT_SECONDS if self._sent else None
        return [c.Send(to, ReportDemand(self._sent))] if to is not None and (self._sent or had) else []

    def _is_known(self, model: str, now: float) -> bool:
        if model in self._counter.models:
            return True
        if now >= self._known_until:
            self._known_until = now + KNOWN_SECONDS
            self._known = frozenset(self._names())
        return model in self._known

    def _names(self) -> Iterable[str]:
        yield from self._own_names()
        if self._mesh is None:
            return
        own, downloads = self._mesh.record, False
        for record in (*self._mesh.alive(), *([own] if own is not None else ())):
            yield from names_in(record)
            downloads = downloads or record.download_room > 0
        if downloads:
            yield from self._catalog
