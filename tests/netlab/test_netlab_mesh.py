"""Meshes of real daemons on hosts of their own, over links that are slow, lossy, cut, healed and behind NATs.

Fake models name their host in the answer. Nothing is timed: tests wait for facts of the status.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netlab.lab import Host, Lab, missing
from tests.netlab.nodes import FakeModel, Node, Status, host_model, peers, start

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=f"no network lab: {missing()}"),
    pytest.mark.slow,
]
Join = Callable[..., Node]


@pytest.fixture
def join(tmp_path: Path) -> Join:
    """Starts a node on a host; with an invite it joins another node's mesh."""
    # A node must not serve files of this machine that it was not asked for.
    environment = {"MESH_LLM_MODELS": str(tmp_path / "models")}

    def joined(host: Host, member: Node | None = None, *arguments: str) -> Node:
        words = list(arguments)
        if member is not None:
            file = tmp_path / f"invite for {host.name}"
            file.write_text(member.invite())
            words += ["--join", f"@{file}"]
        return start(host, tmp_path / host.name, *words, environment=environment)

    return joined


def backend(fake: FakeModel) -> tuple[str, str]:
    """The options that add it to the pool."""
    return "--backend", fake.url


def name(node: Node) -> str:
    """The node's id, as other nodes show it."""
    own: str = node.status()["mesh"]["node"]
    return own


def peer(status: Status, node_id: str) -> dict[str, Any]:
    """A peer in a status; empty if unknown."""
    found: list[dict[str, Any]] = [one for one in status["mesh"]["peers"] if one["id"] == node_id]
    return (
        found[0] if found else {"status": "unknown", "models": [], "linked": False, "transport": None, "addresses": []}
    )


def until_by(node: Node, way: str, host: str, model: str) -> None:
    """Send requests until one to that host uses `way`: a transport is chosen while requests are answered."""
    for _ in range(1000):
        assert node.chat(model).done
        if peer(node.status(), host)["transport"] == way:
            return
    raise AssertionError(f"no request travelled by {way}: {peer(node.status(), host)}")


def until_alive(node: Node, *others: str, models: tuple[str, ...] = ()) -> Status:
    """Wait until `node` has all of these as live peers, with `models` among theirs."""

    def fact(status: Status) -> bool:
        served = {model for one in status["mesh"]["peers"] if one["status"] == "alive" for model in one["models"]}
        return peers(status) >= set(others) and served >= set(models)

    return node.until(fact, f"{len(others)} live peers with {models}")


def until_gone(node: Node, *others: str) -> Status:
    """Wait until none of these is a live peer."""
    return node.until(lambda status: not peers(status) & set(others), "the others to be gone")


def test_three_hosts_form_a_mesh_by_one_invite(lab: Lab, join: Join) -> None:
    hosts = [lab.host(letter) for letter in "abc"]
    lab.link_all(delay=0.02)
    fakes = [host_model(host, f"model-{host.name}") for host in hosts]
    nodes = [join(hosts[0], None, *backend(fakes[0]))]
    nodes += [join(host, nodes[0], *backend(fake)) for host, fake in zip(hosts[1:], fakes[1:], strict=True)]
    ids = [name(node) for node in nodes]
    for index, node in enumerate(nodes):
        others = [one for one in ids if one != ids[index]]
        status = until_alive(node, *others, models=tuple(f"model-{h.name}" for h in hosts if h is not hosts[index]))
        assert {status["mesh"]["mesh"]} == {nodes[0].status()["mesh"]["mesh"]}
        assert node.models() == {"model-a", "model-b", "model-c"}
        for host in hosts:
            assert node.chat(f"model-{host.name}").text == f"{host.name}0 {host.name}1 {host.name}2 "
            assert node.chat(f"model-{host.name}", stream=True, tokens=20).pieces == 20
        # Twice 20 ms; the measured time cannot be less.
        measured = [one["rtt"] for one in node.status()["mesh"]["peers"] if one["rtt"] is not None]
        assert measured
        assert min(measured) >= 0.04


@pytest.mark.parametrize("kind", ["cone", "symmetric"])
def test_client_behind_a_nat_uses_the_mesh(lab: Lab, join: Join, kind: str) -> None:
    a = lab.host("a")
    lab.nat("home", kind)
    laptop = lab.host("laptop", behind="home")
    lab.link_all(delay=0.01)
    fake = host_model(a, "m")
    host = join(a, None, *backend(fake))
    client = join(laptop, host, "--client")
    until_alive(client, name(host), models=("m",))
    assert client.chat("m").text == "a0 a1 a2 "
    assert client.chat("m", stream=True, tokens=50).pieces == 50
    assert client.status()["mesh"]["role"] == "client"
    status = host.until(lambda status: status["mesh"]["clients"] == 1, "a client")
    assert status["mesh"]["peers"] == [], "a client is no member"


def test_model_behind_a_nat_is_reached_from_outside(lab: Lab, join: Join) -> None:
    a = lab.host("a")
    lab.nat("home", "symmetric")
    inside = lab.host("inside", behind="home")
    first = join(a)
    server = join(inside, first, *backend(host_model(inside, "m")))
    until_alive(first, name(server), models=("m",))
    assert first.chat("m").text == "inside0 inside1 inside2 "
    assert first.chat("m", stream=True, tokens=50).pieces == 50
    # No host can connect to it: the link that the server dialled is used.
    until_by(first, "quic", name(server), "m")


@pytest.mark.parametrize("one_way", [False, True], ids=["both-ways", "one-way"])
def test_requests_avoid_a_cut_link_and_return(lab: Lab, join: Join, one_way: bool) -> None:
    a, b, c = (lab.host(letter) for letter in "abc")
    lab.link_all(delay=0.005)
    fakes = {host.name: host_model(host, "m") for host in (a, b)}
    first = join(a, None, *backend(fakes["a"]))
    second = join(b, first, *backend(fakes["b"]))
    asker = join(c, first)
    ids = {"a": name(first), "b": name(second)}
    until_alive(asker, *ids.values(), models=("m",))
    asker.until(lambda status: all(peer(status, one)["models"] == ["m"] for one in ids.values()), "two hosts")

    for fake in fakes.values():
        fake.before_first.clear()
    waiting = [asker.ask("m") for _ in range(8)]
    assert fakes["a"].arrived.wait(60) or fakes["b"].arrived.wait(60)
    cut = "a" if fakes["a"].arrived.is_set() else "b"
    other = "b" if cut == "a" else "a"
    lab.cut(cut, "c", one_way=one_way)
    fakes[other].before_first.set()
    assert {answer.result().text for answer in waiting} == {f"{other}0 {other}1 {other}2 "}
    assert asker.chat("m").text == f"{other}0 {other}1 {other}2 "

    fakes[cut].before_first.set()
    lab.mend(cut, "c")
    healed = asker.until(
        lambda status: peer(status, ids[cut])["status"] == "alive" and peer(status, ids[cut])["linked"], "the link"
    )
    assert peers(healed) == set(ids.values())
    # A failed host rests; after that, two concurrent requests go to one host each.
    fakes[cut].asked.clear()
    for _ in range(1000):
        fakes[other].before_first.clear()
        seen = len(fakes[other].asked) + len(fakes[cut].asked)
        pair = [asker.ask("m") for _ in range(2)]
        while len(fakes[other].asked) + len(fakes[cut].asked) < seen + 2 and not all(one.done() for one in pair):
            asker.status()
        fakes[other].before_first.set()
        assert all(answer.result().done for answer in pair)
        if fakes[cut].asked:
            return
    raise AssertionError("no request goes to the host whose link is mended")


def test_partitioned_mesh_goes_on_and_heals(lab: Lab, join: Join) -> None:
    hosts = [lab.host(letter) for letter in "abcd"]
    lab.link_all(delay=0.005)
    nodes: list[Node] = []
    for host in hosts:
        fake = host_model(host, "m1" if host.name in "ac" else "m2")
        nodes.append(join(host, nodes[0] if nodes else None, *backend(fake)))
    ids = [name(node) for node in nodes]
    for node in nodes:
        until_alive(node, *(one for one in ids if one != name(node)), models=("m1", "m2"))

    halves = (("a", "b"), ("c", "d"))
    lab.part(*halves)
    for node, others in zip(nodes, (ids[2:], ids[2:], ids[:2], ids[:2]), strict=True):
        until_gone(node, *others)
    for index, half in ((0, halves[0]), (1, halves[0]), (2, halves[1]), (3, halves[1])):
        for model in ("m1", "m2"):
            assert nodes[index].chat(model).text[0] in half

    lab.unite(*halves)
    for node in nodes:
        until_alive(node, *(one for one in ids if one != name(node)))
    assert len({node.status()["mesh"]["mesh"] for node in nodes}) == 1


def test_joins_and_streams_work_with_packet_loss(lab: Lab, join: Join) -> None:
    a, b, c = (lab.host(letter) for letter in "abc")
    lab.link_all(delay=0.01, loss=0.05)
    first = join(a, None, *backend(host_model(a, "m")))
    nodes = [join(b, first), join(c, first, "--client")]
    for node in nodes:
        until_alive(node, name(first), models=("m",))
    answers = [node.ask("m", stream=True, tokens=100) for node in nodes for _ in range(4)]
    wanted = "".join(f"a{number} " for number in range(100))
    for answer in answers:
        got = answer.result()
        assert (got.status, got.done, got.text) == (200, True, wanted)
    # A live host is not declared dead because packets are lost.
    assert peers(first.status()) == {name(nodes[0])}
    assert lab.counts("a", "b")["lost"] > 0


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_host_that_moved_is_found_again(lab: Lab, join: Join, ending: signal.Signals) -> None:
    a, b = lab.host("a"), lab.host("b")
    fake = host_model(b, "m")
    first = join(a)
    second = join(b, first, *backend(fake))
    until_alive(first, name(second), models=("m",))
    again = name(second)

    if ending is signal.SIGKILL:
        second.kill()
    else:
        second.stop()
    until_gone(first, again)
    b.move("198.18.7.7")
    second = join(b, None, *backend(fake))
    assert name(second) == again
    until_alive(first, again, models=("m",))
    first.until(
        lambda status: any(address.startswith("198.18.7.7:") for address in peer(status, again)["addresses"]),
        "the new address",
    )
    assert first.chat("m").text == "b0 b1 b2 "


def test_tunnels_use_quic_if_tcp_is_blocked(lab: Lab, join: Join) -> None:
    a, b, c = (lab.host(letter) for letter in "abc")
    lab.link_all(delay=0.005)
    lab.link("a", "c", blocked=["tcp"])
    host = join(a, None, *backend(host_model(a, "m")))
    free, blocked = join(b, host), join(c, host)
    for node, way in ((free, "lane"), (blocked, "quic")):
        until_alive(node, name(host), models=("m",))
        assert node.chat("m").text == "a0 a1 a2 "
        until_by(node, way, name(host), "m")
        assert node.chat("m", stream=True, tokens=100).pieces == 100
    assert lab.counts("c", "a")["blocked"] > 0


def test_sixteen_waiting_requests_survive_the_death_of_their_host(lab: Lab, join: Join) -> None:
    a, b, c = (lab.host(letter) for letter in "abc")
    lab.link_all(delay=0.005)
    fakes = {host.name: host_model(host, "m") for host in (a, b)}
    for fake in fakes.values():
        fake.before_first.clear()
    first = join(a, None, *backend(fakes["a"]))
    second = join(b, first, *backend(fakes["b"]))
    asker = join(c, first, "--client")
    until_alive(asker, name(first), name(second), models=("m",))
    waiting = []
    while len(fakes["a"].asked) < 16:
        before = sum(len(fake.asked) for fake in fakes.values())
        waiting.append(asker.ask("m"))
        while sum(len(fake.asked) for fake in fakes.values()) == before and not waiting[-1].done():
            asker.status()
        assert len(waiting) < 64, "requests do not spread over hosts that are equally near"
    first.kill()
    fakes["b"].before_first.set()
    assert {answer.result().text for answer in waiting} == {"b0 b1 b2 "}
