"""Two machines with one identity: told from an old record of this node, told to the owner, and the copy steps back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.links import FREE_SHORT_LINKS, SHORT_LINK_SECONDS
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.views import JoinPhase, MeshView
from meshllm.core.node import NodeCore
from meshllm.core.records import BootstrapAddress, MeshId, NodeRecord, RecordVersion, Role
from tests.core.small_mesh import address, node_id, sign

MESH = MeshId(b"\x02" * 16)
OWN, PEER = node_id(0), node_id(1)
START = 1000


class Rig:
    """A node with a link to one peer."""

    def __init__(self, *, moved: bool) -> None:
        self.now = 0.0
        self.core = NodeCore(MeshConfig(OWN, MESH, Role.NODE, START, "own", "test", (1, 1), sign, moved=moved), Rng())
        self.link()

    def link(self) -> list[c.Command]:
        return self.tell(e.LinkUp(PEER, Role.NODE, MESH, address(1), 0.01, True))

    def tell(self, event: e.Event) -> list[c.Command]:
        return self.core.handle(event, self.now)

    def record(self, incarnation: int) -> list[c.Command]:
        """The peer sends a record of this node that another machine has written."""
        written = NodeRecord(OWN, RecordVersion(incarnation, 1), MESH, name="twin", addresses=(address(9),))
        return self.tell(e.MessageReceived(PEER, m.Records((sign(written),))))

    @property
    def incarnation(self) -> int:
        record = self.view.record
        assert record is not None
        return record.version.incarnation

    @property
    def view(self) -> MeshView:
        view = self.core.snapshot().mesh
        assert view is not None
        return view


class Rng:
    """No randomness."""

    def random(self) -> float:
        return 0.5

    def randrange(self, stop: int, /) -> int:
        return 0

    def sample(self, population, k, /):  # type: ignore[no-untyped-def]
        return list(population)[:k]


def duplicate(rig: Rig) -> None:
    """Another machine goes on to write records with the key of this node."""
    rig.record(START + 10)
    rig.now += 3.0
    rig.record(rig.incarnation + 1)


@pytest.mark.parametrize("moved", [False, True])
def test_old_record_of_this_node_is_superseded_and_no_duplicate(moved: bool) -> None:
    rig = Rig(moved=moved)
    rig.record(START - 1)
    assert rig.incarnation == START
    rig.record(START + 10)
    assert rig.incarnation == START + 11
    # The same record from everybody, and the older ones that some have.
    for old in (START + 10, START + 5, START + 10):
        rig.now += 3.0
        rig.record(old)
    assert (rig.incarnation, rig.view.duplicate) == (START + 11, None)
    assert rig.view.phase is JoinPhase.JOINED or rig.view.phase is JoinPhase.SYNCING


def test_node_that_belongs_here_stays_and_says_who_the_other_is() -> None:
    rig = Rig(moved=False)
    duplicate(rig)
    other = rig.view.duplicate
    assert other is not None
    assert (other.name, other.addresses) == ("twin", (address(9),))
    assert rig.view.phase is not JoinPhase.DUPLICATE
    assert rig.incarnation > START + 11, "it goes on: a stolen key must not displace it"


def test_copy_leaves_the_mesh_and_dials_nobody() -> None:
    rig = Rig(moved=True)
    rig.record(START + 10)
    rig.now += 3.0
    found = rig.record(rig.incarnation + 1)
    assert c.HangUp(PEER, "another machine has the same identity", at_once=True) in found
    assert rig.view.phase is JoinPhase.DUPLICATE
    assert rig.view.duplicate is not None
    again = rig.tell(e.JoinWanted((BootstrapAddress(PEER, (address(1),)),)))
    rig.now += 600.0
    again += rig.tell(e.TimePassed())
    assert not [command for command in again if isinstance(command, c.DialPeer)]


def dials_after_loss(rig: Rig) -> bool:
    """Whether the peer, whose link has just broken, is dialled within a second."""
    found = rig.tell(e.LinkDown(PEER, "replaced by a new link"))
    for _ in range(5):
        rig.now += 0.2
        found += rig.tell(e.TimePassed())
    return any(isinstance(command, c.DialPeer) for command in found)


def test_links_that_break_at_once_are_dialled_less_and_less_often() -> None:
    """Two machines with one identity replace each other's links."""
    rig = Rig(moved=False)
    rig.tell(e.MessageReceived(PEER, m.Records((sign(_of_peer()),))))
    assert dials_after_loss(rig)
    for _ in range(FREE_SHORT_LINKS - 1):
        rig.link()
        assert dials_after_loss(rig)
    rig.link()
    assert not dials_after_loss(rig)
    rig.now += 60.0
    rig.link()
    rig.now += SHORT_LINK_SECONDS
    assert dials_after_loss(rig), "a link that held is no sign of trouble"


def test_node_with_a_duplicate_lets_the_other_learn_of_it() -> None:
    rig = Rig(moved=False)
    rig.tell(e.MessageReceived(PEER, m.Records((sign(_of_peer()),))))
    duplicate(rig)
    assert not dials_after_loss(rig)


def _of_peer() -> NodeRecord:
    record = NodeRecord(PEER, RecordVersion(1, 1), MESH, name="peer")
    return replace(record, addresses=(address(1),))
