"""A member that may invite keeps invites to come back with after its expulsion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshllm.core.membership.certificates import MeshKey, Right, StatementKind
from meshllm.core.membership.messages import AskInvite, GrantedInvite, Statements
from meshllm.core.records import BootstrapAddress
from meshllm.errors import PeerRefused
from meshllm.net.identity import verify
from meshllm.wire.mesh.certificates import read_statement
from meshllm.wire.mesh.invite import Invite, InviteTerms, decode
from tests.attacks.hostile_member import PATIENCE_SECONDS, HostileMember, hostile, invited
from tests.e2e.here import Site, joined, site

GIVEN = Right.USE | Right.SERVE


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def invite(here: Site, home: str, *words: str) -> Invite:
    """A fresh invite of a node."""
    done = here.run(home, "invite", *words)
    assert done.returncode == 0, done.stderr
    return decode(done.stdout.strip())


async def refusal(here: Site, name: str, given: Invite, target: BootstrapAddress) -> str:
    """The code with which a node refuses a newcomer with that invite; "" if it admits it."""
    async with hostile(here.folder / name, given.mesh) as newcomer:
        newcomer.invite = given
        try:
            link = await newcomer.dial(target)
        except PeerRefused as refused:
            return refused.reason
        link.close("done")
        return ""


async def granted(member: HostileMember, own: Invite) -> Invite:
    """An invite that the dialled node makes for the member."""
    now = int(datetime.now(UTC).timestamp())
    member.send(AskInvite(GIVEN, now + 10**8, 10**8, 0))
    given = await member.answer(GrantedInvite)
    assert given.key, given.refused
    terms = InviteTerms(given.serial, given.rights, given.expires, given.lifetime, maker_only=True)
    return replace(own, key=given.key, terms=terms)


def test_expelled_member_does_not_come_back_by_the_invites_it_kept(here: Site) -> None:
    first = here.node("first", "--node-name", "first")
    second = here.node("second", "--node-name", "second", join=first)
    second.until(joined, "the mesh")
    ways = {name: invite(here, name, "--once").ways[0] for name in ("first", "second")}

    async def attack() -> dict[str, str]:
        # Two invites of the owner, which the member used one after the other, and one that it asked for.
        used = [invite(here, "first", "--rights", "use,serve,invite") for _ in range(2)]
        async with invited(here.folder / "member", used[0]) as member:
            assert member.link is not None
            member.link.close("to use the other one")
            await member.closed
            member.invite = used[1]
            await member.dial(ways["first"])
            asked = await granted(member, used[0])
            assert await refusal(here, "friend", asked, ways["first"]) == ""
            member.publish()
            await asyncio.to_thread(second.until, lambda status: "hostile" in str(status["mesh"]), "the member")
            # The node that made and gave the invites is not the one that expels.
            assert here.run("second", "expel", member.node.hex(), "--yes").returncode == 0
            await member.answer(Statements, lambda said: bool(said.statements))
        found = {}
        for at, way in ways.items():
            await asyncio.to_thread(wait_revoked, here, at, {each.terms.serial for each in (*used, asked)})
            for what, kept in {"used before": used[0], "used": used[1], "asked for": asked}.items():
                found[f"{what} at {at}"] = await refusal(here, f"again {what} {at}", kept, way)
        return found

    found = asyncio.run(attack())
    assert set(found.values()) == {"revoked_invite"}
    for node in (first, second):
        assert node.stop() == 0


def wait_revoked(here: Site, home: str, serials: set[bytes]) -> None:
    """Wait until a node has in its state file that these invites are revoked."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not revoked(here, home) >= serials:
        assert time.monotonic() < deadline, f"invites are not revoked at {home}"
        time.sleep(0.05)


def revoked(here: Site, home: str) -> set[bytes]:
    """The serials of revoked invites in the state file of a node."""
    kept = here.kept(home)
    key = MeshKey(bytes.fromhex(kept["key"]))
    said = [read_statement(bytes.fromhex(data), (key,), verify).statement for data in kept["statements"]]
    return {each.subject for each in said if each.kind is StatementKind.REVOKE_INVITE}
