"""A blackboard in memory for tests of the console page: what it is told, it keeps, finds and erases as the real one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace

from meshllm.board.scrub import scrub
from meshllm.core.board.entries import LIFETIME_SECONDS, MAX_BODY_BYTES, TEXT_KINDS
from meshllm.core.board.service import (
    ALL_ROOMS,
    MAX_LISTED,
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
from meshllm.errors import BoardOff, BoardRefused

OWNER, NODE = "owner", "workbench"
KINDS = tuple(kind.name.lower() for kind in TEXT_KINDS)


def now() -> float:
    """Unix time."""
    return time.time()  # noqa: TID251 - messages have the time of the calendar


class MemoryBoard:
    """`posts`: in the order of their arrival. `off`: why the board is off, empty if it is on. `changed` is called with
    each change, in the thread that makes it."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.posts: dict[str, BoardPost] = {}
        self.held: dict[tuple[str, str], ClaimFacts] = {}
        self.off = ""
        self.waiting = 0
        self.flagged: tuple[str, ...] = ()
        self.asked: list[str] = []
        self.changed = changed
        self._arrived: dict[str, int] = {}

    def arrive(self, text: str, **fields: object) -> BoardPost:
        """A message of another node, unless `mine`; fields as in BoardPost, with `ago` in seconds."""
        ago = float(fields.pop("ago", 0.0))  # type: ignore[arg-type]
        number = len(self._arrived)
        values: dict[str, object] = {
            "id": hashlib.blake2b(f"{number} {text}".encode(), digest_size=16).hexdigest(),
            "kind": "note",
            "text": text,
            "room": "",
            "name": "ann",
            "program": "",
            "node": "amber",
            "author": "a" * 64,
            "time": now() - ago,
        }
        post = BoardPost(**(values | fields))  # type: ignore[arg-type]
        parent = self.posts.get(post.reply_to)
        post = replace(post, thread=post.id if parent is None else parent.thread)
        if parent is not None:
            self._put(replace(parent, replies=parent.replies + 1))
        self._arrived[post.id] = number
        self._put(post)
        self.changed()
        return post

    def _put(self, post: BoardPost) -> None:
        # A new object in place: the feed may be read by another thread.
        self.posts = {**self.posts, post.id: post} if len(self.posts) < 1000 else self._grown(post)

    def _grown(self, post: BoardPost) -> dict[str, BoardPost]:
        self.posts[post.id] = post
        return self.posts

    def hold(self, key: str, seconds: float, **fields: object) -> None:
        """A claim of another node, unless `mine`."""
        at = now()
        values: dict[str, object] = {
            "key": key, "room": "", "name": "ann", "program": "claude-code", "node": "amber", "author": "a" * 64,
            "since": at, "until": at + seconds, "mine": False, "id": hashlib.md5(key.encode()).hexdigest(),
        }  # fmt: skip
        claim = ClaimFacts(**(values | fields))  # type: ignore[arg-type]
        self.held = {**self.held, (claim.room, key): claim}
        self.changed()

    # -- the service

    def facts(self) -> BoardFacts:
        """The state."""
        return BoardFacts(not self.off, self.off, OWNER, NODE, len(self.posts), self.waiting, self.flagged)

    def _check(self) -> None:
        if self.off:
            raise BoardOff(self.off)

    async def post(self, wish: PostWish) -> PostAnswer:
        """Scrub and keep."""
        self._check()
        if not wish.text.strip():
            raise BoardRefused("A message needs a text.")
        if len(wish.text.encode()) > MAX_BODY_BYTES:
            raise BoardRefused(f"The message has more than {MAX_BODY_BYTES} bytes.")
        first = wish.text.partition(":")[0].lower()
        kind = wish.kind or (first if first in KINDS else "note")
        if kind not in KINDS:
            raise BoardRefused(f"There is no kind {kind!r}.")
        scrubbed = scrub(wish.text)
        reply = self._find(wish.reply_to).id if wish.reply_to else ""
        post = self.arrive(
            scrubbed.text, kind=kind, room=wish.room, reply_to=reply, to=wish.to, mine=True,
            name=wish.writer.name or OWNER, program=wish.writer.program, node=NODE, author="b" * 64,
        )  # fmt: skip
        return PostAnswer(post, scrubbed.report)

    def _find(self, beginning: str) -> BoardPost:
        found = [post for post in self.posts.values() if post.id.startswith(beginning)]
        if len(found) != 1:
            raise BoardRefused("There is no such message (any more).")
        return found[0]

    def _listed(self, room: str, author: str, hours: float) -> list[BoardPost]:
        since = now() - min(hours * 3600, LIFETIME_SECONDS)
        return [
            post
            for post in sorted(self.posts.values(), key=lambda post: -post.time)
            if room in (ALL_ROOMS, post.room)
            and (author.lower() in post.name.lower() or author.lower() in post.node.lower())
            and post.time >= since
        ]

    async def feed(self, query: FeedQuery) -> BoardPage:
        """The newest first."""
        self._check()
        self.asked.append(f"feed after {query.after}" if query.after else "feed")
        thread = self._find(query.thread).thread if query.thread else ""
        after = int(query.after or -1)
        found = [
            post
            for post in self._listed(query.room, query.author, query.hours)
            if (not query.kind or post.kind == query.kind)
            and (not query.mine or post.mine)
            and (not query.to_me or OWNER in post.to)
            and (not thread or post.thread == thread)
            and (thread or not post.retracted)
            and self._arrived[post.id] > after
        ]
        limit = min(query.limit, MAX_LISTED)
        return BoardPage(tuple(found[:limit]), max(0, len(found) - limit), str(len(self._arrived) - 1))

    async def search(self, query: SearchQuery) -> BoardPage:
        """Those with the most of the words first."""
        self._check()
        self.asked.append(f"search {query.words}")
        words = query.words.lower().split()

        def score(post: BoardPost) -> int:
            return sum(word in f"{post.text} {post.name} {post.room}".lower() for word in words)

        found = [post for post in self._listed(query.room, query.author, query.hours) if score(post)]
        found.sort(key=lambda post: -score(post))
        return BoardPage(tuple(found[: query.limit]), max(0, len(found) - query.limit), "")

    async def claim(self, wish: ClaimWish) -> ClaimAnswer:
        """First come, first served."""
        self._check()
        holder = self.held.get((wish.room, wish.key))
        if wish.op == "acquire" and holder is None:
            self.hold(wish.key, wish.seconds, room=wish.room, name=OWNER, node=NODE, mine=True)
            return ClaimAnswer(True, self.held[wish.room, wish.key])
        return ClaimAnswer(holder is not None and holder.mine, holder)

    def claims(self, room: str = ALL_ROOMS) -> tuple[ClaimFacts, ...]:
        """The next to end first."""
        self._check()
        at = now()
        found = [claim for claim in self.held.values() if claim.until > at and room in (ALL_ROOMS, claim.room)]
        return tuple(sorted(found, key=lambda claim: claim.until))

    def rooms(self) -> tuple[RoomFacts, ...]:
        """The latest first."""
        self._check()
        found: dict[str, RoomFacts] = {}
        for post in self.posts.values():
            known = found.get(post.room, RoomFacts(post.room, 0, 0.0))
            found[post.room] = RoomFacts(post.room, known.posts + 1, max(known.last, post.time))
        return tuple(sorted(found.values(), key=lambda room: -room.last))

    async def retract(self, post: str) -> BoardPost:
        """Erase the text."""
        self._check()
        found = self._find(post)
        if not found.mine:
            raise BoardRefused("Only own messages can be retracted.")
        return self.erase(found.id)

    def erase(self, post: str) -> BoardPost:
        """The text of a message of any node is erased."""
        erased = replace(self.posts[post], text="", retracted=True)
        self._put(erased)
        self.changed()
        return erased

    def preview(self, text: str) -> ScrubPreview:
        """What the scrubber makes of it."""
        self._check()
        self.asked.append("preview")
        scrubbed = scrub(text)
        return ScrubPreview(scrubbed.text, scrubbed.report)

    async def notice(self, reader: BoardWriter, cursor: str) -> BoardNotice:
        """Those that name the owner."""
        return BoardNotice(sum(OWNER in post.to for post in self.posts.values()))
