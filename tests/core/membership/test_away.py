"""Members that are away: who counts as such, what is kept of them, and when a node is alone for now."""

from __future__ import annotations

import pytest

from meshllm.core import events as e
from meshllm.core.membership.away import MAX_AWAY, AwayMembers
from meshllm.core.membership.views import AwayMember, JoinPhase, PeerStatus
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, Role
from tests.core.small_mesh import SmallMesh, node_id


def names(mesh: SmallMesh, number: int) -> list[tuple[str, tuple[str, ...]]]:
    """Who is away to a node, and what each served."""
    return [(member.name, member.served) for member in mesh.view(number).away]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("stops", [True, False])
def test_host_that_goes_is_away_with_its_models_until_it_is_back(role: Role, stops: bool) -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.start(9, [mesh.way(1)], role=role)
    mesh.serve(0, "m")
    mesh.until(lambda: any(peer.record.serves for peer in mesh.view(9).peers))
    if stops:
        mesh.tell(0, e.StopWanted())
        mesh.run(1.0)
    mesh.kill(0)
    mesh.until(lambda: names(mesh, 9) == [("n0", ("m",))])
    (lost,) = mesh.view(9).away
    assert mesh.now - lost.seen < 30.0
    mesh.start(0, [mesh.way(1)])
    mesh.until(lambda: names(mesh, 9) == [])


def test_node_is_alone_for_now_while_all_others_are_away() -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.until(mesh.whole)
    mesh.kill(1)
    mesh.until(lambda: mesh.view(0).phase is JoinPhase.ALONE_FOR_NOW)
    assert [member.name for member in mesh.view(0).away] == ["n1"]
    mesh.start(1, [mesh.way(0)])
    mesh.until(lambda: mesh.view(0).phase is JoinPhase.JOINED)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("rejoins", [True, False])
def test_restarted_node_without_an_answer_is_alone_and_a_new_one_has_failed(rejoins: bool, role: Role) -> None:
    mesh = SmallMesh()
    mesh.rejoins.update({0} if rejoins else ())
    mesh.saved[0] = (mesh.way(1),)
    mesh.start(0, role=role)
    mesh.tell(0, e.MembersRemembered((AwayMember(node_id(1), "cellar", ("m",), mesh.now - 7200.0),)))
    took = mesh.until(lambda: not mesh.view(0).settling)
    assert mesh.view(0).phase is (JoinPhase.ALONE_FOR_NOW if rejoins else JoinPhase.FAILED)
    assert names(mesh, 0) == [("cellar", ("m",))]
    assert (took < 10.0) is rejoins, "it does not wait for the deadline once every address was tried"
    mesh.start(1)
    mesh.until(lambda: mesh.view(0).phase is JoinPhase.JOINED, within=60.0)
    assert names(mesh, 0) == []


@pytest.mark.parametrize("stops", [True, False])
def test_client_whose_nodes_all_went_is_alone_for_now_and_names_them(stops: bool) -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.start(9, [mesh.way(0)], role=Role.CLIENT)
    mesh.serve(0, "m")
    mesh.until(lambda: any(peer.record.serves for peer in mesh.view(9).peers) and len(mesh.view(9).peers) == 2)
    for number in (0, 1):
        if stops:
            mesh.tell(number, e.StopWanted())
        mesh.kill(number)
    took = mesh.until(lambda: mesh.view(9).phase is JoinPhase.ALONE_FOR_NOW, within=60.0)
    assert took < 30.0, "it does not wait for the deadline of a join"
    assert sorted(names(mesh, 9)) == [("n0", ("m",)), ("n1", ())]
    assert mesh.view(9).peers == ()
    mesh.start(1, [mesh.way(0)])
    mesh.until(lambda: mesh.view(9).phase is JoinPhase.JOINED, within=60.0)
    assert names(mesh, 9) == [("n0", ("m",))]


@pytest.mark.parametrize("role", Role)
def test_expelled_participant_lists_no_member_whoever_is_here_or_away(role: Role) -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.start(2, [mesh.way(0)])
    mesh.start(9, [mesh.way(0)], role=role)
    mesh.until(lambda: len(mesh.view(9).peers) == 3)
    mesh.kill(2)
    mesh.until(lambda: [name for name, _ in names(mesh, 9)] == ["n2"])
    mesh.tell(9, e.StatementsMade((mesh.mesh_key.expel(node_id(9)),)))
    assert mesh.view(9).phase is JoinPhase.EXPELLED
    assert (mesh.view(9).peers, mesh.view(9).away) == ((), ())


def test_failed_dial_names_the_peer() -> None:
    mesh = SmallMesh()
    mesh.start(0, [mesh.way(1)])
    mesh.tell(0, e.MembersRemembered((AwayMember(node_id(1), "cellar"),)))
    reason = f"Node {node_id(1)[:5].hex()} cannot be reached (10.0.0.1: no answer)."
    mesh.tell(0, e.DialFailed(mesh.way(1), reason, "Start it."))
    (attempt,) = mesh.view(0).join_attempts
    assert attempt.reason == "cellar cannot be reached (10.0.0.1: no answer). Start it."


def test_node_that_became_a_client_is_a_client_and_has_not_left() -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.until(mesh.whole)
    mesh.tell(1, e.StopWanted())
    mesh.run(1.0)
    assert mesh.status(0, 1) is PeerStatus.LEFT
    mesh.kill(1)
    mesh.start(1, [mesh.way(0)], role=Role.CLIENT)
    mesh.until(lambda: [client.name for client in mesh.view(0).clients] == ["n1"])
    assert mesh.view(0).peers == ()
    assert names(mesh, 0) == []


def test_away_members_are_bounded_the_oldest_are_forgotten() -> None:
    away = AwayMembers()
    for number in range(MAX_AWAY + 10):
        record = NodeRecord(node_id(number), RecordVersion(1, 1), MeshId(bytes(16)), f"n{number}")
        away.gone(record, (), float(number))
    assert [member.name for member in away.view()] == [f"n{n}" for n in reversed(range(10, MAX_AWAY + 10))]
    away.remember([AwayMember(node_id(500), "old", (), -1.0), AwayMember(node_id(1), "known")], lambda node: True)
    assert len(away.view()) == MAX_AWAY
    assert away.back(node_id(20))
    assert not away.back(node_id(20))
