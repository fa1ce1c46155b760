"""A few cores on one virtual clock, with a network that loses nothing: for the unit tests of the mesh."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    GUEST_RIGHTS,
    Certificate,
    Right,
    SignedCertificate,
)
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.messages import Message
from meshllm.core.membership.views import MeshView, PeerStatus
from meshllm.core.node import NodeCore
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, NodeRecord, PeerAddress, Role, SignedRecord
from meshllm.core.snapshot import ModelFacts, ServerFacts
from meshllm.core.split.corrections import Correction
from meshllm.core.split.host import MeasuredModel
from tests.mesh_key import FOUNDER, NOW, FakeMeshKey, admitted
from tests.saved_board import SavedBoard, sign_entry

DELAY = 0.01
DIAL_SECONDS = 5.0
IDLE_SECONDS = 15.0


def node_id(number: int) -> NodeId:
    """The id of node `number`: spread as keys are."""
    return NodeId(sha256(number.to_bytes(4)).digest())


def address(number: int) -> PeerAddress:
    """Where node `number` listens."""
    return PeerAddress(f"10.0.{number >> 8}.{number & 255}", 9000)


def sign(record: NodeRecord) -> SignedRecord:
    """A signature that nobody checks, over bytes that differ where the records do."""
    return SignedRecord(record, repr(record).encode()[:400], b"s" * 64)


class SmallMesh:
    """The nodes by number, what is under way, and the time."""

    catalog: Mapping[str, int] = {}  # what all nodes know

    def __init__(self, seed: int = 1, mesh_key: FakeMeshKey | None = None) -> None:
        """Every node that starts has a certificate of `rights` (by default all)."""
        self.mesh_key = mesh_key or FakeMeshKey()
        self.rights: dict[int, Right] = {}
        self.inviters: dict[int, NodeId] = {}
        self.members: dict[int, SignedCertificate] = {}
        self.authorities: dict[int, Authority] = {}
        self.statements: dict[int, tuple[bytes, ...]] = {}
        self.commands: list[tuple[int, c.Command]] = []  # about the membership
        self.now = 1000.0
        self.rng = random.Random(seed)
        self.cores: dict[int, NodeCore] = {}
        self.links: dict[int, set[int]] = {}
        self.saved: dict[int, tuple[BootstrapAddress, ...]] = {}
        self.incarnations: dict[int, int] = {}
        self.meshes: dict[int, MeshId] = {}
        self.numbers: dict[NodeId, int] = {}
        self.roles: dict[int, Role] = {}
        self.rejoins: set[int] = set()  # nodes that were in the mesh before
        self.machines: dict[int, bytes] = {}  # the secret id of each node's machine
        self.corrections: dict[int, tuple[Correction, ...]] = {}  # what each keeps on disk
        self.boards: dict[int, SavedBoard] = {}  # of the nodes that share the blackboard
        self.clocks: dict[int, float] = {}  # how far ahead the wall clock of a node is (seconds)
        self.busy = 0.0  # seconds that a handshake takes beside the way
        self.cut: Callable[[int, int], bool] = lambda a, b: False
        self.sent: list[tuple[int, int, object]] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def start(
        self,
        number: int,
        ways: Iterable[BootstrapAddress] = (),
        *,
        role: Role = Role.NODE,
        mesh: int = 0,
        idle: bool = False,
        board: bool = False,
    ) -> NodeCore:
        """Start node `number`; again with a higher incarnation if it ran before. `board`: it shares the blackboard."""
        self.incarnations[number] = self.incarnations.get(number, 0) + 1
        self.numbers[node_id(number)] = number
        self.roles[number] = role
        self.links[number] = set()
        mine = self.meshes.setdefault(number, MeshId(bytes([mesh]) * 16))
        incarnation = self.incarnations[number]
        config = MeshConfig(node_id(number), mine, role, incarnation, f"n{number}", "t", (1, 1), sign, idle)
        config = replace(config, rejoins=number in self.rejoins, machine=self.machines.get(number, b""))
        config = self._certified(number, config)
        if board:
            config = replace(config, sign_entry=sign_entry)
        self.cores[number] = NodeCore(
            config,
            random.Random(self.rng.random()),
            corrections=self.corrections.get(number, ()),
            catalog=self.catalog,
        )
        if board:
            self.tell(number, self.boards.setdefault(number, SavedBoard()).opened(self.unix(number)))
        self.tell(number, e.AddressesFound((address(number),)))
        ways = tuple(ways)
        if ways or self.saved.get(number):
            self.tell(number, e.JoinWanted(ways or self.saved[number], invited=bool(ways)))
        return self.cores[number]

    def unix(self, number: int) -> float:
        """The wall clock of node `number`."""
        return NOW - 1000 + self.now + self.clocks.get(number, 0.0)

    def way(self, number: int) -> BootstrapAddress:
        """A way in as an invite has it."""
        return BootstrapAddress(node_id(number)[:16], (address(number),))

    def kill(self, number: int, *, seen: bool = False) -> None:
        """End it without a word; `seen`: the links break visibly."""
        del self.cores[number]
        for other in self.links.pop(number):
            self.links[other].discard(number)
            self._at(0.0 if seen else IDLE_SECONDS, partial(self._lost, other, number))

    def tell(self, number: int, event: e.Event) -> None:
        """Something happens to a node."""
        core = self.cores.get(number)
        if core is None:
            return
        for command in core.handle(event, self.now):
            self._carry_out(number, command)
        self._wake(number, core)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end, turns = self.now + seconds, 0
        while self._heap and self._heap[0][0] <= end:
            at, _, action = heapq.heappop(self._heap)
            turns = turns + 1 if at <= self.now else 0
            assert turns < 10_000, "time stands still: somebody wants to be woken at a time that has passed"
            self.now = max(self.now, at)
            action()
        self.now = end

    def until(self, condition: Callable[[], bool], within: float = 60.0) -> float:
        """Let time pass until it holds; how long that took."""
        begun = self.now
        while not condition():
            assert self.now - begun < within, "it did not come about"
            self.run(0.1)
        return self.now - begun

    def view(self, number: int) -> MeshView:
        """What readers see."""
        mesh = self.cores[number].snapshot().mesh
        assert mesh is not None
        return mesh

    def status(self, number: int, other: int) -> PeerStatus | None:
        """What one thinks of another."""
        return self.cores[number].peer_status(node_id(other))

    def whole(self) -> bool:
        """Whether everybody that runs is alive to everybody, and nobody else is."""
        nodes = {number for number in self.cores if self.roles[number] is Role.NODE}
        for number in self.cores:
            alive = {self.numbers[p.node] for p in self.view(number).peers if p.status is PeerStatus.ALIVE}
            if alive != nodes - {number}:
                return False
        return True

    def serve(self, number: int, model: str, *, sees: bool = False) -> None:
        """Have it serve a model."""

        self.tell(number, e.ModelWanted(model))
        self.tell(number, e.EngineReady("1"))
        self.tell(number, e.FileReady(model, ModelFacts("/m.gguf", 100, "llama", 8192, vision=sees)))
        self.tell(number, e.ModelMeasured(model, MeasuredModel(fits_locally=True, free_bytes=1000)))
        self.tell(number, e.ServerReady(model, 1, ServerFacts("/s", 1, 4, 8192)))

    # -- inside

    def _certified(self, number: int, config: MeshConfig) -> MeshConfig:
        if self.mesh_key is None:
            return config
        rights = self.rights.get(number, ALL_RIGHTS if self.roles[number] is Role.NODE else GUEST_RIGHTS)
        known = self.members.setdefault(
            number,
            self.mesh_key.certify(
                node_id(number), rights, inviter=self.inviters.get(number, FOUNDER), expires=NOW + 400_000
            ),
        )
        self.authorities[number] = self.mesh_key.authority(*self.statements.get(number, ()))
        return replace(
            config,
            authority=self.authorities[number],
            certificate=known.data,
            rights=known.certificate.rights,
        )

    def _member(self, number: int) -> Certificate | None:
        return self.members[number].certificate if number in self.members else None

    def _lost(self, number: int, peer: int) -> None:
        if peer not in self.links.get(number, ()):
            self.tell(number, e.LinkDown(node_id(peer), "lost"))

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._count), action))

    def _wake(self, number: int, core: NodeCore) -> None:
        deadline = core.next_deadline()
        if deadline is not None:
            self._at(max(0.0, deadline - self.now), lambda: self._due(number, core))

    def _due(self, number: int, core: NodeCore) -> None:
        deadline = core.next_deadline()
        if self.cores.get(number) is core and deadline is not None and deadline <= self.now:
            self.tell(number, e.TimePassed())

    def _carry_out(self, number: int, command: c.Command) -> None:
        match command:
            case c.DialPeer(way):
                self._dial(number, way)
            case c.Send(peer, message):
                other = self.numbers[peer]
                self.sent.append((number, other, message))
                self._at(DELAY, lambda: self._deliver(number, other, message))
            case c.HangUp(peer, reason, _):
                other = self.numbers[peer]
                if other in self.links[number]:
                    self.links[number].discard(other)
                    self.links[other].discard(number)
                    self._at(0.0, lambda: self.tell(number, e.LinkDown(peer, reason)))
                    self._at(DELAY, lambda: self.tell(other, e.LinkDown(node_id(number), reason)))
            case c.SaveCorrections(corrections):
                self.corrections[number] = corrections
            case c.SavePeers(ways):
                self.saved[number] = ways
            case c.SaveIncarnation(incarnation):
                self.incarnations[number] = max(self.incarnations[number], incarnation)
            case c.SaveMesh(mesh):
                self.meshes[number] = mesh
            case c.SaveStatements(_, statements, _):
                self.statements[number] = statements
                self.commands.append((number, command))
            case c.IssueCertificate() | c.TakeCertificate() | c.MakeInvite() | c.TakeInvite() | c.Expelled():
                self.commands.append((number, command))
            case _ if number in self.boards:
                answer = self.boards[number].carry_out(command)
                if answer is not None:
                    self._at(0.0, lambda: self.tell(number, answer))
            case _:
                pass

    def _deliver(self, number: int, other: int, message: Message) -> None:
        if other in self.links.get(number, ()) and not self.cut(number, other):
            self.tell(other, e.MessageReceived(node_id(number), admitted(message, self.authorities.get(other))))

    def _dial(self, number: int, way: BootstrapAddress) -> None:
        other = next((n for key, n in self.numbers.items() if key.startswith(way.pin) and n in self.cores), None)
        if other is None or self.cut(number, other):
            self._at(DIAL_SECONDS, lambda: self.tell(number, e.DialFailed(way, "no answer")))
        else:
            self._at(2 * DELAY, lambda: self._connect(number, other, way))

    def _connect(self, number: int, other: int, way: BootstrapAddress) -> None:
        if number not in self.cores or other not in self.cores:
            self.tell(number, e.DialFailed(way, "gone"))
            return
        if other in self.links[number]:
            return
        self.links[number].add(other)
        self.links[other].add(number)
        for one, two, dialled in ((number, other, True), (other, number, False)):
            event = e.LinkUp(
                node_id(two),
                self.roles[two],
                self.meshes[two],
                address(two),
                2 * DELAY + self.busy,
                dialled,
                self._member(two),
            )
            self.tell(one, event)
