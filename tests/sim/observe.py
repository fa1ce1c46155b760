"""Conditions of a simulated mesh. Each returns what is wrong, or nothing.

Observing changes nothing. `NodeCore.peer_status` gives the status in the snapshot (a test compares) without making a
snapshot of every node ten times a second. For the same reason `record`, `troubled` and `not_whole` read the tables.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from meshllm.core.membership.member import Member
from meshllm.core.membership.rings import Rings
from meshllm.core.membership.table import SMALL_MESH, MemberEntry
from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus
from meshllm.core.records import NodeId, NodeRecord, Role
from tests.sim.simulation import SimulatedNode, Simulation

# How often the watch looks for deaths; a tombstone lives far longer than this.
WATCH_SECONDS = 2.0


def view(node: SimulatedNode) -> MeshView:
    """The frozen view that readers of a running node get."""
    assert node.core is not None
    mesh = node.core.snapshot().mesh
    assert mesh is not None
    return mesh


def status(node: SimulatedNode, peer: NodeId) -> PeerStatus | None:
    """What a running node thinks of another one, None if it does not know it."""
    assert node.core is not None
    return node.core.peer_status(peer)


def _table(node: SimulatedNode) -> dict[NodeId, MemberEntry]:
    assert node.core is not None
    mesh = node.core._mesh
    assert mesh is not None
    return {entry.record.node: entry for entry in mesh.entries()}


def record(node: SimulatedNode, peer: NodeId) -> NodeRecord | None:
    """What a running node or client knows that another one says of itself."""
    assert node.core is not None
    assert node.core._mesh is not None
    entry = node.core._mesh.entry(peer)
    return entry.record if entry is not None else None


def troubled(node: SimulatedNode) -> list[tuple[NodeId, PeerStatus]]:
    """Those that a running node thinks are gone, or has heard complaints about."""
    assert node.core is not None
    member = node.core._mesh
    assert isinstance(member, Member)
    table = member._table
    found = {**table._gone, **table._reports}
    return [(peer, table.entries[peer].status) for peer in found if peer in table.entries]


def everybody(simulation: Simulation) -> list[SimulatedNode]:
    """Running nodes and clients that are not hostile."""
    return [node for node in simulation.live() + simulation.live(Role.CLIENT) if not node.hostile]


def not_joined(simulation: Simulation, indices: Iterable[int]) -> str:
    """Nodes that run and are not part of a mesh yet."""
    for index in indices:
        node = simulation.nodes[index]
        if node.core is None:
            return f"node {index} does not run"
        mesh = view(node)
        if mesh.phase is not JoinPhase.JOINED:
            return f"node {index} is {mesh.phase.value}: {mesh.reason}"
    return ""


def not_gone(simulation: Simulation, indices: Iterable[int]) -> str:
    """Somebody who would still send requests to one of these nodes."""
    ids = {index: simulation.nodes[index].id for index in indices}
    for node in everybody(simulation):
        for index, peer in ids.items():
            if status(node, peer) is PeerStatus.ALIVE:
                return f"node {node.index} still routes to node {index}"
    return ""


def not_expelled(simulation: Simulation, indices: Iterable[int]) -> str:
    """Somebody who still has one of these nodes in a table or a link, or one of them that was not told."""
    out = {simulation.nodes[index].id: index for index in indices}
    for node in everybody(simulation):
        if node.id in out:
            if not node.expelled or node.links:
                return f"node {node.index} does not know that it was expelled"
            continue
        for peer, index in out.items():
            if status(node, peer) is not None or peer in node.links:
                return f"node {node.index} still has node {index}"
    return ""


def not_known(simulation: Simulation, model: str, hosts: Iterable[int]) -> str:
    """Somebody who does not know yet that these nodes serve the model."""
    for host in hosts:
        peer = simulation.nodes[host].id
        for node in everybody(simulation):
            if node.index == host:
                continue
            known = record(node, peer)
            if known is None or all(served.name != model for served in known.serves):
                return f"node {node.index} does not know that node {host} serves {model}"
            if status(node, peer) is not PeerStatus.ALIVE:
                return f"node {node.index} knows node {host} as {status(node, peer)}"
    return ""


def not_whole(simulation: Simulation) -> str:
    """Somebody whose table is not exactly the nodes that run: all of them alive, nobody else in any way."""
    live = {node.id for node in simulation.live()}
    for node in simulation.live():
        table = _table(node)
        alive = {peer for peer, entry in table.items() if entry.status is PeerStatus.ALIVE}
        for peer in sorted((live ^ alive) - {node.id}):
            return f"node {node.index} knows node {simulation.by_id[peer].index} as {status(node, peer)}"
        for peer in table.keys() - alive:
            if table[peer].status not in (PeerStatus.DEAD, PeerStatus.LEFT):
                return f"node {node.index} knows node {simulation.by_id[peer].index} as {status(node, peer)}"
    return ""


def not_linked(simulation: Simulation) -> str:
    """Two nodes that run, are neighbours on a ring of all that run, and have no link."""
    for one, other in _neighbours(simulation):
        if other not in simulation.by_id[one].links:
            return f"nodes {simulation.by_id[one].index} and {simulation.by_id[other].index} have no link"
    return ""


def neighbours(simulation: Simulation) -> set[tuple[NodeId, NodeId]]:
    """All such neighbours."""
    return set(_neighbours(simulation))


def too_often_parted(simulation: Simulation, before: set[tuple[NodeId, NodeId]], since: float, most: int) -> str:
    """Links that one end gave up though they were neighbours before and are now, if more than `most`."""
    near = before & neighbours(simulation)
    parted = [(at, one, other) for at, one, other in simulation.hang_ups if at >= since and (one, other) in near]
    if len(parted) <= most:
        return ""
    at, one, other = parted[0]
    names = f"{simulation.by_id[one].index} on {simulation.by_id[other].index}"
    return f"{len(parted)} links of neighbours were ended, the first by {names} at {at:.1f}s"


def _neighbours(simulation: Simulation) -> Iterator[tuple[NodeId, NodeId]]:
    """The links that the nodes that run must have, each from both sides, as far as none is hostile."""
    live = [node.id for node in simulation.live()]
    good = {node.id for node in simulation.live() if not node.hostile}
    if len(live) <= SMALL_MESH:
        yield from itertools.permutations(sorted(good), 2)
        return
    rings = Rings()
    for node in live:
        rings.add(node)
    for node in good:
        for other in good.intersection(rings.neighbours(node)):
            yield node, other
            yield other, node


def not_one_mesh(simulation: Simulation) -> str:
    """More than one mesh id among the nodes that run."""
    ids = Counter(view(node).mesh.hex() for node in simulation.live())
    return "" if len(ids) == 1 else f"mesh ids: {dict(ids)}"


def too_many_adoptions(simulation: Simulation, most: int) -> str:
    """A node that changed its mesh id more often than that."""
    index, count = max(((i, n) for i, n in simulation.saved_meshes.items()), key=lambda pair: pair[1], default=(0, 0))
    return "" if count <= most else f"node {index} adopted another mesh {count} times"


class Watch:
    """Looks out for live nodes that somebody declares dead, and for suspicions, as long as the simulation runs."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.deaths: dict[tuple[int, int], float] = {}
        self.suspicions = 0
        self.looks = 0
        self._starts: dict[int, int] = {}
        simulation.at(WATCH_SECONDS, self._look)

    def _look(self) -> None:
        simulation = self._simulation
        self.looks += 1
        for node in simulation.live():
            for peer, state in troubled(node) if not node.hostile else ():
                other = simulation.by_id[peer]
                if other.core is None or self._starts.get(other.index) != other.starts:
                    continue  # it is dead indeed, or was a moment ago
                if state is PeerStatus.DEAD:
                    self.deaths.setdefault((node.index, other.index), simulation.now)
                elif state is PeerStatus.SUSPECT:
                    self.suspicions += 1
        # A node counts as one that should not be dead once it was up at two looks.
        self._starts = {node.index: node.starts for node in simulation.live()}
        simulation.at(simulation.now + WATCH_SECONDS, self._look)

    def too_many_deaths(self, most: int) -> str:
        """Which live nodes were declared dead, if more than `most`."""
        if len(self.deaths) <= most:
            return ""
        (node, other), when = next(iter(self.deaths.items()))
        return f"{len(self.deaths)} live nodes were declared dead, the first ({other}) by {node} at {when:.1f}s"

    def summary(self) -> str:
        """In words."""
        refuted = sum(self._simulation.saved_incarnations.values())
        return f"{len(self.deaths)} deaths of live nodes, {self.suspicions} looks at a suspect, {refuted} refutations"
