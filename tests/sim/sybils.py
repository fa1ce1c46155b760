"""Made-up identities: what a hostile member tells its peers about nodes that it invented.

The identities answer every ping and nothing else, as one program can for thousands of ids. Their ids are ground: the
first ones stand next to one node on every ring, so that they are its watchers. All report other nodes as failed.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import random
import tracemalloc
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.ids import NodeId
from meshllm.core.membership import messages as m
from meshllm.core.membership.certificates import MAX_NODES_PER_INVITE, Right
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.rings import RINGS, position
from meshllm.core.membership.summary import chunks
from meshllm.core.node import NodeCore
from meshllm.core.records import FailureReport, NodeRecord, RecordVersion, Role, SignedRecord
from meshllm.wire.mesh.records import decode_record
from tests.sim.simulation import SimulatedNode, Simulation, sign

# What a guest that may offer its machine has, without a right that makes it trusted.
SYBIL_RIGHTS = Right.USE | Right.SERVE | Right.WORK
# How often each of them sends a newer record: it counts as alive by that.
RENEW_SECONDS = 10.0


class AnsweringCore:
    """The core of a made-up node: it answers pings."""

    def __init__(self, config: MeshConfig, rng: random.Random) -> None:
        del config, rng

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """A pong for a ping."""
        if isinstance(event, e.MessageReceived) and isinstance(event.message, m.Ping):
            return [c.Send(event.peer, m.Pong(event.message.number, ()))]
        return []

    def next_deadline(self) -> float | None:
        """It does nothing by itself."""
        return None


class Sybils:
    """`count` made-up nodes of the member `owner`, around one node and against those of other numbers. With
    `certified`, `owner` invited them; else nobody did."""

    def __init__(
        self, simulation: Simulation, owner: int, count: int, *, around: int, against: Iterable[int], certified: bool
    ) -> None:
        self._simulation = simulation
        self._owner = simulation.nodes[owner]
        self._owner.hostile = True
        self._against = [simulation.nodes[index] for index in against]
        self._certified = certified
        self._version = 0
        self.nodes: list[SimulatedNode] = []
        ids = _ground([node.id for node in simulation.live()], simulation.nodes[around].id, owner)
        for number, node_id in enumerate(itertools.islice(ids, count)):
            self._invent(number, node_id)
        self._tell()

    def _invent(self, number: int, node_id: NodeId) -> None:
        simulation = self._simulation
        # Far from the numbers of real nodes, with which the player and the conditions work.
        node = SimulatedNode((1 << 16) + number, Role.NODE, self._owner.mesh, 0.0, 1.0)
        node.id = node_id
        node.core = AnsweringCore(None, simulation.rng)  # type: ignore[arg-type, assignment]
        if self._certified and simulation.mesh_key is not None:
            node.inviter = self._owner.id
            invite = b"made-up%c" % (number // MAX_NODES_PER_INVITE)
            node.member = simulation.mesh_key.certify(node_id, SYBIL_RIGHTS, inviter=self._owner.id, invite=invite)
            node.authority = simulation.mesh_key.authority()
        simulation.adopt(node)
        self.nodes.append(node)

    def _tell(self) -> None:
        """Send each peer of the owner newer records of all, each in another order."""
        simulation, owner = self._simulation, self._owner
        if owner.core is None:
            return
        self._version += 1
        records = [self._record(node) for node in self.nodes]
        for peer in sorted(owner.links):
            first, rest = records[:64], records[64:]
            simulation.rng.shuffle(rest)
            for portion in chunks([*first, *rest]):
                simulation.send(owner, c.Send(peer, m.Records(portion, push=True)))
        simulation.at(simulation.now + RENEW_SECONDS, self._tell)

    def _record(self, node: SimulatedNode) -> SignedRecord:
        reports = tuple(sorted(FailureReport(other.id, other.incarnation) for other in self._against))
        made = NodeRecord(
            node.id,
            RecordVersion(1, self._version),
            node.mesh,
            addresses=(node.address,),
            failure_reports=reports,
            certificate=node.member.data if node.member is not None else b"",
        )
        return replace(sign(made), member=node.member.certificate if node.member is not None else None)


def weigh(simulation: Simulation, node: SimulatedNode) -> tuple[int, int, int]:
    """How many nodes `node` knows, how many of them are made up, and how many bytes of memory those take at it.

    In a simulation the nodes share the records. Here a new core takes copies of them in, once all, once the real ones.
    """
    assert node.core is not None
    assert node.core._mesh is not None
    signed = [entry.signed for entry in node.core._mesh.entries()]
    real = {other.id for other in simulation.nodes}
    honest = [one for one in signed if one.record.node in real]
    made_up = [one for one in signed if one.record.node not in real]
    return len(signed), len(made_up), memory_taken(simulation, node, honest, made_up)


def memory_taken(
    simulation: Simulation, node: SimulatedNode, before: list[SignedRecord], more: list[SignedRecord]
) -> int:
    """The bytes that a core of `node`, which knows some records, needs for copies of more of them."""
    core = NodeCore(simulation.config(node), random.Random(1))
    peer = simulation.by_id[sorted(node.links)[0]]
    member = peer.member.certificate if peer.member is not None else None
    core.handle(e.LinkUp(peer.id, Role.NODE, node.mesh, peer.address, 0.01, True, member), 0.0)
    for record in before:
        core.handle(e.MessageReceived(peer.id, m.Records((record,))), 0.0)
    core.snapshot()
    tracemalloc.start()
    for record in more:
        core.handle(e.MessageReceived(peer.id, m.Records((_copy(record),))), 0.0)
    core.snapshot()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used


def _copy(signed: SignedRecord) -> SignedRecord:
    """The same with memory of its own, as if it had come over a network."""
    body = bytes(bytearray(signed.body))
    return SignedRecord(decode_record(body), body, bytes(bytearray(signed.signature)), copy.copy(signed.member))


def _ground(honest: list[NodeId], around: NodeId, seed: int) -> Iterable[NodeId]:
    """Made-up ids: first those that stand before and behind the node `around` on every ring, then any."""
    made = (NodeId(hashlib.sha256(b"sybil %d %d" % (seed, number)).digest()) for number in itertools.count())
    rings = [sorted(position(ring, node) for node in honest) for ring in range(RINGS)]
    for side, ring in itertools.product((-1, 0), range(RINGS)):
        at = bisect_left(rings[ring], position(ring, around)) + side
        low, high = rings[ring][at], rings[ring][(at + 1) % len(honest)]
        tries = itertools.islice(made, 20 * len(honest))
        yield from itertools.islice((node for node in tries if low < position(ring, node) < high), 1)
    yield from made
