"""The simulation itself, with cores that do as they are told: what the cores of the other tests live in is true."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.messages import Ping
from meshllm.core.records import BootstrapAddress, MeshId, NodeRecord, PeerAddress, RecordVersion
from meshllm.net.base import DIAL_SECONDS, IDLE_SECONDS
from tests.sim.network import Network
from tests.sim.simulation import Simulation, Stuck, genuine, sign


class Puppet:
    """A core that records what happens to it and asks for what it was told to ask."""

    def __init__(self, config: MeshConfig, rng: random.Random) -> None:
        self.config = config
        self.seen: list[tuple[float, e.Event]] = []
        self.todo: list[c.Command] = []
        self.deadline: float | None = None
        self.stubborn = False

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        self.seen.append((now, event))
        if isinstance(event, e.TimePassed) and not self.stubborn:
            self.deadline = None
        todo, self.todo = self.todo, []
        return todo

    def next_deadline(self) -> float | None:
        return self.deadline

    def of(self, kind: type[e.Event]) -> list[Any]:
        return [event for _, event in self.seen if isinstance(event, kind)]


class Rig:
    """Two or three puppets that run."""

    def __init__(self, count: int = 2, **options: Any) -> None:
        network = Network(random.Random(1), delay=(0.010, 0.010), **options.pop("network", {}))
        self.simulation = Simulation(1, network, make=Puppet, **options)  # type: ignore[arg-type]
        self.simulation.add(count)
        for index in range(count):
            self.simulation.start(index)
        self.simulation.run(0.0)

    def puppet(self, index: int) -> Puppet:
        core: Any = self.simulation.nodes[index].core
        assert isinstance(core, Puppet)
        return core

    def ask(self, index: int, *commands: c.Command) -> None:
        self.puppet(index).todo = list(commands)
        self.simulation.tell(index, e.TimePassed())

    def link(self, one: int = 0, other: int = 1) -> None:
        self.ask(one, c.DialPeer(self.simulation.nodes[other].way()))
        self.simulation.run(1.0)


def test_simulated_dial_links_both_ends() -> None:
    rig = Rig()
    rig.link()
    (here,), (there,) = rig.puppet(0).of(e.LinkUp), rig.puppet(1).of(e.LinkUp)
    assert (here.peer, there.peer) == (rig.simulation.nodes[1].id, rig.simulation.nodes[0].id)
    assert (here.dialled, there.dialled) == (True, False)
    assert here.rtt == pytest.approx(0.020)


def test_simulated_pair_has_one_link() -> None:
    rig = Rig()
    rig.ask(0, c.DialPeer(rig.simulation.nodes[1].way()))
    rig.link(1, 0)
    rig.link()
    assert len(rig.puppet(0).of(e.LinkUp)) == len(rig.puppet(1).of(e.LinkUp)) == 1


@pytest.mark.parametrize("gone", ["killed", "cut", "never was"])
def test_simulated_dial_of_a_dead_address_fails_after_the_deadline(gone: str) -> None:
    rig = Rig()
    way = rig.simulation.nodes[1].way()
    if gone == "killed":
        rig.simulation.kill(1)
    elif gone == "cut":
        rig.simulation.cut([1], [0], one_way=True)
    else:
        way = BootstrapAddress(bytes(16), (PeerAddress("10.9.9.9", 7000),))
    rig.ask(0, c.DialPeer(way))
    rig.simulation.run(DIAL_SECONDS - 0.01)
    assert rig.puppet(0).of(e.DialFailed) == []
    rig.simulation.run(0.02)
    assert rig.puppet(0).of(e.DialFailed) == [e.DialFailed(way, "no answer")]


def test_simulated_dial_with_a_wrong_port_or_pin_fails_at_once() -> None:
    rig = Rig()
    host = rig.simulation.nodes[1].address.host
    ways = [
        BootstrapAddress(bytes(16), (PeerAddress(host, 1),)),
        BootstrapAddress(bytes(16), (PeerAddress(host, 7000),)),
    ]
    rig.ask(0, *(c.DialPeer(way) for way in ways))
    rig.simulation.run(0.1)
    assert [event.target for event in rig.puppet(0).of(e.DialFailed)] == ways


def test_simulated_dial_succeeds_when_one_address_is_dead() -> None:
    rig = Rig()
    node = rig.simulation.nodes[1]
    rig.ask(0, c.DialPeer(BootstrapAddress(node.id, (PeerAddress("10.9.9.9", 7000), node.address))))
    rig.simulation.run(1.0)
    assert len(rig.puppet(0).of(e.LinkUp)) == 1


def test_messages_arrive_in_order() -> None:
    rig = Rig(network={"loss": 0.3, "retransmit": True})
    rig.link()
    peer = rig.simulation.nodes[1].id
    for number in range(50):
        rig.ask(0, c.Send(peer, Ping(number)))
        rig.simulation.run(0.01)
    rig.simulation.run(60.0)
    assert [event.message.number for event in rig.puppet(1).of(e.MessageReceived)] == list(range(50))


def test_bytes_are_those_of_the_codec() -> None:
    rig = Rig()
    rig.link()
    rig.simulation.counting = True
    rig.ask(0, c.Send(rig.simulation.nodes[1].id, Ping(1)))
    rig.simulation.run(1.0)
    assert rig.simulation.nodes[0].bytes_sent == rig.simulation.nodes[1].bytes_received > 4
    assert rig.simulation.bytes["Ping"] == rig.simulation.nodes[0].bytes_sent


def test_simulated_hang_up_reaches_both_ends() -> None:
    rig = Rig()
    rig.link()
    rig.ask(0, c.HangUp(rig.simulation.nodes[1].id, "idle"))
    rig.simulation.run(1.0)
    assert [event.reason for index in (0, 1) for event in rig.puppet(index).of(e.LinkDown)] == ["idle", "idle"]


def test_simulated_kill_ends_links_after_the_idle_time() -> None:
    rig = Rig()
    rig.link()
    rig.simulation.kill(0)
    rig.simulation.run(IDLE_SECONDS - 1)
    assert rig.puppet(1).of(e.LinkDown) == []
    rig.simulation.run(2.0)
    assert len(rig.puppet(1).of(e.LinkDown)) == 1


def test_simulated_restart_replaces_the_old_link() -> None:
    rig = Rig()
    rig.link()
    rig.ask(1, c.Send(rig.simulation.nodes[0].id, Ping(1)))
    rig.simulation.kill(0)
    rig.simulation.start(0)
    rig.link()
    assert rig.puppet(0).of(e.MessageReceived) == []
    assert len(rig.puppet(1).of(e.LinkUp)) == 2
    assert len(rig.puppet(1).of(e.LinkDown)) == 1
    assert rig.puppet(0).config.incarnation == 2


def test_simulated_cut_ends_links_unless_it_heals_in_time() -> None:
    rig = Rig(3)
    rig.link(0, 1)
    rig.link(0, 2)
    rig.simulation.cut([0], [1])
    rig.ask(0, c.Send(rig.simulation.nodes[1].id, Ping(1)))
    rig.simulation.run(IDLE_SECONDS + 1)
    assert rig.puppet(1).of(e.MessageReceived) == []
    assert len(rig.puppet(1).of(e.LinkDown)) == 1
    rig.simulation.cut([0], [2])
    rig.simulation.network.heal()
    rig.simulation.run(IDLE_SECONDS + 1)
    assert rig.puppet(2).of(e.LinkDown) == []


def test_each_node_is_woken_by_its_own_clock_and_never_too_early() -> None:
    rig = Rig(20, skew=0.01)
    for index, node in enumerate(rig.simulation.nodes):
        rig.puppet(index).deadline = node.clock(rig.simulation.now) + 100.0
        rig.simulation.tell(index, e.StopWanted())
    rig.simulation.run(200.0)
    for index in range(20):
        puppet = rig.puppet(index)
        asked = next(now for now, event in puppet.seen if isinstance(event, e.StopWanted))
        woken = next(now for now, event in puppet.seen if isinstance(event, e.TimePassed) and now > asked)
        assert 100.0 - 1e-6 <= woken - asked <= 100.0 + 1e-6


def test_simulation_detects_a_core_that_never_lets_time_pass() -> None:
    rig = Rig()
    rig.puppet(0).stubborn = True
    rig.puppet(0).deadline = 0.0
    rig.simulation.tell(0, e.StopWanted())
    with pytest.raises(Stuck):
        rig.simulation.run(1.0)


def test_simulation_drops_a_forged_record() -> None:
    rig = Rig()
    rig.link()
    good = sign(NodeRecord(rig.simulation.nodes[0].id, RecordVersion(1, 1), MeshId(bytes(16))))
    altered = replace(good, record=replace(good.record, version=RecordVersion(2, 1)))
    stolen = replace(good, signature=bytes(64))
    assert genuine(good)
    rig.simulation.inject(1, [altered, good, stolen])
    (received,) = rig.puppet(1).of(e.MessageReceived)
    assert received.message.records == (good,)
    assert rig.simulation.refused == 2
