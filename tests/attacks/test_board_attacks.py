"""The blackboard against members that break its rules, over real links: what they send counts for nothing, and a flood
takes nothing from others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshllm.core.board.chain import ChainId
from meshllm.core.board.entries import (
    MAX_AUTHOR_ENTRIES,
    NO_ENTRY,
    EntryHeader,
    EntryId,
    EntryKind,
    SignedEntry,
    body_hash,
    entry_id,
)
from meshllm.core.board.messages import BoardDifference, BoardEntries, BoardWant, ChainRange, ChainState
from meshllm.core.membership.messages import Ping
from meshllm.core.records import MeshId
from meshllm.daemon.wall_clock import system_time
from meshllm.wire.mesh.board import board_signer
from tests.attacks.hostile_member import HostileMember, invited
from tests.attacks.test_guest_rights import invite
from tests.board_calls import call, post, texts, until_shown
from tests.e2e.here import Site, site
from tests.netlab.nodes import Node


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def now_ms() -> int:
    return int(system_time() * 1000)


def written(
    member: HostileMember,
    seq: int,
    body: str,
    *,
    epoch: int = 1,
    moment: int | None = None,
    mesh: MeshId | None = None,
    kind: EntryKind = EntryKind.NOTE,
    target: EntryId = NO_ENTRY,
) -> SignedEntry:
    """An entry with the member's signature."""
    text = body.encode()
    header = EntryHeader(
        mesh or member.mesh, member.node, epoch, seq, moment or now_ms(), kind, "", "mallory", "", NO_ENTRY, (), "", 0,
        target, len(text), body_hash(text),
    )  # fmt: skip
    data, signature = board_signer(member.identity.sign)(header)
    return SignedEntry(header, data, signature, entry_id(data), body)


def entries(member: HostileMember, *found: SignedEntry) -> BoardEntries:
    return BoardEntries(found, (member.certificate,), push=True)


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(call, *arguments)


def test_forged_entry_costs_the_link_and_counts_for_nothing(here: Site) -> None:
    host = here.node("host", "--node-name", "host")
    token = invite(here, "host")

    async def attack() -> None:
        async with invited(here.folder / "member", token) as member:
            own = written(member, 1, "mine")
            member.send(entries(member, own))
            await in_thread(until_shown, host, "mine")
            peer = member.link.facts.peer if member.link is not None else None
            assert peer is not None
            forged = replace(own.header, author=peer, seq=5)
            data, signature = board_signer(member.identity.sign)(forged)
            member.send(entries(member, SignedEntry(forged, data, signature, entry_id(data), "mine")))
            assert "malformed" in await asyncio.wait_for(member.closed, 30.0)

    asyncio.run(attack())
    assert texts(host) == ["mine"]
    assert call(host, "facts")["flagged"] == []


def test_entries_that_break_the_rules_are_not_taken(here: Site) -> None:
    """Of another mesh, from the future, too old, written too fast, retracted by another, and two with one number."""
    host = here.node("host", "--node-name", "host")
    ident = post(host, "stays")
    token = invite(here, "host")

    async def attack() -> None:
        async with invited(here.folder / "member", token) as member:
            hour = 3_600_000
            member.send(entries(member, written(member, 1, "foreign", epoch=2, mesh=MeshId(b"x" * 16))))
            member.send(entries(member, written(member, 1, "future", epoch=3, moment=now_ms() + hour)))
            member.send(entries(member, written(member, 1, "old", epoch=4, moment=now_ms() - 49 * hour)))
            target = EntryId(bytes.fromhex(ident))
            member.send(entries(member, written(member, 1, "", epoch=5, kind=EntryKind.RETRACT, target=target)))
            burst = [written(member, seq, f"burst {seq}", epoch=6, moment=now_ms()) for seq in range(1, 46)]
            for first in (0, 15, 30):
                member.send(entries(member, *burst[first : first + 15]))
            member.send(entries(member, written(member, 1, "last", epoch=7)))
            await in_thread(until_shown, host, "last")

    asyncio.run(attack())
    found = texts(host)
    assert "stays" in found
    assert not {"foreign", "future", "old"} & set(found)
    assert sum("burst" in text for text in found) <= 30
    facts = call(host, "facts")
    assert facts["waiting"] == 1
    assert len(facts["flagged"]) == 1


def test_equivocating_author_is_flagged_at_all_nodes(here: Site) -> None:
    host = here.node("host", "--node-name", "host")
    other = here.node("other", "--node-name", "other", join=host)
    token = invite(here, "host")

    async def attack() -> None:
        async with invited(here.folder / "member", token) as member:
            moment = now_ms()
            member.send(entries(member, written(member, 1, "one", moment=moment)))
            await in_thread(until_shown, other, "one")
            member.send(entries(member, written(member, 1, "another", moment=moment)))
            for node in (host, other):
                await in_thread(_until_flagged, node)

    asyncio.run(attack())
    assert texts(host) == texts(other)
    assert len(texts(host)) == 1


def _until_flagged(node: Node) -> None:
    end = time.monotonic() + 60.0
    while not call(node, "facts")["flagged"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_flood_takes_nothing_from_others_and_the_node_goes_on(here: Site) -> None:
    host = here.node("host", "--node-name", "host")
    kept = [f"kept {number}" for number in range(10)]
    for text in kept:
        post(host, text)
    token = invite(here, "host")

    async def attack() -> None:
        async with invited(here.folder / "member", token) as member:
            begun = now_ms() - 40 * 3_600_000
            for epoch in range(1, 5):
                for first in range(1, 1000, 25):
                    numbers = range(first, first + 25)
                    flood = [written(member, n, f"flood {n}", epoch=epoch, moment=begun + n * 6000) for n in numbers]
                    if member.closed.done():
                        return
                    member.send(entries(member, *flood))
                    await asyncio.sleep(0)
            await in_thread(post, host, "in the middle of it")

    asyncio.run(attack())
    post(host, "afterwards")
    found = texts(host)
    assert {*kept, "afterwards"} <= set(found) | set(kept_of(host))
    assert call(host, "facts")["posts"] <= MAX_AUTHOR_ENTRIES + len(kept) + 2
    assert sum(path.stat().st_size for path in host.home.glob("board.db*")) < 8 << 20


def kept_of(node: Node) -> list[str]:
    """The texts of this node itself."""
    return [each["text"] for each in call(node, "feed?limit=500&mine=true")["posts"]]


def test_guest_gets_nothing_of_the_board_and_writes_nothing(here: Site) -> None:
    host = here.node("host", "--node-name", "host")
    post(host, "private")
    token = invite(here, "host", "--guest")

    async def attack() -> None:
        async with invited(here.folder / "guest", token) as guest:
            assert guest.link is not None
            chain = ChainId(guest.link.facts.peer, 1)
            guest.send(BoardDifference(0, (0,), (ChainState(chain, 1, 1),)))
            guest.send(BoardWant((ChainRange(chain, 1, 100),)))
            guest.send(entries(guest, written(guest, 1, "from a guest")))
            await in_thread(post, host, "also private")
            guest.send(Ping(7))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guest.answer(BoardEntries), 3.0)

    asyncio.run(attack())
    assert texts(host) == ["private", "also private"]
