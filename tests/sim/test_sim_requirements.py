"""The bars of the mesh, each as a scenario of `scenarios/` at a size that a test can afford.

`scripts/sim NAME` plays the same at full size. `MESH_SIM_SEED` repeats a run; every failure names its seed.
"""

from __future__ import annotations

import os
import random

import pytest

from meshllm.core.membership.failure_detector import heartbeat_seconds
from meshllm.core.membership.views import PeerStatus
from tests.sim import observe
from tests.sim.__main__ import SCENARIOS, read
from tests.sim.play import Failed, Player
from tests.sim.scenario import parse

SEED = int(os.environ.get("MESH_SIM_SEED", "1"))


def played(name: str, size: int, *, seed: int = SEED) -> Player:
    """The player after the last step. A step that fails raises, naming line, seed and time."""
    player = Player(read(name, size), seed=seed)
    player.play()
    return player


def run(text: str, *, seed: int = SEED) -> Player:
    """The same for a scenario written here."""
    player = Player(parse(text), seed=seed)
    player.play()
    return player


@pytest.mark.slow
def test_change_reaches_all_nodes_within_12_rounds() -> None:
    played("spread", 200)


@pytest.mark.slow
def test_killed_node_leaves_all_routing_tables_within_5_seconds() -> None:
    played("kill", 150)


@pytest.mark.slow
def test_packet_loss_causes_no_false_death() -> None:
    player = run("nodes 30\nskew 1%\nloss 10%\nstart 0\nstart 1..29 over 10s\nwait 1h\nexpect deaths 0\n")
    assert player.watch.looks > 1000


@pytest.mark.slow
def test_churn_leaves_no_stale_members() -> None:
    player = played("churn", 50)
    assert sum(node.starts - 1 for node in player.simulation.nodes) == 1000


@pytest.mark.slow
def test_join_with_600_dead_addresses_takes_no_longer() -> None:
    player = played("join-dead", 120)
    took = [
        figure.seconds
        for figure in player.figures
        if figure.seconds is not None and figure.text.startswith("expect within 20s joined")
    ]
    clean, invited, remembered, table = took[:2], took[2:4], took[4], took[5:]
    assert len(table) == 3
    assert max(clean) < 1.0
    assert max(invited + table) < 1.0
    # Eight at first and eight more every half second, until one answers: the last of 64.
    assert remembered < 5.0


def test_expelled_node_is_out_of_all_tables_within_3_rounds_and_for_ever() -> None:
    player = played("expel", 20)
    assert [node.index for node in player.simulation.nodes if node.expelled] == [7, 11, 12, 13]


@pytest.mark.parametrize("seed", [SEED, SEED + 1, SEED + 2])
def test_partition_heals(seed: int) -> None:
    played("partition", 40, seed=seed)


@pytest.mark.parametrize("seed", [SEED, SEED + 1, SEED + 2])
def test_mesh_merge_adopts_once_per_node(seed: int) -> None:
    player = played("two-meshes", 40, seed=seed)
    # The losing half and nobody else.
    assert sorted(player.simulation.saved_meshes) == list(range(20, 40))


def test_gossip_traffic_is_bounded_by_mesh_size() -> None:
    """Pings and pongs stay the same; records come at the rate of heartbeats, which has a cap."""
    rounds = 60
    small, large = (played("traffic", size) for size in (20, 80))

    def per_round(player: Player, kind: str) -> float:
        return player.simulation.bytes[kind] / len(player.simulation.live()) / rounds

    for kind in ("Ping", "Pong"):
        assert per_round(large, kind) <= 1.2 * per_round(small, kind)
    signed = large.simulation.old_records(0)[-1]
    size = len(signed.body) + len(signed.signature)
    # Each record arrives about once, not once from every neighbour.
    assert per_round(large, "Records") <= 1.5 * size * 80 / heartbeat_seconds(80)
    assert max(count / heartbeat_seconds(count) for count in range(1, 20_000)) <= 10.001
    assert per_round(large, "Digest") <= 2 * (4 * 128 + 20)


def test_records_do_not_churn_under_load() -> None:
    """With busy nodes a mesh sends hardly more than when it is idle."""
    player = Player(
        parse("nodes 20\nstart 0\nstart 1..19\nexpect within 60s whole\nserve 0..2 m\nwait 30s\nmeasure 3min")
    )
    player.play()
    idle = player.bytes_per_round
    for step in parse("nodes 20\nbusy 0..2\nwait 60s\nmeasure 5min\nexpect records 210").steps:
        player.step(step)
    assert player.bytes_per_round <= 1.4 * idle
    loads = [peer.loads for peer in observe.view(player.simulation.nodes[5]).peers if peer.record.serves]
    assert any(loads), "the load still travels, with pongs and records"


def test_soak_with_a_busy_node_writes_a_bounded_number_of_records() -> None:
    """The scenario `soak`, for two hours instead of a day."""
    text = (SCENARIOS / "soak.txt").read_text(encoding="utf-8").replace("{N}", "3").replace("{N-1}", "2")
    player = Player(parse(text.replace("measure 6h", "measure 30min")), seed=SEED)
    player.play()
    assert player.simulation.now > 7200


def test_single_node_is_a_mesh() -> None:
    run("nodes 1\nstart 0\nwait 10s\nexpect whole")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_small_meshes_notice_a_death(count: int) -> None:
    run(f"nodes {count}\nstart 0\nstart 1..{count - 1}\nexpect within 60s whole\nkill 1\nexpect within 5s gone 1")


def test_leaving_node_is_gone_at_once() -> None:
    run("nodes 20\nstart 0\nstart 1..19\nexpect within 60s whole\nstop 7\nexpect within 1s gone 7\nexpect whole")


def test_restarted_node_rejoins_without_an_invite() -> None:
    run(
        "nodes 20\nstart 0\nstart 1..19\nexpect within 60s whole\nwait 30s\nkill 7\nexpect within 5s gone 7\n"
        "restart 7\nexpect within 10s joined 7\nexpect within 60s whole"
    )


def test_restarted_mesh_finds_itself() -> None:
    run(
        "nodes 20\nstart 0\nstart 1..19\nexpect within 60s whole\nwait 60s\nkill all\nwait 10s\nrestart all over 5s\n"
        "expect within 60s whole"
    )


def test_partition_heals_after_all_nodes_restarted() -> None:
    """Who is lost is remembered too: else each half would know only itself after the restart."""
    run(
        "nodes 20\nstart 0\nstart 1..19\nexpect within 60s whole\ncut 0..9 | 10..19\nwait 40s\nkill all\n"
        "restart all over 5s\nwait 60s\nheal\nexpect within 120s whole"
    )


def test_client_follows_changes() -> None:
    player = run(
        "nodes 20\nclients 2\nstart 0\nstart 1..19\nexpect within 60s whole\nstart clients through 0..2\n"
        "expect within 5s joined clients\nserve 5 model-a\nexpect within 3s known model-a\nwait 5s\n"
        "kill 5\nexpect within 6s gone 5\nserve 6 model-b\nexpect within 3s known model-b"
    )
    # It counts for nothing: nobody has it in a table.
    client = player.simulation.nodes[20]
    assert all(observe.status(node, client.id) is None for node in player.simulation.live())


def test_client_survives_the_death_of_all_providers() -> None:
    player = Player(
        parse("nodes 20\nclients 1\nstart 0\nstart 1..19\nexpect within 60s whole\nstart clients through 0")
    )
    player.play()
    player.simulation.run(30.0)
    client = player.simulation.nodes[20]
    for peer in list(client.links):
        player.simulation.kill(player.simulation.by_id[peer].index)
    player.simulation.run(20.0)
    live = {node.id for node in player.simulation.live()}
    assert set(client.links) & live
    alive = {peer.node for peer in observe.view(client).peers if peer.status is PeerStatus.ALIVE}
    assert alive == live


def test_sim_watch_agrees_with_the_snapshot() -> None:
    player = run(
        "nodes 20\nclients 1\nstart 0\nstart 1..19\nexpect within 60s whole\nstart clients through 0..2\n"
        "kill 3\nstop 4\nwait 3s"
    )
    for node in observe.everybody(player.simulation):
        for peer in observe.view(node).peers:
            assert observe.status(node, peer.node) is peer.status


def test_sim_seed_repeats_a_run() -> None:
    text = "nodes 15\nloss 10%\nskew 1%\nstart 0\nstart 1..14 over 5s\nwait 60s\nkill 3\nwait 20s"
    one, two, other = run(text), run(text), run(text, seed=SEED + 1)
    assert (one.simulation.events, one.simulation.messages) == (two.simulation.events, two.simulation.messages)
    assert one.simulation.messages != other.simulation.messages


def test_sim_failure_names_seed_and_line() -> None:
    with pytest.raises(Failed, match=rf"line 3: .*seed {SEED}"):
        run("nodes 2\nstart 0\nexpect within 2s joined 1")


@pytest.mark.parametrize("seed", range(SEED, SEED + 10))
def test_mesh_is_whole_after_random_trouble(seed: int) -> None:
    """Random trouble: kills, restarts, cuts, loss, old records. Then a quiet minute."""
    rng = random.Random(seed)
    count = rng.randrange(3, 16)
    lines = [f"nodes {count}", "skew 1%", "start 0", f"start 1..{count - 1} over 5s", "wait 10s"]
    for _ in range(rng.randrange(3, 10)):
        half = rng.randrange(1, count)
        trouble = [
            f"churn {rng.randrange(1, 6)} over 5s",
            f"cut 0..{half - 1} | {half}..{count - 1}",
            f"cut {rng.randrange(count)} > 0..{count - 1}",
            "loss 30%",
            "loss 20% late",
            "heal",
            "replay 5",
        ]
        lines += [rng.choice(trouble), f"wait {rng.randrange(1, 40)}s"]
    lines += ["heal", "loss 0%", "expect within 120s whole"]
    run("\n".join(lines), seed=seed)
