"""A few cores together: they find each other, notice who is gone, and take back who comes again."""

from __future__ import annotations

import pytest

from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.views import JoinAttemptState, JoinPhase, PeerStatus
from meshllm.core.records import BootstrapAddress, MeshId, RecordVersion, Role
from meshllm.core.snapshot import FilePhase
from tests.core.small_mesh import DELAY, SmallMesh, address, node_id, sign


def together(count: int, seed: int = 1) -> SmallMesh:
    """A mesh in which everybody knows everybody to live."""
    mesh = SmallMesh(seed)
    mesh.start(0)
    for number in range(1, count):
        mesh.start(number, [mesh.way(0)])
    mesh.until(mesh.whole)
    return mesh


def all_say(mesh: SmallMesh, number: int, status: PeerStatus) -> bool:
    """Whether everybody else thinks so of a node."""
    return all(mesh.status(other, number) is status for other in mesh.cores if other != number)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_member_nodes_find_each_other(count: int) -> None:
    mesh = together(count)
    assert all(mesh.view(number).phase is JoinPhase.JOINED for number in mesh.cores)
    assert mesh.view(1).join_attempts[0].state is JoinAttemptState.LINKED
    for number in mesh.cores:
        for peer in mesh.view(number).peers:
            assert mesh.cores[number].peer_status(peer.node) is peer.status


@pytest.mark.parametrize("count", [2, 3, 5, 20, 40])
@pytest.mark.parametrize("seen", [False, True])
def test_member_killed_node_is_suspect_then_dead_and_comes_back(count: int, seen: bool) -> None:
    mesh = together(count)
    mesh.run(12)  # it has remembered peers by now
    mesh.kill(count - 1, seen=seen)
    mesh.until(lambda: all_say(mesh, count - 1, PeerStatus.SUSPECT), within=5)
    mesh.until(lambda: all_say(mesh, count - 1, PeerStatus.DEAD), within=20)
    mesh.start(count - 1)
    mesh.until(lambda: all_say(mesh, count - 1, PeerStatus.ALIVE), within=10)
    # Whom it has no link with, it counts once that node has renewed its record: within a heartbeat.
    mesh.until(mesh.whole, within=40)


def test_member_notices_two_deaths_at_once_in_a_small_mesh() -> None:
    mesh = together(4)
    mesh.kill(2)
    mesh.kill(3)
    mesh.until(lambda: all(mesh.status(i, j) is PeerStatus.SUSPECT for i in (0, 1) for j in (2, 3)), within=6)


def test_member_leaving_node_is_left_at_once() -> None:
    mesh = together(20)
    mesh.tell(7, e.StopWanted())
    assert mesh.cores[7].next_deadline() is None
    del mesh.cores[7]
    mesh.until(lambda: all_say(mesh, 7, PeerStatus.LEFT), within=1)


def test_member_one_broken_path_makes_no_node_suspect() -> None:
    mesh = together(6)
    mesh.cut = lambda a, b: {a, b} == {1, 2}
    for _ in range(120):
        mesh.run(1)
        assert all(mesh.status(i, j) is PeerStatus.ALIVE for i in mesh.cores for j in mesh.cores if i != j)


@pytest.mark.parametrize("seconds", [8, 60, 700])
def test_member_partitioned_mesh_heals(seconds: float) -> None:
    mesh = together(8)
    mesh.cut = lambda a, b: (a < 4) != (b < 4)
    mesh.run(seconds)
    assert mesh.status(0, 7) in (PeerStatus.SUSPECT, PeerStatus.DEAD)
    assert mesh.status(0, 1) is PeerStatus.ALIVE
    mesh.cut = lambda a, b: False
    mesh.until(mesh.whole, within=90)


def test_mesh_merge_keeps_the_smaller_id() -> None:
    mesh = SmallMesh()
    for number in range(8):
        founder = number // 4 * 4
        mesh.start(number, [mesh.way(founder)] if number != founder else [], mesh=9 if number < 4 else 5)
    mesh.run(10)
    mesh.tell(3, e.JoinWanted((mesh.way(6),)))
    mesh.until(mesh.whole, within=10)
    assert {mesh.view(number).mesh for number in mesh.cores} == {MeshId(bytes([5]) * 16)}
    assert set(mesh.meshes.values()) == {MeshId(bytes([5]) * 16)}


def test_member_record_lists_served_models_with_modalities() -> None:
    mesh = together(3)
    mesh.serve(1, "m", sees=True)
    mesh.serve(2, "n")
    mesh.until(lambda: sum(len(peer.record.serves) for peer in mesh.view(0).peers) == 2, within=2)
    told = {served.name: served for peer in mesh.view(0).peers for served in peer.record.serves}
    assert (told["m"].vision, told["n"].vision) == (True, False)
    assert (told["m"].context_length, told["m"].slots, told["m"].size) == (8192, 4, 100)


def test_client_knows_the_table_and_is_no_member() -> None:
    mesh = together(6)
    mesh.serve(4, "m")
    mesh.start(9, [mesh.way(0)], role=Role.CLIENT)
    mesh.until(lambda: any(peer.record.serves for peer in mesh.view(9).peers), within=2)
    mesh.until(mesh.whole, within=2)
    assert mesh.view(9).phase is JoinPhase.JOINED
    assert mesh.view(9).record is None
    assert all(mesh.status(number, 9) is None for number in range(6))
    mesh.run(30)
    assert 1 <= len(mesh.links[9]) <= 3
    for victim in sorted(mesh.links[9]):
        mesh.kill(victim)
    mesh.until(mesh.whole, within=30)


def test_client_joins_again_after_losing_all_providers() -> None:
    mesh = together(2)
    mesh.start(9, [mesh.way(0)], role=Role.CLIENT)
    mesh.until(mesh.whole)
    mesh.kill(0)
    mesh.kill(1)
    mesh.run(60)
    assert mesh.view(9).phase is JoinPhase.ALONE_FOR_NOW
    mesh.start(0)
    mesh.until(mesh.whole, within=60)
    assert mesh.view(9).phase is JoinPhase.JOINED


def test_join_is_not_delayed_by_dead_addresses() -> None:
    mesh = together(3)
    dead = [BootstrapAddress(node_id(number), (address(number),)) for number in range(100, 160)]
    mesh.start(5, [*dead, mesh.way(0)])
    assert mesh.until(lambda: mesh.view(5).phase is JoinPhase.JOINED) < 1


def test_join_without_answer_fails_with_a_reason_and_retries() -> None:
    mesh = SmallMesh()
    mesh.start(1, [mesh.way(0)])
    assert mesh.view(1).settling
    mesh.run(21)
    assert mesh.view(1).phase is JoinPhase.FAILED
    assert "no answer" in mesh.view(1).reason
    mesh.start(0)
    mesh.until(mesh.whole, within=40)


def test_member_old_records_revive_no_node() -> None:
    mesh = together(5)
    old = [sign(peer.record) for peer in mesh.view(0).peers if peer.node == node_id(4)]
    mesh.kill(4)
    mesh.until(lambda: all_say(mesh, 4, PeerStatus.DEAD), within=20)
    later = [sign(r.record) for r in old]
    for number in mesh.cores:
        peer = min(mesh.links[number])
        mesh.tell(number, e.MessageReceived(node_id(peer), m.Records((*old, *later), push=True)))
    mesh.run(60)
    assert all_say(mesh, 4, PeerStatus.DEAD)


def test_member_continues_above_a_lost_incarnation() -> None:
    mesh = together(3)
    mesh.run(40)  # it has renewed its record meanwhile

    def stamp() -> RecordVersion:
        return next(p for p in mesh.view(0).peers if p.node == node_id(2)).record.version

    before = stamp()
    mesh.kill(2)
    mesh.incarnations[2] = 0  # its home was put back from a backup: it starts with a number it had before
    mesh.start(2, [mesh.way(0)])
    mesh.until(lambda: stamp().incarnation > before.incarnation, within=10)
    mesh.until(mesh.whole, within=30)


def test_placement_standby_serves_a_requested_local_model() -> None:
    mesh = together(4)
    mesh.tell(0, e.MeshModelRequested("m"))
    mesh.tell(0, e.MeshModelRequested("n"))
    for number in (1, 2, 3):
        mesh.tell(number, e.MachineObserved(models=("n", "m", "x")))
    mesh.run(60)
    taken = [model.name for i in (1, 2, 3) for model in mesh.cores[i].snapshot().models]
    assert sorted(taken) == ["m", "n"], "the third one stays free"
    assert all(model.file is FilePhase.FETCHING for i in (1, 2, 3) for model in mesh.cores[i].snapshot().models)
    assert mesh.cores[0].snapshot().models == ()
    assert all(peer.record.wants == () for peer in mesh.view(0).peers)


def test_placement_standby_serves_a_model_under_its_alias() -> None:
    mesh = together(2)
    mesh.tell(1, e.MachineObserved(models=("known", "known.Q4"), aliases=(("known.Q4", "known"),)))
    mesh.tell(0, e.MeshModelRequested("known.Q4"))
    mesh.run(20)
    assert [model.name for model in mesh.cores[1].snapshot().models] == ["known.Q4"]
    assert [peer.record.aliases for peer in mesh.view(0).peers] == [(("known.Q4", "known"),)]


def test_placement_idle_node_serves_no_model_of_others() -> None:
    mesh = SmallMesh()
    mesh.start(0, idle=True)
    for number in (1, 2):
        mesh.start(number, [mesh.way(0)])
    mesh.until(mesh.whole, within=20)
    mesh.tell(1, e.MeshModelRequested("m"))
    for number in (0, 2):
        mesh.tell(number, e.MachineObserved(models=("m",)))
    mesh.run(20)
    assert [model.name for model in mesh.cores[2].snapshot().models] == ["m"], "the others know that it will not"
    assert mesh.cores[0].snapshot().models == ()
    mesh.tell(0, e.ModelWanted("m"))
    mesh.run(1)
    assert [model.name for model in mesh.cores[0].snapshot().models] == ["m"], "it was asked itself"


def test_member_first_pong_replaces_a_slow_handshake_rtt() -> None:
    mesh = SmallMesh()
    mesh.busy = 0.5
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.until(mesh.whole, within=20)
    mesh.run(2.5)
    assert [peer.rtt for peer in mesh.view(0).peers] == [pytest.approx(2 * DELAY)]
