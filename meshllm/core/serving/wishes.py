"""The models that this node was started with and that other nodes may serve: which they are, and when this node serves
them itself.

A wish without a quantization means what the mesh has under that name (`routing/model_names.py`). It is published by the
name of that model: else the mesh would be asked for a model that no node can have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from meshllm.core.demand.mesh_demand import meanings
from meshllm.core.membership.client import ClientMember
from meshllm.core.membership.member import Member
from meshllm.core.membership.participant import MeshParticipant
from meshllm.core.membership.views import JoinPhase
from meshllm.core.serving.placement import may_be_taken

# A further `--model` runs here if no other node serves it after this time. A standby that has it on its disk gets
# longer, to load it; a node that has not joined its mesh waits for that, but not for ever.
BESIDE_SECONDS = 10.0
TAKEN_SECONDS = 120.0
JOIN_SECONDS = 30.0
# The mesh is looked through for wished models so often: of a thousand nodes it takes some milliseconds.
CHECK_SECONDS = 2.0


class Wishes:
    """The further `--model`s, and what the names of wished models mean."""

    def __init__(self, mesh: MeshParticipant | None, own_names: Callable[[], Iterable[str]]) -> None:
        """`own_names`: the models that this node has, on its disk or in its backends."""
        self._mesh = mesh
        self._own_names = own_names
        # Since when no other node has served each (None: one does, or that is not known).
        self._requested: dict[str, float | None] = {}
        self._unknown: set[str] = set()  # of all that were ever wished: a few
        self._joining_until: float | None = None
        self._meanings: Mapping[str, tuple[str, ...]] = {}
        self.due: float | None = None

    @property
    def requested(self) -> tuple[str, ...]:
        """The further models."""
        return tuple(self._requested)

    def add(self, model: str, *, unknown: bool) -> None:
        """This node was started with `model`, too. `unknown`: only the mesh can know what that means."""
        self._requested[model] = None
        if unknown:
            self._unknown.add(model)

    def is_unknown(self, model: str) -> bool:
        """Whether only the mesh can know what `model` means."""
        return model in self._unknown

    def remove(self, model: str) -> None:
        """`model` is served here, or not wanted any more."""
        self._requested.pop(model, None)

    def name_of(self, model: str) -> str:
        """The name of the model that `model`, unknown here, means in the mesh; `model` itself if that is not known, or
        several."""
        found = self._meanings.get(model, ()) if model in self._unknown else ()
        return found[0] if len(found) == 1 else model

    def served_elsewhere(self, model: str) -> bool:
        """Whether a live peer serves what `model` means."""
        meant = {model, *self._meanings.get(model, ())}
        return isinstance(self._mesh, Member) and any(
            served.name in meant for record in self._mesh.alive() for served in record.serves
        )

    def check(self, unknown: Iterable[str], now: float, *, stopping: bool) -> list[str] | None:
        """The further models that this node serves from now on, beside the first one; None if nothing was due.
        `unknown`: the models here that only the mesh can know."""
        member = self._mesh
        unknown = list(unknown)
        self._unknown.update(unknown)
        if stopping or isinstance(member, ClientMember) or not (self._requested or (unknown and member is not None)):
            self.due = None
            return None
        if member is not None and self.due is not None and now < self.due:
            return None
        self.due = now + CHECK_SECONDS
        others = list(member.alive()) if isinstance(member, Member) else []
        self._meanings = meanings(others, [*self._requested, *unknown], self._own_names())
        if self._joining_until is None:
            self._joining_until = now + JOIN_SECONDS
        looking = isinstance(member, Member) and member.phase in (JoinPhase.DIALLING, JoinPhase.SYNCING)
        joins = looking and now < self._joining_until
        found = []
        for name, since in self._requested.items():
            if joins or self.served_elsewhere(name):
                self._requested[name] = None
                continue
            unserved = self._requested[name] = now if since is None else since
            wait = TAKEN_SECONDS if may_be_taken(self.name_of(name), others) else BESIDE_SECONDS
            if member is None or now - unserved >= wait:
                found.append(name)
        for name in found:
            del self._requested[name]
        return found
