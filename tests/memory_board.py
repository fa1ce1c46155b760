"""A blackboard in memory, with the behaviour that `Blackboard` promises, for tests of those who use one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace

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
from meshllm.errors import BoardOff, BoardRefused

NODE = "node-1"


class MemoryBoard:
    """One node's board. `now`: unix seconds. `off`: why it is off, empty if it is on."""

    def __init__(self, now: Callable[[], float], name: str = "ada") -> None:
        self._now, self._name = now, name
        self._posts: list[BoardPost] = []
        self._claims: dict[tuple[str, str], ClaimFacts] = {}
        self._changed = asyncio.Event()
        self.off = ""

    def facts(self) -> BoardFacts:
        return BoardFacts(not self.off, self.off, self._name, NODE, len(self._posts), 0, ())

    async def post(self, wish: PostWish) -> PostAnswer:
        self._check()
        if not wish.text.strip() or len(wish.text.encode()) > 4096:
            raise BoardRefused("A message has 1 to 4096 bytes.")
        shown = self.preview(wish.text)
        parent = self._find(wish.reply_to) if wish.reply_to else None
        post = self.add(
            shown.text,
            kind=wish.kind or "note",
            room=wish.room,
            name=wish.writer.name or self._name,
            program=wish.writer.program,
            reply_to="" if parent is None else parent.id,
            thread="" if parent is None else parent.thread,
            to=wish.to,
            mine=True,
        )
        return PostAnswer(post, shown.replaced)

    def add(self, text: str, *, name: str = "bob", node: str = NODE, mine: bool = False, **given: object) -> BoardPost:
        """Put a message on the board, as another node's by default."""
        number = hashlib.blake2b(f"{len(self._posts)} {text}".encode(), digest_size=16).hexdigest()
        post = BoardPost(number, "note", text, "", name, "", node, "00", self._now(), mine=mine)
        post = replace(post, **given)  # type: ignore[arg-type]
        post = replace(post, thread=post.thread or number)
        self._posts.append(post)
        self._wake()
        return post

    async def feed(self, query: FeedQuery) -> BoardPage:
        self._check()
        if query.thread:
            self._find(query.thread)
        if query.after and query.wait_seconds and not self._matching(query):
            try:
                async with asyncio.timeout(query.wait_seconds):
                    while not self._matching(query):
                        await self._changed.wait()
            except TimeoutError:
                pass
        return self._page(self._matching(query), query.limit)

    def _matching(self, query: FeedQuery) -> list[BoardPost]:
        start = int(query.after) if query.after else 0
        thread = self._find(query.thread).thread if query.thread else ""
        return [
            post
            for post in self._posts[start:]
            if query.room in (ALL_ROOMS, post.room)
            and query.author.lower() in f"{post.name} {post.node}".lower()
            and post.time >= self._now() - query.hours * 3600
            and (not query.to_me or {query.reader.name or self._name, query.reader.program} & set(post.to))
            and (not query.mine or post.mine)
            and thread in ("", post.thread)
            and query.kind in ("", post.kind)
        ]

    def _page(self, posts: list[BoardPost], limit: int) -> BoardPage:
        newest = tuple(reversed(posts))
        return BoardPage(newest[:limit], max(0, len(newest) - limit), str(len(self._posts)))

    async def search(self, query: SearchQuery) -> BoardPage:
        self._check()
        words = query.words.lower().split()
        feed = self._matching(FeedQuery(query.room, query.author, query.hours))
        found = [post for post in feed if any(word in post.text.lower() for word in words)]
        return self._page(found, query.limit)

    async def claim(self, wish: ClaimWish) -> ClaimAnswer:
        self._check()
        place, held = (wish.room, wish.key), self._claims.get((wish.room, wish.key))
        if held is not None and held.until <= self._now():
            held = self._claims.pop(place)
            held = None
        name = wish.writer.name or self._name
        own = held is not None and (held.name, held.program) == (name, wish.writer.program)
        if wish.op == "release":
            if own:
                del self._claims[place]
                self._wake()
            return ClaimAnswer(own, None if own else held)
        if held is not None and not own:
            return ClaimAnswer(False, held)
        if wish.op == "renew" and held is None:
            return ClaimAnswer(False, None)
        now = self._now()
        taken = ClaimFacts(
            wish.key, wish.room, name, wish.writer.program, NODE, "00", now, now + wish.seconds, True, "1"
        )
        self._claims[place] = taken
        self._wake()
        return ClaimAnswer(True, taken)

    def claims(self, room: str = ALL_ROOMS) -> tuple[ClaimFacts, ...]:
        self._check()
        held = [each for each in self._claims.values() if each.until > self._now() and room in (ALL_ROOMS, each.room)]
        return tuple(sorted(held, key=lambda each: each.until))

    def rooms(self) -> tuple[RoomFacts, ...]:
        self._check()
        rooms = {post.room for post in self._posts}
        of = {room: [post.time for post in self._posts if post.room == room] for room in rooms}
        return tuple(RoomFacts(room, len(times), max(times)) for room, times in of.items())

    async def retract(self, post: str) -> BoardPost:
        found = self._find(post)
        erased = replace(found, text="", retracted=True)
        self._posts[self._posts.index(found)] = erased
        return erased

    def preview(self, text: str) -> ScrubPreview:
        hidden = text.replace("hunter2", "[password]")
        return ScrubPreview(hidden, "1 password" if hidden != text else "")

    async def notice(self, reader: BoardWriter, cursor: str) -> BoardNotice:
        return BoardNotice(len(self._matching(FeedQuery(to_me=True, reader=reader))))

    def _check(self) -> None:
        if self.off:
            raise BoardOff(self.off)

    def _find(self, start: str) -> BoardPost:
        found = [post for post in self._posts if post.id.startswith(start)]
        if not found:
            raise BoardRefused(f"There is no message {start[:40]!r}.")
        return found[0]

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
