"""A mesh in one process on virtual time: N cores, their links, and the faults of both.

The simulation executes the commands of `meshllm.core.node` like the daemon and answers with events; it decides nothing
about the mesh. A seed repeats a run exactly. Nodes are numbered. `now` is virtual time in seconds; each node has a
clock of its own.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import ALL_RIGHTS, GUEST_RIGHTS, SignedCertificate
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.messages import Message, Records, TableUpdate
from meshllm.core.node import NodeCore
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, NodeRecord, PeerAddress, Role, SignedRecord
from meshllm.core.snapshot import ModelFacts, ServerFacts
from meshllm.core.split.host import MeasuredModel
from meshllm.net.base import DIAL_SECONDS, IDLE_SECONDS
from meshllm.wire.mesh import codec
from tests.mesh_key import FOUNDER, FakeMeshKey
from tests.sim.network import Network

# The control stream puts a length before each message.
FRAME_BYTES = 4
ROUND_SECONDS = 1.0
# A core that wants to be woken so often without time passing will never let it pass.
MAX_WAKES_AT_ONCE = 1000


class Stuck(AssertionError):
    """A core asks for time to pass and does nothing with it."""


class Link:
    """A connection of two nodes. Each end believes in it until it hears otherwise."""

    __slots__ = ("dialler", "down_at", "last_arrival")

    def __init__(self, dialler: SimulatedNode) -> None:
        self.dialler = dialler
        # A stream is in order: nothing arrives before what was sent earlier. By the number of the sender.
        self.last_arrival: dict[int, float] = {}
        self.down_at: float | None = None


class SimulatedNode:
    """A daemon without its shell: a core, a clock, links, and what it keeps on disk."""

    def __init__(self, index: int, role: Role, mesh: MeshId, offset: float, rate: float) -> None:
        self.index = index
        self.role = role
        self.mesh = mesh
        self.id = NodeId(hashlib.sha256(b"node %d" % index).digest())
        self.address = PeerAddress(f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", 7000)
        self.offset = offset
        self.rate = rate
        # None while the process does not run.
        self.core: NodeCore | None = None
        self.links: dict[NodeId, Link] = {}
        self.dialling: set[bytes] = set()
        self.incarnation = 0
        self.peers: tuple[BootstrapAddress, ...] = ()
        # What it was started with the first time: whoever starts it anew before it knows anybody does so again.
        self.invites: tuple[BootstrapAddress, ...] = ()
        self.wakes_at: float | None = None
        self.starts = 0
        self.records = 0  # how many it has signed
        # What the mesh key said of it, and which statements it keeps on disk.
        self.rights = ALL_RIGHTS
        self.inviter = FOUNDER
        self.statements: tuple[bytes, ...] = ()
        self.member: SignedCertificate | None = None
        self.authority: Authority | None = None
        self.expelled = False
        self.hostile = False  # what it believes counts for nothing
        self.bytes_sent = 0
        self.bytes_received = 0

    def way(self) -> BootstrapAddress:
        """How an invite names it."""
        return BootstrapAddress(self.id[:16], (self.address,))

    def clock(self, now: float) -> float:
        """What its own monotonic clock shows at virtual time `now`."""
        return self.offset + self.rate * now

    def true_time(self, local: float) -> float:
        """The virtual time at which its clock shows `local`."""
        return (local - self.offset) / self.rate


def sign(record: NodeRecord) -> SignedRecord:
    """A cheap stand-in for a signature, of the same length; whoever alters the body must forge it too."""
    body = codec.encode_record(record)
    return SignedRecord(record, body, hashlib.sha512(b"signed " + record.node + body).digest())


def genuine(signed: SignedRecord) -> bool:
    """What the shell checks before the core sees a record."""
    proof = hashlib.sha512(b"signed " + signed.record.node + signed.body).digest()
    return signed.signature == proof and codec.decode_record(signed.body) == signed.record


def certified(message: Message, authority: Authority | None) -> Message:
    """The message as the shell hands it to the core: records without a certificate are left out."""
    if authority is None or not isinstance(message, Records | TableUpdate):
        return message
    good = tuple([signed for signed in message.records if signed.member is not None])
    if len(good) == len(message.records):
        return message
    if isinstance(message, TableUpdate):
        return replace(message, records=good)
    stale = tuple([signed.record.node for signed in message.records if signed.member is None])
    return replace(message, records=good, stale=stale)


def _refused(way: BootstrapAddress) -> e.DialFailed:
    return e.DialFailed(way, "this node was expelled", final=True)


class Simulation:
    """The mesh and its clock. `skew` is how far apart the rates of clocks may be (0.01: one per cent)."""

    def __init__(
        self,
        seed: int,
        network: Network | None = None,
        *,
        skew: float = 0.0,
        make: Callable[[MeshConfig, random.Random], NodeCore] = NodeCore,
        certified: bool = True,
    ) -> None:
        # Without certificates a mesh is one of a shared secret, as before: to compare what they cost.
        self.mesh_key = FakeMeshKey() if certified else None
        self.seed = seed
        self._make = make
        self.rng = random.Random(seed)
        self.network = network or Network(random.Random(seed + 1))
        self.now = 0.0
        self.nodes: list[SimulatedNode] = []
        self.by_id: dict[NodeId, SimulatedNode] = {}
        # Whether messages are encoded to see how long they are: a third of the work, so only while somebody measures.
        self.counting = False
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.saved_incarnations: Counter[int] = Counter()
        self.saved_meshes: Counter[int] = Counter()
        self.dials = 0
        self.failed_dials = 0
        self.events = 0
        self.refused = 0
        self.hang_ups: list[tuple[float, NodeId, NodeId]] = []  # when, who, whom
        self._skew = skew
        self._by_address: dict[PeerAddress, SimulatedNode] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = itertools.count()
        self._wakes = 0
        self._archive: dict[NodeId, list[SignedRecord]] = {}
        self._hands: dict[type[c.Command], Callable[[SimulatedNode, Any], None]] = {
            c.Send: self.send,
            c.DialPeer: self._dial,
            c.HangUp: self._hang_up,
            c.SaveIncarnation: self._save_incarnation,
            c.SaveMesh: self._save_mesh,
            c.SavePeers: self._save_peers,
            c.SaveStatements: self._save_statements,
            c.Expelled: self._expelled,
            c.MemberExpelled: lambda node, command: None,  # no node of the simulation makes invites
            c.PrepareEngine: lambda node, command: self._tell(node, e.EngineReady("simulated")),
            c.FetchModel: self._fetch,
            c.MeasureModel: self._measure,
            c.StartServer: self._start_server,
            c.StopServer: lambda node, command: self._tell(
                node, e.ServerGone(command.model, command.generation, "stopped")
            ),
            c.ForgetModel: lambda node, command: None,
            c.SaveDropped: lambda node, command: None,
            c.ProbeBackend: lambda node, command: self._tell(node, e.BackendSilent(command.url, "none here")),
            c.Finish: lambda node, command: self.kill(node.index),
        }

    # -- time

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action` done at virtual time `when`."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._sequence), action, arguments))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end, heap = self.now + seconds, self._heap
        while heap and heap[0][0] <= end:
            when, _, action, arguments = heapq.heappop(heap)
            if when > self.now:
                self.now = when
                self._wakes = 0
            action(*arguments)
        self.now = end

    def run_until(self, condition: Callable[[], bool], within: float, step: float = 0.1) -> float | None:
        """Let time pass until `condition` holds; how long that took, or None if it did not `within` seconds."""
        begun = self.now
        while not condition():
            if self.now - begun >= within - 1e-9:
                return None
            self.run(min(step, begun + within - self.now))
        return self.now - begun

    # -- nodes

    def add(self, count: int, *, role: Role = Role.NODE, mesh: MeshId | None = None) -> list[int]:
        """More nodes, not started yet; their numbers."""
        first = len(self.nodes)
        for index in range(first, first + count):
            offset = self.rng.uniform(0.0, 1e6) if self._skew else 0.0
            rate = 1.0 + self.rng.uniform(-self._skew, self._skew)
            node = SimulatedNode(index, role, mesh or MeshId(bytes(16)), offset, rate)
            self.nodes.append(node)
            self.by_id[node.id] = self._by_address[node.address] = node
        return list(range(first, len(self.nodes)))

    def adopt(self, node: SimulatedNode) -> None:
        """Make a node reachable that is none of the mesh's: no number leads to it."""
        self.by_id[node.id] = self._by_address[node.address] = node

    def start(self, index: int, ways: Iterable[BootstrapAddress] = (), *, invited: bool = True) -> None:
        """Start the daemon of a node: with invites, else with the peers it remembers, else with its first invites."""
        node = self.nodes[index]
        assert node.core is None, f"node {index} runs already"
        node.incarnation += 1
        node.starts += 1
        node.core = self._make(self.config(node), random.Random(self.rng.random()))
        given = tuple(ways)
        node.invites = given or node.invites
        self._tell(node, e.AddressesFound((node.address,)))
        if given or node.peers or node.invites:
            self._tell(node, e.JoinWanted(given or node.peers or node.invites, invited=bool(given) and invited))
        else:
            self._tell(node, e.TimePassed())

    def kill(self, index: int) -> None:
        """End a daemon without a word; its peers find out."""
        node = self.nodes[index]
        node.core = None
        node.wakes_at = None
        for peer, link in node.links.items():
            # Nothing answers any more: QUIC gives up after its idle time, if the core has not done so before.
            self.at(self.now + IDLE_SECONDS, self._link_lost, self.by_id[peer], node.id, link, "idle")
        node.links = {}
        node.dialling.clear()

    def stop(self, index: int) -> None:
        """Ask a daemon to end: it says goodbye to the mesh first."""
        self.tell(index, e.StopWanted())

    def tell(self, index: int, event: e.Event) -> None:
        """Let something happen to a node."""
        self._handle(self.nodes[index], event)

    def live(self, role: Role = Role.NODE) -> list[SimulatedNode]:
        """The nodes that run."""
        return [node for node in self.nodes if node.core is not None and node.role is role]

    def old_records(self, index: int) -> list[SignedRecord]:
        """Everything a node ever signed, oldest first: what a hostile node may keep."""
        return self._archive.get(self.nodes[index].id, [])

    def inject(self, target: int, records: Iterable[SignedRecord]) -> None:
        """A peer that `target` is linked with hands it records, as news. The shell refuses forged ones."""
        node = self.nodes[target]
        peer = self.rng.choice(sorted(node.links))
        good = []
        for record in records:
            if genuine(record):
                good.append(record)
            else:
                self.refused += 1
        if good:
            self._handle(node, e.MessageReceived(peer, Records(tuple(good), push=True)))

    # -- the network

    def cut(self, sources: Iterable[int], targets: Iterable[int], *, one_way: bool = False) -> None:
        """Cut the ways between two sets of nodes; links over them end after QUIC's idle time."""
        self.network.cut(sources, targets, one_way=one_way)
        for node in self.nodes:
            for peer, link in node.links.items():
                if self.network.severed(node.index, self.by_id[peer].index):
                    self.at(self.now + IDLE_SECONDS, self._idle_check, node, peer, link)

    # -- how a core is woken and obeyed

    def config(self, node: SimulatedNode) -> MeshConfig:
        """What the daemon of `node` tells its core at the start."""

        def signer(record: NodeRecord) -> SignedRecord:
            signed = sign(record)
            if node.member is not None:
                signed = replace(signed, member=node.member.certificate)
            node.records += 1
            self._archive.setdefault(record.node, []).append(signed)
            return signed

        if self.mesh_key is not None:
            # The clients' rights are those of a guest; one certificate is made for each node, as in life.
            rights = node.rights if node.role is Role.NODE else GUEST_RIGHTS
            node.member = node.member or self.mesh_key.certify(node.id, rights, inviter=node.inviter)
            node.authority = self.mesh_key.authority(*node.statements)
        return MeshConfig(
            authority=node.authority,
            certificate=node.member.data if node.member is not None else b"",
            rights=node.member.certificate.rights if node.member is not None else ALL_RIGHTS,
            node=node.id,
            mesh=node.mesh,
            role=node.role,
            incarnation=node.incarnation,
            name=f"node-{node.index}",
            software="mesh-llm/simulated",
            protocol=(1, 1),
            sign=signer,
            rejoins=bool(node.peers),
        )

    def _tell(self, node: SimulatedNode, event: e.Event) -> None:
        """The answer to a command: never inside the handling of another event."""
        self.at(self.now, self._handle, node, event)

    def _handle(self, node: SimulatedNode, event: e.Event) -> None:
        core = node.core
        if core is None:
            return
        self.events += 1
        hands = self._hands
        for command in core.handle(event, node.offset + node.rate * self.now):
            hands[type(command)](node, command)
        deadline = core.next_deadline()
        if deadline is not None and node.core is core:
            due = max(self.now, (deadline - node.offset) / node.rate)
            # A wake-up that is too early costs one look at the clock; one that is too late is a fault.
            if node.wakes_at is None or due < node.wakes_at:
                node.wakes_at = due
                heapq.heappush(self._heap, (due, next(self._sequence), self._wake, (node, core)))

    def _wake(self, node: SimulatedNode, core: NodeCore) -> None:
        if node.core is not core or node.wakes_at is None or node.wakes_at > self.now:
            return
        node.wakes_at = None
        deadline = core.next_deadline()
        if deadline is None:
            return
        due = node.true_time(deadline)
        if due > self.now:
            node.wakes_at = due
            heapq.heappush(self._heap, (due, next(self._sequence), self._wake, (node, core)))
            return
        self._wakes += 1
        if self._wakes > MAX_WAKES_AT_ONCE + 10 * len(self.nodes):
            raise Stuck(f"node {node.index} at {self.now:.3f}s (seed {self.seed})")
        self._wake_at(node, deadline)

    def _wake_at(self, node: SimulatedNode, deadline: float) -> None:
        # The clock is read as showing the deadline at least: rounding must not make it a moment too early.
        offset = node.offset
        late = deadline - node.clock(self.now)
        if late > 0:
            node.offset += late
        try:
            self._handle(node, e.TimePassed())
        finally:
            node.offset = offset

    # -- what the core asks for

    def send(self, node: SimulatedNode, command: c.Send) -> None:
        """Send a message over a link of `node`, if it has that link."""
        link = node.links.get(command.peer)
        if link is None:
            return
        message = command.message
        size = 0
        if self.counting:
            size = FRAME_BYTES + len(codec.encode_message(message))
            node.bytes_sent += size
        kind = type(message).__name__
        self.messages[kind] += 1
        self.bytes[kind] += size
        target = self.by_id[command.peer]
        travel = self.network.travel(node.index, target.index)
        if travel is None:
            return
        arrival = max(self.now + travel, link.last_arrival.get(node.index, 0.0))
        link.last_arrival[node.index] = arrival
        arguments = (target, node.id, link, message, size)
        heapq.heappush(self._heap, (arrival, next(self._sequence), self._deliver, arguments))

    def _deliver(self, node: SimulatedNode, sender: NodeId, link: Link, message: Message, size: int) -> None:
        if node.links.get(sender) is link:
            node.bytes_received += size
            self._handle(node, e.MessageReceived(sender, certified(message, node.authority)))

    def _dial(self, node: SimulatedNode, command: c.DialPeer) -> None:
        way = command.target
        self.dials += 1
        wrong_port = False
        for address in way.addresses:
            target = self._by_address.get(address)
            if target is None:
                there = self._by_address.get(PeerAddress(address.host, 7000))
                wrong_port = there is not None and there.core is not None
                continue
            if target.core is None or target is node or self.network.severed(node.index, target.index):
                continue
            if node.authority is not None and node.member is not None and target.authority is not None:
                refused = target.authority.is_expelled(node.id)
                if refused or node.authority.is_expelled(target.id):
                    self._later(self.network.round_trip(node.index, target.index), node, _refused(way))
                    return
            if not target.id.startswith(way.pin):
                wrong_port = True
                continue
            took = self.network.handshake(node.index, target.index)
            if took < DIAL_SECONDS:
                self.at(self.now + took, self._connected, node, node.core, target, target.core, way)
                return
        reason = "somebody else answers there" if wrong_port else "no answer"
        self.failed_dials += 1
        # A port that nobody listens on says so at once; a host that is gone says nothing.
        late = 2 * self.network.distance(node.index) if wrong_port else DIAL_SECONDS
        self._later(late, node, e.DialFailed(way, reason))

    def _later(self, seconds: float, node: SimulatedNode, event: e.Event) -> None:
        self.at(self.now + seconds, self._if_same, node, node.core, event)

    def _if_same(self, node: SimulatedNode, core: NodeCore | None, event: e.Event) -> None:
        if node.core is core:
            self._handle(node, event)

    def _connected(
        self,
        node: SimulatedNode,
        core: NodeCore | None,
        target: SimulatedNode,
        other: NodeCore | None,
        way: BootstrapAddress,
    ) -> None:
        if node.core is not core:
            return
        if target.core is not other or self.network.severed(node.index, target.index):
            self.failed_dials += 1
            self._later(DIAL_SECONDS / 2, node, e.DialFailed(way, "no answer"))
            return
        old = node.links.get(target.id)
        if old is not None and target.links.get(node.id) is old:
            return  # there is one link per pair, and both have been told of it
        link = Link(node)
        for one, peer in ((node, target), (target, node)):
            stale = one.links.pop(peer.id, None)
            if stale is not None:
                self._handle(one, e.LinkDown(peer.id, "replaced by a new connection"))
        node.links[target.id] = target.links[node.id] = link
        rtt = self.network.round_trip(node.index, target.index)
        for one, peer in ((target, node), (node, target)):
            member = peer.member.certificate if peer.member is not None else None
            up = e.LinkUp(peer.id, peer.role, peer.mesh, peer.address, rtt, one is node, member)
            self._handle(one, up)

    def _hang_up(self, node: SimulatedNode, command: c.HangUp) -> None:
        link = node.links.get(command.peer)
        if link is None:
            return
        target = self.by_id[command.peer]
        self.hang_ups.append((self.now, node.id, target.id))
        self.at(self.now, self._link_lost, node, target.id, link, command.reason)
        travel = self.network.travel(node.index, target.index)
        late = IDLE_SECONDS if travel is None else travel
        self.at(self.now + late, self._link_lost, target, node.id, link, command.reason)

    def _link_lost(self, node: SimulatedNode, peer: NodeId, link: Link, reason: str) -> None:
        if node.links.get(peer) is link:
            del node.links[peer]
            self._handle(node, e.LinkDown(peer, reason))

    def _idle_check(self, node: SimulatedNode, peer: NodeId, link: Link) -> None:
        if self.network.severed(node.index, self.by_id[peer].index):
            self._link_lost(node, peer, link, "idle")

    def _save_incarnation(self, node: SimulatedNode, command: c.SaveIncarnation) -> None:
        assert command.incarnation >= node.incarnation, "an incarnation never shrinks"
        node.incarnation = command.incarnation
        self.saved_incarnations[node.index] += 1

    def _save_mesh(self, node: SimulatedNode, command: c.SaveMesh) -> None:
        node.mesh = command.mesh
        self.saved_meshes[node.index] += 1

    def _save_peers(self, node: SimulatedNode, command: c.SavePeers) -> None:
        node.peers = command.peers

    def _save_statements(self, node: SimulatedNode, command: c.SaveStatements) -> None:
        node.statements = command.statements

    def _expelled(self, node: SimulatedNode, command: c.Expelled) -> None:
        node.expelled = True

    def _fetch(self, node: SimulatedNode, command: c.FetchModel) -> None:
        facts = ModelFacts(f"/models/{command.model}.gguf", 1 << 30, "llama", 32768)
        self._tell(node, e.FileReady(command.model, facts))

    def _measure(self, node: SimulatedNode, command: c.MeasureModel) -> None:
        self._tell(node, e.ModelMeasured(command.model, MeasuredModel(fits_locally=True, free_bytes=1 << 34)))

    def _start_server(self, node: SimulatedNode, command: c.StartServer) -> None:
        facts = ServerFacts("/run/server", 1, 4, 32768)
        self._tell(node, e.ServerReady(command.model, command.generation, facts))

    def trouble(self) -> str:
        """What a failing test must print, so that the run can be had again."""
        return f"seed {self.seed} at {self.now:.3f}s of virtual time"
