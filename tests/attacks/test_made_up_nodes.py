"""Audit, H3: a member floods real daemons with nodes that it made up. `tests/sim/test_sim_sybils.py` has the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshllm.core.ids import NodeId
from meshllm.core.membership.messages import Records
from meshllm.core.membership.summary import chunks
from meshllm.core.records import FailureReport, PeerAddress, SignedRecord
from meshllm.wire.mesh.codec import encode_message, signer
from meshllm.wire.mesh.invite import Invite, decode
from tests.attacks.hostile_member import PATIENCE_SECONDS, HostileMember, invited
from tests.e2e.here import Site, joined, site
from tests.netlab.nodes import Node, Status

MADE_UP = 2000
# What a node may need more than before (bytes): twice the goal, because the allocator returns little.
MAX_GROWTH = 10 << 20


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def invite_of(here: Site, home: str, *words: str) -> Invite:
    """A fresh invite of a node."""
    done = here.run(home, "invite", *words)
    assert done.returncode == 0, done.stderr
    return decode(done.stdout.strip())


def made_up(member: HostileMember, against: NodeId) -> list[SignedRecord]:
    """Records of nodes that do not exist; each reports `against` as failed."""
    found = []
    for number in range(MADE_UP):
        key = Ed25519PrivateKey.generate()
        node = NodeId(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        record = member.record(
            node=node,
            name=f"made up {number}",
            addresses=(PeerAddress("127.0.0.1", 9),),
            certificate=b"",
            failure_reports=(FailureReport(against, 1),),
        )
        found.append(signer(key.sign)(record))
    return found


async def send(member: HostileMember, message: Records) -> None:
    """Send it as soon as the node has read what came before."""
    assert member.link is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not member.link.send(encode_message(message)):
            assert not member.closed.done(), member.closed.result()
            await asyncio.sleep(0.05)


def honest(status: Status) -> list[str]:
    """The names of peers that are alive and not made up."""
    peers = status["mesh"]["peers"]
    return [p["name"] for p in peers if p["status"] == "alive" and not p["name"].startswith("made up")]


def memory(node: Node) -> int:
    """The resident memory of the daemon itself, in bytes."""
    return int(psutil.Process(node.process.pid).memory_info().rss)


@pytest.mark.slow
def test_flood_of_uncertified_nodes_parts_no_nodes_and_hides_no_death(here: Site) -> None:
    one = here.node("one", "--name", "one")
    two = here.node("two", "--name", "two", join=one)
    three = here.node("three", "--name", "three", join=one)
    for node in (one, two, three):
        node.until(lambda status: joined(status) and len(status["mesh"]["peers"]) == 2, "the other two")
    ways = [
        invite_of(here, "one", "--rights", "use,serve,work,invite"),
        *(invite_of(here, n) for n in ("two", "three")),
    ]
    before = [memory(node) for node in (one, two)]

    async def attack() -> None:
        async with invited(here.folder / "hostile", ways[0]) as member:
            records = made_up(member, NodeId(bytes.fromhex(two.status()["mesh"]["node"])))
            for way in ways:
                await member.dial(way.ways[0])
                member.publish()
                for portion in chunks(records):
                    await send(member, Records(portion, push=True))
            await asyncio.to_thread(watch)

    def watch() -> None:
        end = time.monotonic() + 75.0  # a link that is not needed is closed after 60
        while time.monotonic() < end:
            for node, other in ((one, "two"), (two, "one")):
                (peer,) = [peer for peer in node.status()["mesh"]["peers"] if peer["name"] == other]
                assert (peer["status"], peer["reason"], peer["linked"]) == ("alive", "", True)
            time.sleep(0.5)
        grown = [memory(node) - had for node, had in zip((one, two), before, strict=True)]
        assert len(one.status()["mesh"]["peers"]) <= 3, "the others and the member"
        assert max(grown) < MAX_GROWTH, grown
        three.kill()
        killed = time.monotonic()
        for node in (one, two):
            node.until(lambda status: "three" not in honest(status), "the death of three")
        took = time.monotonic() - killed
        print(f"grown by {[size // 1000 for size in grown]} kB, the death was noticed after {took:.1f} s")

    asyncio.run(attack())
    assert one.stop() == two.stop() == 0
