"""A blackboard of one node in memory, for tests of the console's API and of the command line.

It keeps, scrubs, finds, claims and erases as `Blackboard` says; messages of other nodes are put on it by `arrive`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshllm.board.scrub import scrub
from meshllm.core.board.entries import ENTRIES_AT_ONCE, TEXT_KINDS
from meshllm.core.board.service import (
    ALL_ROOMS,
    BoardFacts,
    BoardNotice,
    BoardPage,
    BoardPost,
    BoardWriter,
    ClaimAnswer,
    ClaimFacts,
    ClaimWish,
    FeedQuery,
    PostAnswer,
    PostWish,
    RoomFacts,
    ScrubPreview,
    SearchQuery,
)
from meshllm.errors import BoardOff, BoardRate, BoardRefused

KINDS = tuple(kind.name.lower() for kind in TEXT_KINDS)


def unix_now() -> float:
    """Unix seconds."""
    return time.time()  # noqa: TID251 - a real clock, as the command line has one


class LocalBoard:
    """`name`, `node`: of its writer; `now`: unix seconds. `off`: why it is off, empty if it is on. `waiting`: feeds
    that wait now."""

    def __init__(self, name: str = "ann", node: str = "attic", now: Callable[[], float] = unix_now) -> None:
        self.name, self.node = name, node
        self._now = now
        self.off = ""
        self.posts: list[BoardPost] = []
        self.held: dict[tuple[str, str], ClaimFacts] = {}
        self.told: dict[str, int] = {}
        self.waiting = 0
        self._news = asyncio.Event()
        self._written = 0

    def arrive(self, text: str, *, ago: float = 0.0, **fields: Any) -> BoardPost:
        """A message of another node, written `ago` seconds before; `fields` of BoardPost."""
        number = hashlib.blake2b(f"{len(self.posts)} {text}".encode(), digest_size=16).hexdigest()
        given = {"kind": "note", "room": "", "name": "bob", "program": "", "node": "barn", "author": "b" * 64, **fields}
        post = BoardPost(number, text=text, time=self._now() - ago, **given)
        parents = [each for each in self.posts if each.id == post.reply_to]
        post = replace(post, thread=parents[0].thread if parents else number)
        for parent in parents:
            self.posts[self.posts.index(parent)] = replace(parent, replies=parent.replies + 1)
        self.posts.append(post)
        news, self._news = self._news, asyncio.Event()
        news.set()
        return post

    def facts(self) -> BoardFacts:
        """The state."""
        return BoardFacts(not self.off, self.off, self.name, self.node, len(self.posts), 0, ())

    async def post(self, wish: PostWish) -> PostAnswer:
        """Scrub and keep."""
        self._check()
        if self._written >= ENTRIES_AT_ONCE:
            raise BoardRate(f"This node has posted {ENTRIES_AT_ONCE} messages in a short time.")
        self._written += 1
        first = wish.text.partition(":")[0].lower()
        cleaned = scrub(wish.text)
        parent = self._one(wish.reply_to) if wish.reply_to else None
        post = self.arrive(
            cleaned.text,
            kind=wish.kind or (first if first in KINDS else "note"),
            room=wish.room or (parent.room if parent else ""),
            name=wish.writer.name or self.name,
            program=wish.writer.program,
            node=self.node,
            author="a" * 64,
            reply_to=parent.id if parent else "",
            to=wish.to,
            mine=True,
        )
        return PostAnswer(post, cleaned.report)

    def _listed(self, query: FeedQuery) -> list[BoardPost]:
        start = int(query.after) if query.after.isdigit() else 0
        if query.after and (not query.after.isdigit() or start > len(self.posts)):
            raise BoardRefused("The cursor is of another blackboard.")
        thread = self._one(query.thread).thread if query.thread else ""
        reader = query.reader.name or self.name
        found = [
            post
            for post in self.posts[start:]
            if query.room in (ALL_ROOMS, post.room)
            and (query.author in post.name or query.author in post.node)
            and self._now() - post.time <= query.hours * 3600
            and (not query.to_me or reader in post.to)
            and (not query.mine or post.mine)
            and (not thread or post.thread == thread)
            and (not query.kind or post.kind == query.kind)
        ]
        return sorted(found, key=lambda post: -post.time)

    async def feed(self, query: FeedQuery) -> BoardPage:
        """The newest first; waits for news."""
        self._check()
        found = self._listed(query)
        if query.wait_seconds and not found:
            self.waiting += 1
            try:
                async with asyncio.timeout(query.wait_seconds):
                    while not found:
                        await self._news.wait()
                        found = self._listed(query)
            except TimeoutError:
                pass
            finally:
                self.waiting -= 1
        return self._page(found, query.limit)

    def _page(self, found: list[BoardPost], limit: int) -> BoardPage:
        return BoardPage(tuple(found[:limit]), max(0, len(found) - limit), str(len(self.posts)))

    async def search(self, query: SearchQuery) -> BoardPage:
        """Those with the most of the words first."""
        self._check()
        words = query.words.lower().split()
        feed = self._listed(FeedQuery(query.room, query.author, query.hours))
        score = {post.id: sum(word in post.text.lower() for word in words) for post in feed}
        found = sorted((post for post in feed if score[post.id]), key=lambda post: -score[post.id])
        return self._page(found, query.limit)

    def hold(self, key: str, seconds: float, **fields: Any) -> ClaimFacts:
        """A claim of another node; `fields` of ClaimFacts."""
        now = self._now()
        given = {"room": "", "name": "bob", "program": "", "node": "barn", "author": "b" * 64, "mine": False, **fields}
        claim = ClaimFacts(key, since=now, until=now + seconds, id=hashlib.md5(key.encode()).hexdigest(), **given)
        self.held[claim.room, key] = claim
        return claim

    async def claim(self, wish: ClaimWish) -> ClaimAnswer:
        """The earliest claim holds."""
        self._check()
        held = {(claim.room, claim.key): claim for claim in self.claims()}.get((wish.room, wish.key))
        if held is not None and not held.mine:
            return ClaimAnswer(False, held)
        if wish.op == "release":
            if held is not None:
                del self.held[wish.room, wish.key]
            return ClaimAnswer(held is not None, None)
        if held is None and wish.op == "renew":
            return ClaimAnswer(False, None)
        name = wish.writer.name or self.name
        return ClaimAnswer(
            True,
            self.hold(wish.key, wish.seconds, room=wish.room, name=name, node=self.node, author="a" * 64, mine=True),
        )

    def claims(self, room: str = ALL_ROOMS) -> tuple[ClaimFacts, ...]:
        """Those that have not ended."""
        self._check()
        now = self._now()
        found = [claim for claim in self.held.values() if claim.until > now and room in (ALL_ROOMS, claim.room)]
        return tuple(sorted(found, key=lambda claim: claim.until))

    def rooms(self) -> tuple[RoomFacts, ...]:
        """The latest first."""
        self._check()
        times: dict[str, list[float]] = {}
        for post in self.posts:
            times.setdefault(post.room, []).append(post.time)
        facts = [RoomFacts(room, len(found), max(found)) for room, found in times.items()]
        return tuple(sorted(facts, key=lambda one: -one.last))

    async def retract(self, post: str) -> BoardPost:
        """Erase the text of an own message."""
        self._check()
        found = self._one(post)
        if not found.mine:
            raise BoardRefused(f"The message {found.id[:8]} is of another node.")
        erased = replace(found, text="", retracted=True)
        self.posts[self.posts.index(found)] = erased
        return erased

    def preview(self, text: str) -> ScrubPreview:
        """What the scrubber makes of it."""
        self._check()
        cleaned = scrub(text)
        return ScrubPreview(cleaned.text, cleaned.report)

    async def notice(self, reader: BoardWriter, cursor: str) -> BoardNotice:
        """Once for each message."""
        self._check()
        found = [post for post in self.posts[self.told.get(cursor, 0) :] if (reader.name or self.name) in post.to]
        self.told[cursor] = len(self.posts)
        return BoardNotice(len(found), sum(post.kind == "question" for post in found))

    def _one(self, beginning: str) -> BoardPost:
        found = [post for post in self.posts if post.id.startswith(beginning)]
        if len(found) != 1:
            raise BoardRefused(f"No message or several have the id {beginning}.")
        return found[0]

    def _check(self) -> None:
        if self.off:
            raise BoardOff(self.off)
