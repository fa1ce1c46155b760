"""Audit, H3: a member floods real daemons with nodes that it made up. `tests/sim/test_sim_sybils.py` has the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshllm.core.ids import NodeId
from meshllm.core.membership.certificates import MAX_NODES_PER_INVITE, MAX_NODES_PER_INVITER, Right
from meshllm.core.membership.messages import Records
from meshllm.core.membership.summary import chunks
from meshllm.core.records import FailureReport, PeerAddress, RecordVersion, SignedRecord
from meshllm.wire.mesh.codec import encode_message, signer
from meshllm.wire.mesh.invite import Invite, decode
from tests.attacks.hostile_member import PATIENCE_SECONDS, HostileMember, MeshSecrets, invited
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


class MadeUp:
    """Nodes that do not exist; each reports `against` as failed. With `mesh_secrets` each has a certificate that names
    the member as its inviter, as if it had invited them all."""

    def __init__(self, member: HostileMember, against: NodeId, mesh_secrets: MeshSecrets | None) -> None:
        self._member, self._against = member, against
        self._keys = [Ed25519PrivateKey.generate() for _ in range(MADE_UP)]
        self._certificates = [b""] * MADE_UP
        if mesh_secrets is not None:
            now = int(datetime.now(UTC).timestamp())
            self._certificates = [
                mesh_secrets.certify(
                    self._id(key),
                    Right.USE | Right.SERVE | Right.WORK,
                    issued=now,
                    expires=now + 3600,
                    inviter=member.node,
                    invite=b"made-up%c" % (number // MAX_NODES_PER_INVITE),
                ).data
                for number, key in enumerate(self._keys)
            ]
        self._version = 0

    @staticmethod
    def _id(key: Ed25519PrivateKey) -> NodeId:
        return NodeId(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def records(self) -> list[SignedRecord]:
        """Newer records of all: a node counts as alive by that."""
        self._version += 1
        return [
            signer(key.sign)(
                self._member.record(
                    node=self._id(key),
                    version=RecordVersion(1, self._version),
                    name=f"made up {number}",
                    addresses=(PeerAddress("127.0.0.1", 9),),
                    certificate=certificate,
                    failure_reports=(FailureReport(self._against, 1),),
                )
            )
            for number, (key, certificate) in enumerate(zip(self._keys, self._certificates, strict=True))
        ]


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
@pytest.mark.parametrize("certified", [False, True])
def test_flood_of_made_up_nodes_parts_no_nodes_and_hides_no_death(here: Site, certified: bool) -> None:
    """Without certificates nothing of them is kept; with certificates of one inviter as much as its quota allows."""
    one = here.node("one", "--node-name", "one")
    two = here.node("two", "--node-name", "two", join=one)
    three = here.node("three", "--node-name", "three", join=one)
    for node in (one, two, three):
        node.until(lambda status: joined(status) and len(status["mesh"]["peers"]) == 2, "the other two")
    ways = [
        invite_of(here, "one", "--rights", "use,serve,work,invite"),
        *(invite_of(here, n) for n in ("two", "three")),
    ]
    before = [memory(node) for node in (one, two)]
    mesh_secrets = MeshSecrets.of(here.folder / "one") if certified else None

    async def attack() -> None:
        async with invited(here.folder / "hostile", ways[0]) as member:
            flood = MadeUp(member, NodeId(bytes.fromhex(two.status()["mesh"]["node"])), mesh_secrets)
            for way in ways:
                await member.dial(way.ways[0])
                member.publish()
                for portion in chunks(flood.records()):
                    await send(member, Records(portion, push=True))
            await asyncio.to_thread(watch)

    def watch() -> None:
        # Nobody answers for them, so that they die; a link that is not needed is closed after 60 s.
        end = time.monotonic() + (20.0 if certified else 75.0)
        while time.monotonic() < end:
            for node, other in ((one, "two"), (two, "one")):
                (peer,) = [peer for peer in node.status()["mesh"]["peers"] if peer["name"] == other]
                assert (peer["status"], peer["reason"], peer["linked"]) == ("alive", "", True)
            time.sleep(0.5)
        grown = [memory(node) - had for node, had in zip((one, two), before, strict=True)]
        known = len(one.status()["mesh"]["peers"])
        # The others and the member; and the made-up ones that an inviter may have.
        assert known > 3 if certified else known <= 3
        assert known <= 3 + (MAX_NODES_PER_INVITER if certified else 0)
        assert max(grown) < MAX_GROWTH, grown
        three.kill()
        killed = time.monotonic()
        for node in (one, two):
            node.until(lambda status: "three" not in honest(status), "the death of three")
        took = time.monotonic() - killed
        print(f"grown by {[size // 1000 for size in grown]} kB, the death was noticed after {took:.1f} s")

    asyncio.run(attack())
    assert one.stop() == two.stop() == 0
