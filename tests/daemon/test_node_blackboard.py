"""The blackboard of a node: posting, reading, claims and notices, with real stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from meshllm.board.store import SqliteStore, StoredBoard, StoreFailed
from meshllm.core import commands as c
from meshllm.core.board.entries import ENTRIES_AT_ONCE, MAX_BODY_BYTES, MAX_CLAIM_SECONDS, EntryKind, SignedEntry
from meshllm.core.board.service import (
    BoardWriter,
    ClaimWish,
    FeedQuery,
    PostWish,
    SearchQuery,
)
from meshllm.core.ids import NodeId
from meshllm.daemon.board import NodeBlackboard
from meshllm.errors import BoardOff, BoardRate, BoardRefused
from meshllm.wire.mesh.board import decode_header
from tests.board.board_samples import SampleNode, node
from tests.daemon.small_board import SmallMesh, until

# Built from parts, so that no scanner takes it for a real one.
SECRET = "ghp_" + "R4nd0mT0kenWithDigits0123456789abcdEf"[:36]
ANN = BoardWriter("ann")
AGENT = BoardWriter("ann", "claude-code")


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[SmallMesh]:
    small = SmallMesh()
    yield small
    await small.close()


def store_in(folder: Path) -> SqliteStore:
    return SqliteStore(folder / "board.db", decode_header)


def raw_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def texts(board: NodeBlackboard, **query: object) -> list[str]:
    """The texts of a feed."""
    return [post.text for post in (await board.feed(FeedQuery(**query))).posts]  # type: ignore[arg-type]


# -- posting


async def test_post_is_scrubbed_stored_and_shown(mesh: SmallMesh, tmp_path: Path) -> None:
    board, core = await mesh.board(store=store_in(tmp_path), names=(("secret-host", "host"), ("ann", "user")))
    answer = await board.post(
        PostWish(f"STATUS: on secret-host with {SECRET}\x1b[31m, mail joe@corp.com @ann", "me@corp.com", writer=AGENT)
    )
    post = answer.post
    assert post.text == "STATUS: on [host] with [github-token], mail [email] @ann"
    assert (post.kind, post.room, post.name, post.program, post.node) == (
        "status", "[email]", "ann", "claude-code", "node1",
    )  # fmt: skip
    assert (post.to, post.mine, post.thread, post.author) == (("ann",), True, post.id, node(1).hex())
    assert answer.replaced == "2 email, 1 github-token, 1 host"
    assert abs(post.time - mesh.now()) < 5
    await board.close()
    raw = raw_bytes(tmp_path)
    assert b"[github-token]" in raw
    assert b"secret-host" not in raw
    assert SECRET.encode() not in raw
    (entry,) = core.entries.values()
    assert (entry.header.seq, entry.header.to) == (1, ("ann",))


async def test_preview_says_what_posting_would_make(mesh: SmallMesh) -> None:
    board, _ = await mesh.board(names=(("secret-host", "host"),))
    text = f"  TIP: {SECRET} on SECRET-host\u202e "
    preview = board.preview(text)
    answer = await board.post(PostWish(text))
    assert (preview.text, preview.replaced) == (answer.post.text, answer.replaced)
    assert preview.text == "TIP: [github-token] on [host]"
    assert len((await board.feed(FeedQuery())).posts) == 1


async def test_secret_hidden_by_unseen_characters_is_found(mesh: SmallMesh) -> None:
    board, _ = await mesh.board()
    hidden = SECRET[:10] + "\u200b" + SECRET[10:20] + "\x1b[0m" + SECRET[20:]
    assert (await board.post(PostWish(f"the key {hidden}"))).post.text == "the key [github-token]"
    claim = await board.claim(ClaimWish(f"use {hidden}"))
    assert claim.holder is not None
    assert (claim.holder.key, claim.replaced) == ("use [github-token]", "1 github-token")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (PostWish(" \x1b[31m\n"), "message is empty"),
        (PostWish("ü" * (MAX_BODY_BYTES // 2 + 1)), f"has {MAX_BODY_BYTES + 2} bytes; the limit is {MAX_BODY_BYTES}"),
        (PostWish("x" * 10_000_000), "longer than"),
        (PostWish("x", kind="claim"), "'claim' is no kind"),
        (PostWish("x", room="r" * 200), "name of a room has 200 bytes"),
        (PostWish("x", room="*"), "for one room"),
        (PostWish("x", to=tuple(f"name{number}" for number in range(9))), "at most 8 recipients"),
        (PostWish("x", to=("n" * 100,)), "name of a recipient has 100 bytes"),
        (PostWish("x", writer=BoardWriter("n" * 100)), "name has 100 bytes"),
        (PostWish("x", writer=BoardWriter("n", "p" * 100)), "program's name has 100 bytes"),
        (PostWish("x", reply_to="beef"), "No message has an id that begins with 'beef'"),
        (PostWish("x", reply_to="xyz!"), "'xyz!' is no id"),
        (PostWish("x", reply_to="abc"), "'abc' is no id"),
    ],
)
async def test_bad_posts_are_refused_with_the_reason(mesh: SmallMesh, wish: PostWish, message: str) -> None:
    board, core = await mesh.board()
    with pytest.raises(BoardRefused, match=message.replace("*", r"\*")) as refused:
        await board.post(wish)
    assert refused.value.advice
    assert core.entries == {}


async def test_kind_recipients_and_room_of_a_reply(mesh: SmallMesh) -> None:
    board, _ = await mesh.board()
    question = (await board.post(PostWish("QUESTION: why? @bob", "owner/name", to=("@eve", "EVE")))).post
    assert (question.kind, question.to) == ("question", ("eve", "bob"))
    reply = (await board.post(PostWish("because", reply_to=question.id[:8]))).post
    assert (reply.room, reply.reply_to, reply.thread) == ("owner/name", question.id, question.id)
    second = (await board.post(PostWish("TIP: ask", kind="finding", room="other", reply_to=reply.id))).post
    assert (second.kind, second.room, second.thread) == ("finding", "other", question.id)
    assert (await board.feed(FeedQuery(thread=reply.id[:6]))).posts[-1].replies == 1


async def test_beginning_of_an_id_must_name_one_message(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    author, entries = SampleNode(2), dict[str, list[SignedEntry]]()
    while not any(len(group) > 1 for group in entries.values()):
        entry = author.write(int(mesh.now() * 1000), f"text {author.seq}")
        entries.setdefault(entry.id.hex()[:4], []).append(entry)
    prefix, twins = next((prefix, group) for prefix, group in entries.items() if len(group) > 1)
    core.take(twins)
    with pytest.raises(BoardRefused, match=f"2 messages have ids that begin with '{prefix}'"):
        await board.post(PostWish("x", reply_to=prefix))
    assert (await board.post(PostWish("x", reply_to=twins[0].id.hex()))).post.reply_to == twins[0].id.hex()


async def test_refusals_of_the_core_reach_the_writer(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    core.refuse, core.is_rate = f"This node posts too fast: at most {ENTRIES_AT_ONCE} at once.", True
    with pytest.raises(BoardRate, match="too fast"):
        await board.post(PostWish("x"))
    core.refuse, core.is_rate = "Never.", False
    with pytest.raises(BoardRefused, match="Never") as refused:
        await board.post(PostWish("x"))
    assert not isinstance(refused.value, BoardRate)


async def test_posts_at_once_are_bounded_and_end_with_the_node(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    core.silent = True
    waiting = [asyncio.get_running_loop().create_task(board.post(PostWish("x"))) for _ in range(64)]
    await asyncio.sleep(0)
    with pytest.raises(BoardRate, match="wait to be saved"):
        await board.post(PostWish("one more"))
    await board.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BoardOff}


async def test_post_that_the_disk_does_not_take_is_refused_and_nothing_is_lost(mesh: SmallMesh, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "board.db", decode_header, max_bytes=60 * 4096)
    board, core = await mesh.board(store=store)
    kept: list[str] = []

    async def fill() -> None:
        for number in range(100):
            text = f"{number} " + "x" * 4000
            await board.post(PostWish(text))
            kept.append(text)

    with pytest.raises(BoardRefused, match="the disk is full"):
        await fill()
    assert len(kept) > 10
    assert core.seq == len(kept)
    assert (await texts(board, limit=100))[::-1] == kept
    # Others' messages are shown although they are not saved, until the disk takes them.
    theirs = SampleNode(2).write(int(mesh.now() * 1000), "y" * 4000)
    core.take([theirs])
    assert (await texts(board))[0] == "y" * 4000
    core.remove(*(item for item, entry in core.entries.items() if entry.header.seq in (1, 2) and entry != theirs))
    await board.post(PostWish("fits again"))
    await board.close()
    _, again = await mesh.board(store=store_in(tmp_path))
    bodies = [entry.body for entry in again.entries.values()]
    assert sorted(map(str, bodies)) == sorted([*kept[2:], "y" * 4000, "fits again"])
    assert again.seq == len(kept) + 1


async def test_board_goes_on_after_a_restart(mesh: SmallMesh, tmp_path: Path) -> None:
    board, core = await mesh.board(store=store_in(tmp_path))
    first = (await board.post(PostWish("one"))).post
    core.take([SampleNode(2).write(int(mesh.now() * 1000), "two", to=("ann",))])
    page = await board.feed(FeedQuery())
    assert (await board.notice(ANN, "session")).count == 1
    await board.close()
    again, core = await mesh.board(store=store_in(tmp_path))
    assert [post.id for post in (await again.feed(FeedQuery())).posts] == [post.id for post in page.posts]
    assert await texts(again, after=page.cursor) == []
    assert (await again.notice(ANN, "session")).count == 0
    second = (await again.post(PostWish("three", reply_to=first.id))).post
    assert core.seq == 2
    assert await texts(again, after=page.cursor) == ["three"]
    assert second.thread == first.id


async def test_store_that_cannot_be_opened_turns_the_board_off(mesh: SmallMesh, tmp_path: Path) -> None:
    events: list[object] = []
    board = NodeBlackboard(
        store_in(tmp_path / "missing"),
        me=node(1),
        writer="ann",
        node_name=lambda item: "node1",
        names=(),
        post=events.append,
        wall_clock=mesh.now,
    )
    with pytest.raises(BoardOff, match="not open yet"):
        board.rooms()
    await board.open()
    assert events == []
    assert not board.facts().enabled
    assert "cannot be opened" in board.facts().reason
    with pytest.raises(BoardOff, match="cannot be opened"):
        await board.post(PostWish("x"))
    await board.close()


class UnreadableStore(SqliteStore):
    """A store with a defect."""

    def open(self, author: NodeId, unix: float) -> StoredBoard:
        raise ValueError("a defect")


async def test_defect_of_the_store_does_not_end_the_node(
    mesh: SmallMesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = NodeBlackboard(
        UnreadableStore(tmp_path / "board.db", decode_header),
        me=node(1),
        writer="ann",
        node_name=lambda item: "node1",
        names=(),
        post=lambda event: None,
        wall_clock=mesh.now,
    )
    await board.open()
    assert "could not be read" in board.facts().reason
    assert "a defect" in caplog.text
    await board.close()


async def test_rooms_and_keys_are_the_same_whatever_machines_are_called(mesh: SmallMesh) -> None:
    one, _ = await mesh.board(1, names=(("jsmith", "user"), ("wintermute", "host")))
    two, _ = await mesh.board(2, writer="bob")
    post = (await one.post(PostWish("jsmith at wintermute", "jsmith/project", to=("x@wintermute",)))).post
    assert (post.text, post.room, post.to) == ("[user] at [host]", "jsmith/project", ("x@wintermute",))
    assert (await one.claim(ClaimWish("wintermute-update", room="jsmith/project"))).granted
    answer = await two.claim(ClaimWish("wintermute-update", room="jsmith/project"))
    assert not answer.granted
    assert len((await one.feed(FeedQuery(room="jsmith/project"))).posts) == 1


async def test_names_that_say_nothing_are_no_secrets(mesh: SmallMesh) -> None:
    names = (("root", "user"), ("Ubuntu", "host"), ("node1", "host"), ("bob", "user"), ("wintermute", "host"))
    board, _ = await mesh.board(names=names, writer="wintermute-owner")
    text = "the root cause on ubuntu, node1 and wintermute-owner; not on Wintermute"
    assert board.preview(text).text == text.replace("Wintermute", "[host]").replace("wintermute-", "[host]-")


# -- reading


async def test_texts_of_others_are_masked_and_cleaned_again(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    entry = SampleNode(2).write(int(mesh.now() * 1000), f"leak {SECRET}\x07 and\u202e x", EntryKind.FINDING)
    header = replace(entry.header, name="eve\x1b[2J@node1", program="a\u202eb", room="r\n1", to=("a\x00nn",))
    entry = replace(entry, header=header)
    core.take([entry])
    (post,) = (await board.feed(FeedQuery())).posts
    assert post.text == "leak [github-token] and x"
    assert (post.name, post.program, post.room, post.to) == ("eve-node1", "ab", "r 1", ("ann",))
    (found,) = (await board.search(SearchQuery("leak"))).posts
    assert found.text == post.text
    assert (await board.search(SearchQuery(SECRET))).posts == ()


async def test_many_texts_are_masked_while_the_node_goes_on(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    author = SampleNode(2)
    entries = [author.write(int(mesh.now() * 1000), f"{number} {SECRET} " + "x " * 1500) for number in range(50)]
    core.take(entries)
    reading = asyncio.get_running_loop().create_task(board.feed(FeedQuery(limit=50)))
    await asyncio.sleep(0)
    retract = author.write(int(mesh.now() * 1000), kind=EntryKind.RETRACT, target=entries[0].id)
    core.take([retract])  # meanwhile: its text is not kept
    page = await reading
    assert sum("[github-token]" in post.text for post in page.posts) == 49
    assert not any(SECRET in post.text for post in page.posts)
    (thread,) = (await board.feed(FeedQuery(thread=entries[0].id.hex()))).posts
    assert (thread.retracted, thread.text) == (True, "")


async def test_feed_waits_for_news_that_count(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    await board.post(PostWish("old"))
    cursor = (await board.feed(FeedQuery())).cursor
    query = FeedQuery(after=cursor, wait_seconds=20, to_me=True, reader=ANN)
    waiting = asyncio.get_running_loop().create_task(board.feed(query))
    await asyncio.sleep(0.01)
    core.take([SampleNode(2).write(int(mesh.now() * 1000), "not for you")])
    await asyncio.sleep(0.01)
    assert not waiting.done()
    core.take([SampleNode(3).write(int(mesh.now() * 1000), "for you", to=("ann",))])
    page = await asyncio.wait_for(waiting, 10)
    assert [post.text for post in page.posts] == ["for you"]
    empty = await board.feed(FeedQuery(after=page.cursor, wait_seconds=0.02))
    assert (empty.posts, empty.cursor) == ((), page.cursor)
    # Without a cursor there is nothing to wait after.
    assert len((await board.feed(FeedQuery(wait_seconds=20))).posts) == 3


async def test_feed_that_waits_ends_with_the_node(mesh: SmallMesh) -> None:
    board, _ = await mesh.board()
    cursor = (await board.feed(FeedQuery())).cursor
    waiting = asyncio.get_running_loop().create_task(board.feed(FeedQuery(after=cursor, wait_seconds=50)))
    await asyncio.sleep(0.01)
    await board.close()
    assert (await asyncio.wait_for(waiting, 10)).posts == ()


async def test_changes_are_reported_with_the_cursor(mesh: SmallMesh) -> None:
    cursors: list[str] = []
    board, core = await mesh.board(on_change=cursors.append)
    before = len(cursors)
    await board.post(PostWish("x"))
    core.tell(c.BoardChanged(waiting=2))  # nothing to read
    assert len(cursors) == before + 1
    assert cursors[-1] == (await board.feed(FeedQuery())).cursor


async def test_facts(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    await board.post(PostWish("x"))
    await board.claim(ClaimWish("key"))
    core.tell(c.BoardChanged(waiting=3, flagged=(node(2),)))
    facts = board.facts()
    assert (facts.enabled, facts.reason, facts.name, facts.node) == (True, "", "ann", "node1")
    assert (facts.posts, facts.waiting, facts.flagged) == (1, 3, ("node2",))
    core.take([SampleNode(2).write(int(mesh.now() * 1000), "bad")])
    core.tell(c.BoardChanged(flagged=(node(2),)))
    assert [post.flagged for post in (await board.feed(FeedQuery())).posts] == [True, False]


# -- retraction


async def test_retracted_text_leaves_the_board_the_search_and_the_files(mesh: SmallMesh, tmp_path: Path) -> None:
    board, core = await mesh.board(store=store_in(tmp_path))
    kept = (await board.post(PostWish("a lasting remark"))).post
    post = (await board.post(PostWish("an embarrassing remark"))).post
    assert len((await board.search(SearchQuery("remark"))).posts) == 2
    assert b"embarrassing" in raw_bytes(tmp_path)
    retracted = await board.retract(post.id[:10])
    assert (retracted.id, retracted.text, retracted.retracted) == (post.id, "", True)
    assert (await board.retract(post.id)).retracted
    assert [entry.header.kind for entry in core.entries.values()].count(EntryKind.RETRACT) == 1
    assert await texts(board) == ["a lasting remark"]
    assert [found.id for found in (await board.search(SearchQuery("remark embarrassing"))).posts] == [kept.id]
    assert [shown.retracted for shown in (await board.feed(FeedQuery(thread=post.id))).posts] == [True]
    await until(lambda: b"embarrassing" not in raw_bytes(tmp_path))
    assert b"embarrassing" not in raw_bytes(tmp_path)
    assert b"lasting" in raw_bytes(tmp_path)


async def test_only_own_messages_can_be_retracted(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    theirs = SampleNode(2).write(int(mesh.now() * 1000), "theirs")
    core.take([theirs])
    with pytest.raises(BoardRefused, match="of another node"):
        await board.retract(theirs.id.hex())
    assert await texts(board) == ["theirs"]


# -- claims


async def test_claim_is_granted_renewed_and_released(mesh: SmallMesh) -> None:
    one, _ = await mesh.board(1)
    two, _ = await mesh.board(2, writer="bob")
    wish = ClaimWish("issue-1", room="owner/name", seconds=60, writer=AGENT)
    answer = await one.claim(wish)
    assert answer.granted
    assert answer.holder is not None
    assert (answer.holder.key, answer.holder.room, answer.holder.name) == ("issue-1", "owner/name", "ann")
    assert (answer.holder.program, answer.holder.node, answer.holder.mine) == ("claude-code", "node1", True)
    assert answer.holder.until - answer.holder.since == 60
    (seen,) = two.claims("owner/name")
    assert (seen.id, seen.mine, seen.node) == (answer.holder.id, False, "node1")
    assert two.claims("other") == ()
    # Again by the same writer: it goes on.
    longer = await one.claim(ClaimWish("issue-1", room="owner/name", seconds=600, writer=AGENT))
    assert longer.granted
    assert longer.holder is not None
    assert longer.holder.id == answer.holder.id
    assert longer.holder.until > answer.holder.until + 500
    renewed = await one.claim(ClaimWish("issue-1", "renew", "owner/name", 900, AGENT))
    assert renewed.granted
    released = await one.claim(ClaimWish("issue-1", "release", "owner/name", writer=AGENT))
    assert (released.granted, released.holder) == (True, None)
    assert two.claims() == ()
    assert (await two.claim(wish)).granted


async def test_claim_that_is_held_is_answered_at_once_without_a_post(mesh: SmallMesh) -> None:
    one, _ = await mesh.board(1, settle=0.0)
    two, core = await mesh.board(2, writer="bob", settle=1000.0)
    await one.claim(ClaimWish("issue-1"))
    before = core.seq
    for op in ("acquire", "renew", "release"):
        answer = await asyncio.wait_for(two.claim(ClaimWish("issue-1", op)), 10)
        assert not answer.granted
        assert answer.holder is not None
        assert answer.holder.name == "ann"
    assert core.seq == before
    nobody = await two.claim(ClaimWish("issue-2", "renew"))
    assert (nobody.granted, nobody.holder) == (False, None)


async def test_writers_of_one_node_contend_too_and_a_person_may_release(mesh: SmallMesh) -> None:
    board, _ = await mesh.board()
    assert (await board.claim(ClaimWish("key", writer=AGENT))).granted
    other = BoardWriter("ann", "codex")
    answer = await board.claim(ClaimWish("key", writer=other))
    assert not answer.granted
    assert answer.holder is not None
    assert answer.holder.program == "claude-code"
    assert not (await board.claim(ClaimWish("key", "release", writer=other))).granted
    assert not (await board.claim(ClaimWish("key", writer=ANN))).granted
    assert (await board.claim(ClaimWish("key", "release", writer=ANN))).granted
    assert board.claims() == ()


async def test_claim_that_was_lost_during_the_settle_is_released(mesh: SmallMesh) -> None:
    one, core_one = await mesh.board(1, settle=0.05)
    two, core_two = await mesh.board(2, writer="bob", settle=0.05)
    core_two.side = 1  # neither hears the other in time
    first = asyncio.get_running_loop().create_task(one.claim(ClaimWish("key")))
    await until(one.claims)
    await asyncio.sleep(0.01)
    second = asyncio.get_running_loop().create_task(two.claim(ClaimWish("key")))
    await until(two.claims)
    mesh.heal()
    assert (await first).granted
    lost = await second
    assert not lost.granted
    assert lost.holder is not None
    assert (lost.holder.name, lost.holder.mine) == ("ann", False)
    kinds = [entry.header.kind for entry in core_one.entries.values() if entry.header.author == node(2)]
    assert sorted(kinds) == [EntryKind.CLAIM, EntryKind.RELEASE]
    # The loser does not stand in line.
    await one.claim(ClaimWish("key", "release"))
    assert one.claims() == two.claims() == ()


async def test_lost_claim_is_released_though_its_caller_went_away(mesh: SmallMesh) -> None:
    one, _ = await mesh.board(1, settle=0.05)
    two, core_two = await mesh.board(2, writer="bob", settle=0.05)
    core_two.side = 1
    await one.claim(ClaimWish("key"))
    second = asyncio.get_running_loop().create_task(two.claim(ClaimWish("key")))
    await until(two.claims)
    second.cancel()
    mesh.heal()
    with pytest.raises(asyncio.CancelledError):
        await second
    await until(lambda: [entry.header.kind for entry in core_two.entries.values()].count(EntryKind.RELEASE))
    assert [entry.header.kind for entry in core_two.entries.values()].count(EntryKind.RELEASE) == 1


async def test_races_of_five_nodes_have_one_winner(mesh: SmallMesh) -> None:
    boards = [(await mesh.board(number, settle=0.05))[0] for number in range(1, 6)]
    rng = Random(5)
    for race in range(12):
        for core in mesh.cores:
            core.side = rng.randrange(2)

        async def late(board: NodeBlackboard, wait: float, race: int = race) -> bool:
            await asyncio.sleep(wait)
            return (await board.claim(ClaimWish(f"key-{race}"))).granted

        waits = [rng.random() * 0.03 for _ in boards]
        racing = asyncio.gather(*(late(board, wait) for board, wait in zip(boards, waits, strict=True)))
        await asyncio.sleep(0.04)
        mesh.heal()
        granted = await racing
        assert granted.count(True) == 1, f"race {race}"
        winners = {board.claims()[-1].id for board in boards}
        assert len(winners) == 1
        holder = next(claim for claim in boards[0].claims() if claim.key == f"key-{race}")
        assert holder.node == f"node{granted.index(True) + 1}"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (ClaimWish(""), "no key"),
        (ClaimWish(" \x1b[0m "), "no key"),
        (ClaimWish("k" * 300), "key of a claim has 300 bytes"),
        (ClaimWish("k", "steal"), "'steal' is nothing"),
        (ClaimWish("k", seconds=0), "1 second to 4 hours"),
        (ClaimWish("k", seconds=MAX_CLAIM_SECONDS + 1), "1 second to 4 hours"),
    ],
)
async def test_bad_claims_are_refused(mesh: SmallMesh, wish: ClaimWish, message: str) -> None:
    board, core = await mesh.board()
    with pytest.raises(BoardRefused, match=message):
        await board.claim(wish)
    assert core.entries == {}


async def test_claims_that_wait_end_with_the_node(mesh: SmallMesh) -> None:
    board, _ = await mesh.board(settle=1000.0)
    waiting = asyncio.get_running_loop().create_task(board.claim(ClaimWish("key")))
    await until(board.claims)
    await board.close()
    with pytest.raises(BoardOff):
        await asyncio.wait_for(waiting, 10)


# -- notices


async def test_notice_tells_once_per_reader_and_never_of_own_words(mesh: SmallMesh) -> None:
    one, _ = await mesh.board(1)
    two, _ = await mesh.board(2, writer="bob")
    await two.post(PostWish("hello @ann"))
    await two.post(PostWish("hello @claude-code@node1"))
    await two.post(PostWish("hello @node1"))
    await two.post(PostWish("hello @all"))
    await two.post(PostWish("hello @bob, @claude-code@node2 and @ann@node2"))
    await one.post(PostWish("@ann note to myself", writer=ANN))
    assert (await one.notice(ANN, "session-1")).count == 3  # not the program
    assert (await one.notice(ANN, "session-1")).count == 0
    assert (await one.notice(AGENT, "session-2")).count == 5  # ann's own program hears what ann says
    await two.post(PostWish("again @ann"))
    assert (await one.notice(ANN, "session-1")).count == 1
    assert (await two.notice(BoardWriter(), "x")).count == 0


async def test_question_is_answered_once_the_reader_has_replied(mesh: SmallMesh) -> None:
    one, _ = await mesh.board(1)
    two, _ = await mesh.board(2, writer="bob")
    first = (await two.post(PostWish("QUESTION: which port? @ann"))).post
    await two.post(PostWish("QUESTION: which host? @ann"))
    notice = await one.notice(ANN, "a")
    assert (notice.count, notice.questions) == (2, 2)
    await one.post(PostWish("9337", reply_to=first.id, writer=ANN))
    notice = await one.notice(ANN, "b")
    assert (notice.count, notice.questions) == (1, 1)
    # A reply names the writer whom it answers, and a further question in the thread is open again.
    assert (await two.notice(BoardWriter(), "x")).count == 1
    await two.post(PostWish("QUESTION: and the console? @ann", reply_to=first.id))
    notice = await one.notice(ANN, "b")
    assert (notice.count, notice.questions) == (1, 1)


async def test_readers_are_bounded(mesh: SmallMesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("meshllm.daemon.board.MAX_CURSORS", 10)
    board, core = await mesh.board(store=store_in(tmp_path))
    core.take([SampleNode(2).write(int(mesh.now() * 1000), "hi", to=("ann",))])
    for number in range(20):
        assert (await board.notice(ANN, f"session {number}" + "\x1b[31m" * 1000)).count == 1
    assert (await board.notice(ANN, "session 19")).count == 0
    assert (await board.notice(ANN, "session 0")).count == 1


# -- search


async def test_index_of_the_search_follows_the_board_and_is_dropped(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    board._search._unused_seconds = 0.2
    post = (await board.post(PostWish("the parser fails", "owner/name"))).post
    assert (await board.search(SearchQuery("parser"))).posts == (post,)
    later = SampleNode(2).write(int(mesh.now() * 1000), "the parser works")
    core.take([later])
    assert [found.id for found in (await board.search(SearchQuery("works"))).posts] == [later.id.hex()]
    assert (await board.search(SearchQuery("parser", room="owner/name"))).posts == (post,)
    core.remove(later.id)
    assert (await board.search(SearchQuery("works"))).posts == ()
    await until(lambda: not board._search.is_made)
    assert not board._search.is_made
    assert (await board.search(SearchQuery("fails"))).posts == (post,)


async def test_searches_at_once_share_one_index(mesh: SmallMesh) -> None:
    board, core = await mesh.board()
    entries = [SampleNode(2).write(int(mesh.now() * 1000) + number, f"word{number} common") for number in range(300)]
    core.take(entries)
    searches = [board.search(SearchQuery(f"word{number}")) for number in range(20)]
    for number, page in enumerate(await asyncio.gather(*searches)):
        assert page.posts[0].text == f"word{number} common"
    with pytest.raises(BoardRefused, match="no words"):
        await board.search(SearchQuery(" \t "))


class FailingStore(SqliteStore):
    """A disk that fails in ways that sqlite does not know."""

    def save_post(self, entry: SignedEntry) -> None:
        raise RuntimeError("broken")

    def apply(self, change: object) -> None:
        raise StoreFailed("The cable is out.")


async def test_store_that_breaks_does_not_stop_the_board(
    mesh: SmallMesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board, core = await mesh.board(store=FailingStore(tmp_path / "board.db", decode_header))
    with pytest.raises(BoardRefused, match="broken"):
        await board.post(PostWish("x"))
    core.take([SampleNode(2).write(int(mesh.now() * 1000), "theirs")])
    assert await texts(board) == ["theirs"]
    await board.close()
    assert "The cable is out." in caplog.text
