"""The blackboard of this node, for the console's API, the MCP server and the CLI: see `Blackboard`.

Everything that is written passes `DraftMaker`, which scrubs it. The core numbers and signs the entries and merges them
with those of the mesh; this part saves them, and keeps the index that readers ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from meshllm.board.drafts import DraftMaker
from meshllm.board.index import BoardIndex, BoardSelection, NodeName, masked_text, shown_line
from meshllm.board.store import CURSOR_SECONDS, MAX_CURSORS, EntryStore, StoreChange, StoredBoard, StoreFailed
from meshllm.board.text import clean_line
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.board import service as s
from meshllm.core.board.claims import ClaimFold
from meshllm.core.board.entries import NO_ENTRY, EntryDraft, EntryId, EntryKind, SignedEntry
from meshllm.core.board.replica import NOT_OPEN
from meshllm.core.ids import NodeId
from meshllm.daemon.board_claims import SETTLE_SECONDS, ClaimKeeper
from meshllm.daemon.board_saving import ERASED_SECONDS, BoardSaver
from meshllm.daemon.board_search import LazySearch
from meshllm.daemon.board_shield import STOPPING
from meshllm.errors import BoardOff, BoardRate, BoardRefused
from meshllm.util.threads import in_thread

log = logging.getLogger(__name__)

# How long the core and the disk may take for a post.
POST_SECONDS: Final = 60.0
# Posts under way, and feeds that wait, at once.
MAX_POSTS: Final = 64
MAX_WAITING: Final = 256
# Texts of so many letters are masked on the event loop: a few milliseconds.
MASKED_AT_ONCE: Final = 10_000
MAX_CURSOR_NAME: Final = 200
# How often the last use of a reader's place is saved.
SEEN_SECONDS: Final = 3600.0


@dataclass(slots=True)
class _Posting:
    """A draft on its way: `answer` gets the entry once the core has taken it in."""

    answer: asyncio.Future[SignedEntry]
    entry: SignedEntry | None = None


class NodeBlackboard:
    """The blackboard of a node. `open` it once the core runs; give it the core's commands. Used on the event loop."""

    def __init__(
        self,
        store: EntryStore,
        *,
        me: NodeId,
        writer: str,
        node_name: NodeName,
        names: Iterable[tuple[str, str]],
        post: Callable[[e.Event], None],
        wall_clock: Callable[[], float],
        on_change: Callable[[str], None] = lambda cursor: None,
        settle: float = SETTLE_SECONDS,
        erased_seconds: float = ERASED_SECONDS,
    ) -> None:
        """`writer`: the name of writers that give none; `names`: the host's and the user's, each with a label, which
        are replaced in texts; `post` takes events of the core; `wall_clock`: unix seconds; `on_change` is called with
        the cursor when something changed."""
        self._me = me
        self._node_name = node_name
        self._post_event = post
        self._wall_clock = wall_clock
        self._on_change = on_change
        self._reason = NOT_OPEN
        self._is_open = False
        self._is_closed = False
        self._store = store
        self._saver = BoardSaver(store, post, erased_seconds=erased_seconds)
        self._drafts = DraftMaker(writer, names, lambda: (node_name(me),))
        self._index = BoardIndex(me, node_name)
        self._search = LazySearch(self._index)
        self._fold = ClaimFold()
        self._claims = ClaimKeeper(
            self._fold,
            self._drafts,
            self._written,
            me=me,
            node_name=node_name,
            wall_clock=wall_clock,
            settle=settle,
        )
        self._number = 0
        self._posting: dict[int, _Posting] = {}
        self._stored: dict[EntryId, bool] | None = None
        self._arrivals: dict[EntryId, int] = {}
        self._cursors: dict[str, tuple[int, float]] = {}
        self._waiting = 0
        self._changed = asyncio.Event()
        self._ahead = 0
        self._flagged: tuple[NodeId, ...] = ()

    # -- the daemon's side

    async def open(self) -> bool:
        """Read the store and post `BoardOpened`. If it cannot be opened, returns False: the board stays off, with the
        reason."""
        unix = self._wall_clock()
        try:
            stored = await in_thread(lambda stop: self._store.open(self._me, unix), "board")
        except StoreFailed as error:
            self._reason = str(error)
            log.error("this node has no blackboard: %s", error)
            return False
        except Exception:
            # The rest of the node works without it.
            self._reason = "Its file could not be read; the log of the node has the error."
            log.exception("this node has no blackboard: its file could not be read")
            return False
        self._take_stored(stored)
        self._post_event(
            e.BoardOpened(
                stored.epoch,
                stored.last_seq,
                stored.last_time,
                stored.entries,
                stored.certificates,
                self._wall_clock(),
            )
        )
        return True

    def _take_stored(self, stored: StoredBoard) -> None:
        self._index.begin(f"{stored.epoch:x}", stored.last_arrival)
        self._stored = {entry.id: entry.body is not None for entry in stored.entries}
        self._arrivals = dict(stored.arrivals)
        self._cursors = dict(stored.cursors)

    def carry_out(self, command: c.Command) -> bool:
        """Start a command of the core; False if it is not one of the blackboard's."""
        match command:
            case c.SavePost(number, entry):
                if (posting := self._posting.get(number)) is not None:
                    posting.entry = entry
                if not self._is_closed:
                    self._saver.save_post(number, entry)
            case c.RefusePost(number, reason, rate):
                if (posting := self._posting.get(number)) is not None and not posting.answer.done():
                    posting.answer.set_exception(BoardRate(reason) if rate else BoardRefused(reason))
            case c.BoardChanged():
                if not self._is_closed:
                    self._take_change(command)
            case _:
                return False
        return True

    async def close(self) -> None:
        """Refuse what waits, save what changed, close the store. Idempotent."""
        self._is_closed, self._is_open, self._reason = True, False, STOPPING
        for posting in self._posting.values():
            if not posting.answer.done():
                posting.answer.set_exception(BoardOff(self._reason))
        self._wake()
        await self._claims.close()
        await self._search.close()
        await self._saver.close()

    def _take_change(self, change: c.BoardChanged) -> None:
        first, stored, known = not self._is_open, self._stored, self._arrivals
        self._is_open, self._stored, self._arrivals = True, None, {}
        arrivals = self._index.add(change.added, known)
        self._index.erase(change.erased)
        self._index.remove(change.removed)
        self._index.flag(change.flagged)
        self._fold.add(change.added)
        self._fold.remove(change.removed)
        self._ahead, self._flagged = change.waiting, change.flagged
        self._search.changed([*arrivals, *change.erased, *change.removed])
        # What was just read from the store is there already.
        added = {
            entry.id: (entry, arrivals[entry.id])
            for entry in change.added
            if stored is None or entry.id not in known or stored.get(entry.id) is not (entry.body is not None)
        }
        self._saver.save(
            StoreChange(
                added,
                set(change.erased),
                set(change.removed),
                dict.fromkeys(change.certificates),
                last_arrival=self._index.last_arrival if added else 0,
            )
        )
        for number in change.numbers:
            posting = self._posting.get(number)
            if posting is not None and posting.entry is not None and not posting.answer.done():
                posting.answer.set_result(posting.entry)
        if first or change.added or change.erased or change.removed:
            self._wake()
            self._on_change(self._index.cursor())

    def _wake(self) -> None:
        """Let feeds that wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    # -- writing

    async def _written(self, draft: EntryDraft) -> SignedEntry:
        """Post a draft; returns its entry once it is on the disk and in the log. Raises BoardRefused, BoardOff."""
        self._check_open()
        if len(self._posting) >= MAX_POSTS:
            raise BoardRate("Too many messages wait to be saved.")
        self._number += 1
        number = self._number
        posting = self._posting[number] = _Posting(asyncio.get_running_loop().create_future())
        self._post_event(e.PostWanted(number, draft))
        try:
            async with asyncio.timeout(POST_SECONDS):
                return await posting.answer
        except TimeoutError:
            raise BoardRefused(
                f"The message was not saved within {POST_SECONDS:.0f} s.",
                advice="List the messages before you post it again: it may still come.",
            ) from None
        finally:
            del self._posting[number]

    def _check_open(self) -> None:
        if not self._is_open:
            raise BoardOff(self._reason)

    def _shown(self, entry: SignedEntry) -> s.BoardPost:
        post = self._index.post(entry.id)
        if post is None:
            raise BoardRefused("The message was saved, but has no room on the board any more.")
        return post

    async def post(self, wish: s.PostWish) -> s.PostAnswer:
        """See `Blackboard`."""
        self._check_open()
        reply_to, room = NO_ENTRY, None
        if wish.reply_to:
            reply_to = self._index.find(wish.reply_to)
            header = self._index.header(reply_to)
            room = header.room if header is not None else None
        draft, replaced = self._drafts.post(wish, reply_to, room)
        return s.PostAnswer(self._shown(await self._written(draft)), replaced)

    async def retract(self, post: str) -> s.BoardPost:
        """See `Blackboard`."""
        self._check_open()
        item = self._index.find(post, mine=True)
        shown = self._index.post(item)
        if shown is None or not shown.retracted:
            writer = self._drafts.writer(s.BoardWriter())
            await self._written(EntryDraft("", EntryKind.RETRACT, name=writer.name, target=item))
        found = self._index.post(item) or shown
        if found is None:
            raise BoardRefused("The message has expired.")
        return replace(found, text="", retracted=True)

    async def claim(self, wish: s.ClaimWish) -> s.ClaimAnswer:
        """See `Blackboard`."""
        self._check_open()
        return await self._claims.answer(wish)

    def preview(self, text: str) -> s.ScrubPreview:
        """See `Blackboard`."""
        return self._drafts.preview(text)

    # -- reading

    async def feed(self, query: s.FeedQuery) -> s.BoardPage:
        """See `Blackboard`."""
        self._check_open()
        query = replace(query, room=self._drafts.room(query.room), reader=self._drafts.writer(query.reader))
        loop = asyncio.get_running_loop()
        wait = min(query.wait_seconds, s.MAX_WAIT_SECONDS) if query.after and query.wait_seconds > 0 else 0.0
        deadline = loop.time() + wait
        page = await self._page(self._index.select(query, self._wall_clock()))
        if wait and not page.posts and self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                async with asyncio.timeout_at(deadline):
                    while not page.posts and self._is_open:
                        # The rest is looked at once: what did not count before does not later.
                        query = replace(query, after=page.cursor)
                        await self._changed.wait()
                        page = await self._page(self._index.select(query, self._wall_clock()))
            except TimeoutError:
                pass
            finally:
                self._waiting -= 1
        return page

    async def search(self, query: s.SearchQuery) -> s.BoardPage:
        """See `Blackboard`."""
        self._check_open()
        query = replace(query, room=self._drafts.room(query.room))
        matches = await self._search.find(self._index.terms(query, self._wall_clock()))
        return await self._page(self._index.select_found(query, matches))

    async def _page(self, selection: BoardSelection) -> s.BoardPage:
        """The page of a selection; many texts are masked in a thread, so that the node goes on meanwhile."""
        bodies = selection.unmasked()
        if sum(map(len, bodies.values())) > MASKED_AT_ONCE:
            texts = await in_thread(
                lambda stop: {item: masked_text(body) for item, body in bodies.items()}, "board texts"
            )
            selection.put(bodies, texts)
        return self._index.page(selection)

    def claims(self, room: str = s.ALL_ROOMS) -> tuple[s.ClaimFacts, ...]:
        """See `Blackboard`."""
        self._check_open()
        return self._claims.list(room)

    def rooms(self) -> tuple[s.RoomFacts, ...]:
        """See `Blackboard`."""
        self._check_open()
        return self._index.rooms()

    async def notice(self, reader: s.BoardWriter, cursor: str) -> s.BoardNotice:
        """See `Blackboard`. A reader that is new is told of the last day."""
        self._check_open()
        reader = self._drafts.writer(reader)
        place = clean_line(cursor[: 10 * MAX_CURSOR_NAME])[:MAX_CURSOR_NAME] or f"{reader.name}/{reader.program}"
        now, last = self._wall_clock(), self._index.last_arrival
        before, seen = self._cursors.get(place, (0, 0.0))
        if seen < now - CURSOR_SECONDS:
            before = 0
        notice = self._index.notice(reader, before, now)
        self._cursors.pop(place, None)
        self._cursors[place] = (last, now)
        while len(self._cursors) > MAX_CURSORS:
            del self._cursors[next(iter(self._cursors))]
        if before != last or now - seen > SEEN_SECONDS:
            self._saver.save(StoreChange(cursors={place: (last, now)}))
        return notice

    def facts(self) -> s.BoardFacts:
        """See `Blackboard`."""
        return s.BoardFacts(
            enabled=self._is_open,
            reason="" if self._is_open else self._reason,
            name=self._drafts.writer(s.BoardWriter()).name,
            node=shown_line(self._node_name(self._me)),
            posts=len(self._index),
            waiting=self._ahead,
            flagged=tuple(shown_line(self._node_name(author)) for author in self._flagged),
        )
