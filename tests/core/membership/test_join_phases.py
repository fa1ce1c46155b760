"""A join ends or goes on by itself: it never depends on an answer that may not come."""

from __future__ import annotations

import random

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.join import JOIN_SECONDS, REFUSED_RETRY_SECONDS
from meshllm.core.membership.links import DIAL_LOST_SECONDS
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.views import JoinPhase
from meshllm.core.node import NodeCore
from meshllm.core.records import BootstrapAddress, MeshId, Role
from tests.core.small_mesh import address, node_id, sign

MESH = MeshId(b"\x02" * 16)
WAY = BootstrapAddress(node_id(1)[:16], (address(1),))


class Joining:
    """One participant that is told to join through node 1, and what it dials."""

    def __init__(self, role: Role, *, rejoins: bool = False) -> None:
        config = MeshConfig(node_id(0), MESH, role, 1, "n", "t", (1, 1), sign, rejoins=rejoins)
        self.refusals: list[str] = []
        self.core = NodeCore(config, random.Random(1))
        self.now = 0.0
        self.dialled: list[float] = []
        self.tell(e.JoinWanted((WAY,)))

    def tell(self, event: e.Event) -> None:
        """Something happens now."""
        for command in self.core.handle(event, self.now):
            if isinstance(command, c.DialPeer):
                self.dialled.append(self.now)
            if isinstance(command, c.InviteRefused):
                self.refusals.append(command.reason)

    def run(self, seconds: float) -> None:
        """Only time passes."""
        end = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.tell(e.TimePassed())
        self.now = end

    def link(self, *, up: bool) -> None:
        """The link to node 1 comes up, or breaks."""
        if up:
            self.tell(e.LinkUp(node_id(1), Role.NODE, MESH, address(1), 0.01, True))
        else:
            self.tell(e.LinkDown(node_id(1), "lost"))

    @property
    def phase(self) -> JoinPhase:
        """As readers see it."""
        mesh = self.core.snapshot().mesh
        assert mesh is not None
        return mesh.phase


@pytest.mark.parametrize("role", Role)
def test_dial_that_is_never_answered_is_repeated(role: Role) -> None:
    joining = Joining(role)
    joining.run(DIAL_LOST_SECONDS + 1)
    assert len(joining.dialled) == 2


@pytest.mark.parametrize("role", Role)
def test_peer_that_refused_is_asked_again_after_minutes(role: Role) -> None:
    joining = Joining(role)
    joining.tell(e.DialFailed(WAY, "another protocol", final=True))
    assert joining.phase is JoinPhase.FAILED
    joining.run(REFUSED_RETRY_SECONDS - 1)
    assert len(joining.dialled) == 1, "not before"
    joining.run(2)
    assert len(joining.dialled) == 2
    joining.link(up=True)
    joining.run(10)
    assert joining.phase is JoinPhase.JOINED


@pytest.mark.parametrize("role", Role)
def test_link_that_breaks_before_the_table_has_come_leaves_a_deadline(role: Role) -> None:
    joining = Joining(role)
    joining.run(JOIN_SECONDS - 2)
    joining.link(up=True)
    joining.run(3)
    assert joining.phase is JoinPhase.SYNCING, "the first deadline passed meanwhile"
    joining.link(up=False)
    assert joining.phase is JoinPhase.DIALLING
    joining.run(JOIN_SECONDS + 1)
    assert joining.phase is JoinPhase.FAILED


OTHER = BootstrapAddress(node_id(2)[:16], (address(2),))


def void(joining: Joining, way: BootstrapAddress) -> None:
    """The node at `way` refuses the invite for good."""
    joining.tell(e.DialFailed(way, "The invite was revoked.", "Ask for a fresh one.", final=True, invite_void=True))


@pytest.mark.parametrize("role", Role)
def test_invite_that_every_member_refuses_ends_the_join_and_says_why(role: Role) -> None:
    joining = Joining(role)
    void(joining, WAY)
    assert joining.phase is JoinPhase.REFUSED
    assert joining.refusals == ["The invite was revoked. Ask for a fresh one."]
    joining.run(2 * REFUSED_RETRY_SECONDS)
    assert (len(joining.dialled), joining.phase) == (1, JoinPhase.REFUSED), "it does not dial again"


@pytest.mark.parametrize("answers", ["later", "never"])
def test_invite_that_one_member_refuses_is_shown_to_the_others_until_the_deadline(answers: str) -> None:
    joining = Joining(Role.NODE)
    joining.tell(e.JoinWanted((OTHER,)))
    void(joining, WAY)
    joining.tell(e.DialFailed(OTHER, "no answer"))
    assert joining.phase is JoinPhase.DIALLING
    if answers == "later":
        joining.link(up=True)
    joining.run(JOIN_SECONDS + 1)
    assert joining.phase is (JoinPhase.JOINED if answers == "later" else JoinPhase.REFUSED)
    assert len(joining.refusals) == (answers == "never")


def test_member_that_is_refused_is_not_alone_for_now() -> None:
    joining = Joining(Role.NODE, rejoins=True)
    joining.tell(e.DialFailed(WAY, "The membership certificate has expired.", final=True))
    assert joining.phase is JoinPhase.FAILED
    assert joining.refusals == [], "that is no refusal of an invite"
