"""Audit, row 6 and H2: certificates and invites that do not count (any more), at admission and in records.

The attacker holds everything that a member with the mesh key once held: the old private mesh key, too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshllm.core.membership.certificates import ALL_RIGHTS, Right, StatementKind
from meshllm.core.membership.messages import Records, RenewCertificate, RenewedCertificate, Statements
from meshllm.core.records import BootstrapAddress, ServedModel
from meshllm.errors import PeerRefused
from meshllm.net.identity import Identity, verify
from meshllm.wire.mesh.certificates import read_certificate
from meshllm.wire.mesh.codec import signer
from meshllm.wire.mesh.invite import Invite, decode
from tests.attacks.hostile_member import HostileMember, MeshSecrets, hostile, invited
from tests.e2e.here import Site, joined, site
from tests.netlab.nodes import Node

HOUR = 3600
YEAR = 365 * 24 * HOUR
MODEL = "Planted"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def invite(here: Site, home: str, *words: str) -> Invite:
    """A fresh invite of a node."""
    done = here.run(home, "invite", *words)
    assert done.returncode == 0, done.stderr
    return decode(done.stdout.strip())


async def refusal(member: HostileMember, certificate: bytes, target: BootstrapAddress) -> str:
    """The code with which a node refuses this certificate; "" if it lets the member in."""
    member.certificate = certificate
    try:
        link = await member.dial(target)
    except PeerRefused as refused:
        return refused.reason
    link.close("done")
    return ""


async def publish(carrier: HostileMember, other: HostileMember, *certificates: bytes) -> None:
    """Hand the dialled node records of `other`, each with one of the certificates."""
    for certificate in certificates:
        other.certificate = certificate
        record = replace(other.record(ServedModel(MODEL, slots=1)), name=f"planted {other.node.hex()[:6]}")
        carrier.send(Records((signer(other.identity.sign)(record),), push=True))


def names(node: Node) -> set[str]:
    return {peer["name"] for peer in node.status()["mesh"]["peers"]}


def refused_records(here: Site, home: str) -> set[str]:
    """The names in the records that a node refused, by its audit log; after its end."""
    lines = [json.loads(line) for line in (here.folder / home / "audit.log").read_text().splitlines()]
    return {line.get("name", "") for line in lines if line["event"] == "record_refused"}


def test_forged_stolen_and_expired_certificates_are_refused(here: Site) -> None:
    founder = here.node("founder", "--node-name", "founder")
    other = here.node("other", "--node-name", "other", join=founder)
    other.until(joined, "the mesh")
    secrets = MeshSecrets.of(here.folder / "founder")
    stolen = bytes.fromhex(here.kept("other")["certificate"])

    async def attack() -> dict[str, str]:
        found = {}
        async with invited(here.folder / "guest", invite(here, "founder", "--guest")) as guest:
            target, own = guest.link.facts.peer, guest.certificate  # type: ignore[union-attr]
            way = BootstrapAddress(target, (guest.link.facts.address,))  # type: ignore[union-attr]
            at = own.index(guest.node) + len(guest.node)
            assert own[at] == Right.USE
            forged = own[:at] + bytes([int(ALL_RIGHTS)]) + own[at + 1 :]
            longer = own[: at + 5] + b"\xff\xff\xff\xff" + own[at + 9 :]
            self_made = replace(secrets, private=b"x" * 32).certify(guest.node, issued=now(), expires=now() + HOUR).data
            expired = secrets.certify(guest.node, issued=now() - HOUR, expires=now() - 1).data
            tried = {"forged": forged, "longer": longer, "self-made": self_made, "stolen": stolen, "expired": expired}
            async with hostile(here.folder / "stranger", secrets.mesh) as stranger:
                stranger_expired = secrets.certify(stranger.node, issued=now() - HOUR, expires=now() - 1).data
                records = [replace_node(data, guest, stranger) for data in (forged, longer, self_made)]
                await publish(guest, stranger, own, stolen, stranger_expired, *records)
            guest.publish(ServedModel(MODEL), name="forged", certificate=forged)
            guest.send(RenewCertificate(own))
            await guest.answer(RenewedCertificate)  # what was sent before has been read
            guest.link.close("to dial again")  # type: ignore[union-attr]
            await guest.closed
            for what, certificate in tried.items():
                found[what] = await refusal(guest, certificate, way)
            found["right"] = await refusal(guest, own, way)
        return found

    found = asyncio.run(attack())
    assert found == {
        "forged": "wrong_mesh",
        "longer": "wrong_mesh",
        "self-made": "wrong_mesh",
        "stolen": "wrong_mesh",
        "expired": "expired_certificate",
        "right": "",
    }
    assert names(founder) == {"other"}
    assert MODEL not in json.dumps(founder.status())
    assert founder.stop() == 0
    assert {"forged", planted_name(here)} <= refused_records(here, "founder")
    assert other.stop() == 0


def planted_name(here: Site) -> str:
    """The name in the records of the stranger."""
    return f"planted {Identity.load_or_create(here.folder / 'stranger').node.hex()[:6]}"


def replace_node(data: bytes, old: HostileMember, new: HostileMember) -> bytes:
    """The bytes of a certificate with another node's id."""
    return data.replace(old.node, new.node)


def test_old_mesh_key_gives_nothing_after_its_rotation(here: Site) -> None:
    founder = here.node("founder", "--node-name", "founder")
    old_invite = invite(here, "founder")
    old = MeshSecrets.of(here.folder / "founder")

    async def attack() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with invited(here.folder / "guest", invite(here, "founder", "--guest")) as guest:
            assert guest.link is not None
            way = BootstrapAddress(guest.link.facts.peer, (guest.link.facts.address,))
            own = guest.certificate
            found["own"] = read_certificate(own, (old.key,), verify).certificate
            assert here.run("founder", "rotate-key", "--mesh", "--yes").returncode == 0
            await guest.answer(Statements)  # it knows of the new key
            # A guest whom the mesh knows, with a certificate that an accomplice made with the old private key.
            more = old.certify(guest.node, ALL_RIGHTS, issued=now() - 1, expires=now() + HOUR).data
            guest.publish(ServedModel(MODEL), name="more rights", certificate=more)
            guest.send(Statements((old.state(StatementKind.EXPEL, guest.node, guest.node, now()),), b"h" * 8))
            guest.send(RenewCertificate(more))
            given = await guest.answer(RenewedCertificate)
            found["renewed"] = read_certificate(
                given.certificate, (MeshSecrets.of(here.folder / "founder").key,), verify
            )
            found["private"] = given.mesh_private
            async with hostile(here.folder / "stranger", old.mesh) as stranger:
                made = old.certify(stranger.node, issued=now() - 1, expires=now() + HOUR).data
                await publish(guest, stranger, made)
                found["old key"] = await refusal(stranger, made, way)
                stranger.invite = old_invite
                found["old invite"] = await refusal(stranger, b"", way)
            guest.link.close("to dial again")
            await guest.closed
            found["more rights"] = await refusal(guest, more, way)
            found["as it was known"] = await refusal(guest, own, way)
        return found

    found = asyncio.run(attack())
    assert found["renewed"].certificate.rights == Right.USE
    assert found["private"] == b""
    assert [found[what] for what in ("old key", "old invite", "more rights", "as it was known")] == [
        "wrong_mesh",
        "wrong_invite",
        "wrong_mesh",
        "",
    ]
    assert names(founder) == set()
    # After the grace: a restart ends it, as an hour does.
    assert founder.stop() == 0
    assert {"more rights"} < refused_records(here, "founder")
    again = here.node("founder", "--node-name", "founder")

    async def attack_again() -> tuple[str, str]:
        async with hostile(here.folder / "guest", old.mesh) as guest:
            way = invite(here, "founder").ways[0]
            more = old.certify(guest.node, ALL_RIGHTS, issued=now() - 1, expires=now() + HOUR).data
            refused = await refusal(guest, more, way)
            # What it had, for a year longer: it counts for what it had.
            own = found["own"]
            guest.certificate = old.sign(replace(own, issued=own.issued + YEAR, expires=own.expires + YEAR))
            link = await guest.dial(way)
            guest.send(RenewCertificate(guest.certificate))
            given = (await guest.answer(RenewedCertificate)).certificate
            key = MeshSecrets.of(here.folder / "founder").key
            renewed = read_certificate(given, (key,), verify).certificate
            assert replace(renewed, serial=own.serial) == own
            link.close("done")
        async with hostile(here.folder / "stranger", old.mesh) as stranger:
            made = old.certify(stranger.node, issued=now() - 1, expires=now() + HOUR).data
            return refused, await refusal(stranger, made, way)

    assert asyncio.run(attack_again()) == ("wrong_mesh", "wrong_mesh")
    assert again.stop() == 0
