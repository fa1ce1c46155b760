"""The messages of the blackboard as readers ask for them: feed, threads, rooms, notices. In memory, without I/O.

Texts of other nodes are hostile: they are masked by the scrubber again, and what people do not see is removed, before
anything leaves this index. Each message has an arrival, the order in which this node got it; cursors are arrivals, so
that what comes late is not missed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from meshllm.board.scrub import scrub
from meshllm.board.search import SearchDocument, SearchTerms, terms_of
from meshllm.board.text import clean_line, clean_name, clean_text
from meshllm.core.board.entries import EntryHeader, EntryId, EntryKind, SignedEntry
from meshllm.core.board.service import (
    ALL_ROOMS,
    DEFAULT_HOURS,
    MAX_LISTED,
    BoardNotice,
    BoardPage,
    BoardPost,
    BoardWriter,
    FeedQuery,
    RoomFacts,
    SearchQuery,
)
from meshllm.core.ids import NodeId
from meshllm.errors import BoardRefused

# The name that addresses all readers.
EVERYONE: Final = "all"
# Digits of the beginning of an id that a reader may type.
MIN_PREFIX: Final = 4
# Replies in a chain that are followed to the first message.
MAX_DEPTH: Final = 256
# Matches of a search that are looked at for each message of the answer: threads and authors are chosen among them.
_MATCHES: Final = 20
_ACTS: Final = (EntryKind.CLAIM, EntryKind.RENEW, EntryKind.RELEASE)

NodeName = Callable[[NodeId], str]


@dataclass(slots=True, eq=False)
class _Message:
    """An entry that readers see. `text` is masked when it is first read: few messages of a full board ever are."""

    id: EntryId
    header: EntryHeader
    kind: EntryKind
    body: str | None
    arrival: int
    mine: bool
    masked: str | None = None

    @property
    def text(self) -> str:
        if self.masked is None:
            text = self.header.subject if self.kind in _ACTS else self.body or ""
            self.masked = clean_text(text) if self.mine else masked_text(text)
        return self.masked

    @property
    def retracted(self) -> bool:
        return self.body is None

    @property
    def order(self) -> tuple[int, EntryId]:
        return self.header.time, self.id


@dataclass(frozen=True, slots=True)
class BoardSelection:
    """Messages of a page before they are shown; fields as in `BoardPage`."""

    messages: tuple[_Message, ...]
    more: int
    cursor: str

    def unmasked(self) -> dict[EntryId, str]:
        """The texts that have to be masked."""
        return {
            message.id: message.body
            for message in self.messages
            if message.body is not None and message.masked is None and not message.mine and message.kind not in _ACTS
        }

    def put(self, bodies: Mapping[EntryId, str], texts: Mapping[EntryId, str]) -> None:
        """The masked `texts` of `bodies`; of those that were erased meanwhile they are not kept."""
        for message in self.messages:
            if message.body is not None and message.body is bodies.get(message.id):
                message.masked = texts[message.id]


def reader_names(reader: BoardWriter, node: str) -> frozenset[str]:
    """What addresses a reader on the node called `node`, in one letter case."""
    names = [reader.name, reader.program, node, EVERYONE]
    names += [f"{name}@{node}" for name in (reader.name, reader.program) if name]
    return frozenset(name.casefold() for name in names if name)


class BoardIndex:
    """The messages that this node holds. `me`: this node; `node_name`: what readers call a node."""

    def __init__(self, me: NodeId, node_name: NodeName) -> None:
        self._me = me
        self._node_name = node_name
        self._messages: dict[EntryId, _Message] = {}
        # Messages of people, sorted by time: what feeds list. Entries about claims are apart.
        self._order: list[tuple[int, EntryId]] = []
        self._acts: list[tuple[int, EntryId]] = []
        self._arrived: list[tuple[int, EntryId]] = []
        self._replies: dict[EntryId, set[EntryId]] = {}
        self._flagged: frozenset[NodeId] = frozenset()
        self._tag = ""
        self.last_arrival = 0

    def __len__(self) -> int:
        return len(self._order)

    # -- changes

    def begin(self, tag: str, last_arrival: int) -> None:
        """Cursors of another `tag`, that of another store, are void. Arrivals go on after `last_arrival`."""
        self._tag = tag
        self.last_arrival = last_arrival

    def add(self, entries: Iterable[SignedEntry], arrivals: Mapping[EntryId, int] | None = None) -> dict[EntryId, int]:
        """Take entries; one that is known is replaced. `arrivals`: of those that have one from before. Returns all
        of theirs."""
        known = arrivals if arrivals is not None else {}
        given: dict[EntryId, int] = {}
        for entry in entries:
            arrival = known.get(entry.id)
            if arrival is None:
                self.last_arrival += 1
                arrival = self.last_arrival
            given[entry.id] = arrival
            self._discard(entry.id)
            kind = _KINDS.get(entry.header.kind)
            if kind is not None:
                self._put(entry, kind, arrival)
        return given

    def erase(self, ids: Iterable[EntryId]) -> None:
        """Drop the texts of messages."""
        for item in ids:
            if (message := self._messages.get(item)) is not None:
                message.body, message.masked = None, None

    def remove(self, ids: Iterable[EntryId]) -> None:
        """Drop messages."""
        for item in ids:
            self._discard(item)

    def flag(self, authors: Iterable[NodeId]) -> None:
        """All authors that broke the rules of the log."""
        self._flagged = frozenset(authors)

    def _put(self, entry: SignedEntry, kind: EntryKind, arrival: int) -> None:
        header = entry.header
        message = _Message(entry.id, header, kind, entry.body, arrival, header.author == self._me)
        self._messages[entry.id] = message
        insort(self._acts if kind in _ACTS else self._order, message.order)
        insort(self._arrived, (arrival, entry.id))
        if header.reply_to and kind not in _ACTS:
            self._replies.setdefault(header.reply_to, set()).add(entry.id)

    def _discard(self, item: EntryId) -> None:
        message = self._messages.pop(item, None)
        if message is None:
            return
        for place, key in (
            (self._acts if message.kind in _ACTS else self._order, message.order),
            (self._arrived, (message.arrival, item)),
        ):
            del place[bisect_left(place, key)]
        if (replies := self._replies.get(message.header.reply_to)) is not None:
            replies.discard(item)
            if not replies:
                del self._replies[message.header.reply_to]

    # -- one message

    def post(self, item: EntryId) -> BoardPost | None:
        """A message as readers see it."""
        message = self._messages.get(item)
        return self._shown(message) if message is not None else None

    def header(self, item: EntryId) -> EntryHeader | None:
        """The header of a message."""
        message = self._messages.get(item)
        return message.header if message is not None else None

    def find(self, prefix: str, *, mine: bool = False) -> EntryId:
        """The message of people whose id begins with `prefix` (hexadecimal); `mine`: among those of this node.

        Raises BoardRefused if there is none, or more than one.
        """
        return self._one(prefix, _beginning_with(prefix, (item for _, item in self._order)), mine=mine)

    def _one(self, prefix: str, found: list[EntryId], *, mine: bool = False) -> EntryId:
        if mine and found:
            own = [item for item in found if self._messages[item].mine]
            if not own:
                raise BoardRefused(f"The message {prefix} is of another node.", advice=_ONLY_OWN)
            found = own
        if not found:
            raise BoardRefused(f"No message has an id that begins with {prefix!r}.", advice=_LIST_FIRST)
        if len(found) > 1:
            raise BoardRefused(f"{len(found)} messages have ids that begin with {prefix!r}.", advice="Give more of it.")
        return found[0]

    def _shown(self, message: _Message) -> BoardPost:
        header = message.header
        return BoardPost(
            id=message.id.hex(),
            kind=message.kind.name.lower(),
            text=message.text,
            room=shown_line(header.room),
            name=shown_name(header.name),
            program=shown_name(header.program),
            node=shown_line(self._node_name(header.author)),
            author=header.author.hex(),
            time=header.time / 1000,
            reply_to=header.reply_to.hex(),
            thread=self._root(message).hex(),
            to=tuple(map(shown_line, header.to)),
            mine=message.mine,
            flagged=header.author in self._flagged,
            retracted=message.retracted,
            replies=len(self._replies.get(message.id, ())),
        )

    # -- threads

    def _root(self, message: _Message, known: dict[EntryId, EntryId] | None = None) -> EntryId:
        """The first message of a thread; the id of a missing one, if a reply to it is here. `known`: roots that were
        found before, which are not looked for again."""
        item, passed = message.id, list[EntryId]()
        for _ in range(MAX_DEPTH):
            if known is not None and item in known:
                item = known[item]
                break
            found = self._messages.get(item)
            if found is None or not found.header.reply_to:
                break
            passed.append(item)
            item = found.header.reply_to
        if known is not None:
            known.update(dict.fromkeys(passed, item))
        return item

    def _thread(self, prefix: str) -> list[_Message]:
        """All messages of the thread that a message is in, newest first. A missing first message can be named, too."""
        candidates = {item for _, item in self._order} | self._replies.keys()
        item = self._one(prefix, _beginning_with(prefix, candidates))
        message = self._messages.get(item)
        found = self._below(self._root(message) if message is not None else item)
        return sorted(found, key=lambda message: message.order, reverse=True)

    def _below(self, root: EntryId) -> list[_Message]:
        """A message and all replies to it, and to those."""
        waiting, seen = [root], set[EntryId]()
        while waiting:
            item = waiting.pop()
            if item not in seen:
                seen.add(item)
                waiting += self._replies.get(item, ())
        return [message for item in seen if (message := self._messages.get(item)) is not None]

    # -- lists

    def feed(self, query: FeedQuery, now: float) -> BoardPage:
        """The page of `select`."""
        return self.page(self.select(query, now))

    def page(self, selection: BoardSelection) -> BoardPage:
        """The messages as readers see them. Masks those that are not masked yet, which takes up to 5 ms for each."""
        return BoardPage(tuple(map(self._shown, selection.messages)), selection.more, selection.cursor)

    def select(self, query: FeedQuery, now: float) -> BoardSelection:
        """The messages of a feed, newest first; `now`: unix seconds. The reader's name must be filled in.

        With `after` the page has the oldest of what came since, so that the next page goes on where it ends.
        """
        limit = max(1, min(query.limit, MAX_LISTED))
        since = self._since(query.after)
        wanted = self._filter(query, now)
        if query.thread:
            found = [message for message in self._thread(query.thread) if wanted(message)]
        elif since is None:
            found = list(filter(wanted, self._newest_first(query, now)))
        else:
            found = list(filter(wanted, self._after(since)))
        if since is None:
            page, last = found[:limit], self.last_arrival
        else:
            found = sorted(
                (message for message in found if message.arrival > since), key=lambda message: message.arrival
            )
            page = found[:limit]
            last = page[-1].arrival if len(found) > limit else self.last_arrival
            page = sorted(page, key=lambda message: message.order, reverse=True)
        return BoardSelection(tuple(page), len(found) - len(page), self.cursor(last))

    def cursor(self, arrival: int | None = None) -> str:
        """The cursor of all that came up to `arrival`, by default up to now."""
        return f"{self._tag}.{self.last_arrival if arrival is None else arrival}"

    def _since(self, cursor: str) -> int | None:
        """The arrival of a cursor; 0 if it is of another store. None for the empty cursor."""
        if not cursor:
            return None
        tag, dot, arrival = cursor.partition(".")
        if not dot or not (arrival.isascii() and arrival.isdigit()) or len(arrival) > 18:
            raise BoardRefused(
                f"{cursor[:40]!r} is no cursor.", advice="Give the cursor of a page that you were given."
            )
        return int(arrival) if tag == self._tag else 0

    def _newest_first(self, query: FeedQuery, now: float) -> Iterator[_Message]:
        """The messages of the query's hours."""
        order = self._acts if _kind(query.kind) in _ACTS else self._order
        first = bisect_left(order, (_start(query.hours, now), EntryId(b"")))
        for place in range(len(order) - 1, first - 1, -1):
            yield self._messages[order[place][1]]

    def _after(self, since: int) -> Iterator[_Message]:
        """The messages that came after an arrival."""
        for place in range(bisect_right(self._arrived, (since, _LAST_ID)), len(self._arrived)):
            yield self._messages[self._arrived[place][1]]

    def _filter(self, query: FeedQuery, now: float) -> Callable[[_Message], bool]:
        """Whether a message is wanted. In a thread, those of any time and the places of retracted ones are."""
        kind, mine, in_thread = _kind(query.kind), query.mine, bool(query.thread)
        start = 0 if in_thread else _start(query.hours, now)
        room = None if query.room == ALL_ROOMS else query.room
        by_author = self._author_test(query.author) if query.author else None
        names = self._names(query.reader) if query.to_me else None

        # One function of plain comparisons: it is called for each message of the board.
        def wanted(message: _Message) -> bool:
            header = message.header
            return (
                (message.kind is kind if kind is not None else message.kind not in _ACTS)
                and (room is None or header.room == room)
                and header.time >= start
                and (message.body is not None or in_thread)
                and (message.mine or not mine)
                and (names is None or self._addresses(message, names, query.reader))
                and (by_author is None or by_author(message))
            )

        return wanted

    def _author_test(self, part: str) -> Callable[[_Message], bool]:
        part = part.casefold()
        nodes: dict[NodeId, str] = {}

        def matches(message: _Message) -> bool:
            author = message.header.author
            node = nodes.get(author)
            if node is None:
                node = nodes[author] = shown_line(self._node_name(author))
            name, program = message.header.name, message.header.program
            return part in f"{name}@{node}".casefold() or part in program.casefold()

        return matches

    def rooms(self) -> tuple[RoomFacts, ...]:
        """The rooms with messages, the latest first."""
        counts: dict[str, int] = {}
        last: dict[str, int] = {}
        for time, item in self._order:
            message = self._messages[item]
            if message.body is not None:
                room = message.header.room
                counts[room] = counts.get(room, 0) + 1
                last[room] = time
        latest_first = sorted(counts, key=lambda room: (-last[room], room))
        return tuple(RoomFacts(shown_line(room), counts[room], last[room] / 1000) for room in latest_first)

    # -- search

    def document(self, item: EntryId) -> tuple[SearchDocument, bool] | None:
        """A message as it is searched, and whether its text must be masked (`mask`); None if it has no text."""
        message = self._messages.get(item)
        if message is None or message.body is None or message.kind in _ACTS:
            return None
        header = message.header
        name = f"{header.name} {header.program} {shown_line(self._node_name(header.author))}"
        text = message.body if message.masked is None else message.masked
        document = SearchDocument(item, text, header.room, message.kind.name.lower(), name, header.time / 1000)
        return document, message.masked is None

    def ids(self) -> list[EntryId]:
        """The messages of people."""
        return [item for _, item in self._order]

    def terms(self, query: SearchQuery, now: float) -> SearchTerms:
        """What to look for in the index of texts. Raises BoardRefused for a search without words."""
        terms = terms_of(query.words)
        if not terms:
            raise BoardRefused("The search has no words.", advice="Give one or more words to search for.")
        limit = max(1, min(query.limit, MAX_LISTED))
        # Which author wrote it is known here only.
        matches = MAX_LISTED * _MATCHES if query.author else min(MAX_LISTED, limit * _MATCHES) + limit
        room = None if query.room == ALL_ROOMS else query.room
        return SearchTerms(terms, room, _start(query.hours, now) / 1000, matches)

    def found(self, query: SearchQuery, matches: Iterable[EntryId]) -> BoardPage:
        """The page of `select_found`."""
        return self.page(self.select_found(query, matches))

    def select_found(self, query: SearchQuery, matches: Iterable[EntryId]) -> BoardSelection:
        """The messages of a search: of each thread the one that matches best."""
        limit = max(1, min(query.limit, MAX_LISTED))
        by_author = self._author_test(query.author) if query.author else None
        best: dict[EntryId, _Message] = {}
        roots: dict[EntryId, EntryId] = {}
        for item in matches:
            message = self._messages.get(item)
            if message is None or message.body is None or (by_author is not None and not by_author(message)):
                continue
            best.setdefault(self._root(message, roots), message)
        page = tuple(best.values())[:limit]
        return BoardSelection(page, len(best) - len(page), self.cursor())

    # -- notices

    def notice(self, reader: BoardWriter, since: int, now: float) -> BoardNotice:
        """What names the reader and came after the arrival `since`, in the last DEFAULT_HOURS. A question that it has
        replied to counts no more."""
        names = self._names(reader)
        start = _start(DEFAULT_HOURS, now)
        count = questions = 0
        answered: set[EntryId] | None = None
        for message in self._after(since):
            if message.kind in _ACTS or message.body is None or message.header.time < start:
                continue
            if not self._addresses(message, names, reader):
                continue
            if message.kind is EntryKind.QUESTION:
                if answered is None:
                    answered = self._answered(reader)
                if message.id in answered:
                    continue
                questions += 1
            count += 1
        return BoardNotice(count, questions)

    def _answered(self, reader: BoardWriter) -> set[EntryId]:
        """The messages that were there, in their threads, when the reader replied."""
        last: dict[EntryId, tuple[int, EntryId]] = {}
        for order in self._order:
            message = self._messages[order[1]]
            if message.header.reply_to and self._is_own(message, reader):
                last[self._root(message)] = order
        return {each.id for root, order in last.items() for each in self._below(root) if each.order < order}

    def _names(self, reader: BoardWriter) -> frozenset[str]:
        return reader_names(reader, shown_line(self._node_name(self._me)))

    def _is_own(self, message: _Message, reader: BoardWriter) -> bool:
        return (
            message.mine
            and message.header.name.casefold() == reader.name.casefold()
            and message.header.program.casefold() == reader.program.casefold()
        )

    def _addresses(self, message: _Message, names: frozenset[str], reader: BoardWriter) -> bool:
        """Whether another one's message names the reader, or replies to it."""
        if self._is_own(message, reader):
            return False
        header = message.header
        if header.to and any(name.removeprefix("@").casefold() in names for name in header.to):
            return True
        replied = self._messages.get(header.reply_to) if header.reply_to else None
        return replied is not None and self._is_own(replied, reader)


def mask(document: SearchDocument) -> SearchDocument:
    """A document with its text as readers see it."""
    return replace(document, text=masked_text(document.text))


def masked_text(text: str) -> str:
    """The text of another node's message as readers see it. Takes up to 5 ms."""
    return scrub(clean_text(text)).text


_KINDS: Final = {int(kind): kind for kind in EntryKind if kind is not EntryKind.RETRACT}
_LAST_ID: Final = EntryId(b"\xff" * 17)
_LIST_FIRST: Final = "List the messages: mesh-llm blackboard"
_ONLY_OWN: Final = "Only messages of this node can be retracted."


@lru_cache(maxsize=4096)
def shown_line(text: str) -> str:
    """A line of another node's, masked."""
    return scrub(clean_line(text)).text


@lru_cache(maxsize=4096)
def shown_name(text: str) -> str:
    return scrub(clean_name(text)).text


def _prefix(text: str) -> str:
    """The beginning of an id, as readers type it."""
    prefix = text.strip().removeprefix("#").lower()
    if len(prefix) < MIN_PREFIX or any(letter not in "0123456789abcdef" for letter in prefix):
        raise BoardRefused(
            f"{text[:40]!r} is no id of a message.", advice=f"Give at least {MIN_PREFIX} digits of it, as listed."
        )
    return prefix


def _beginning_with(prefix: str, ids: Iterable[EntryId]) -> list[EntryId]:
    """Of `ids` those that begin with the digits of `prefix`."""
    digits = _prefix(prefix)
    whole = bytes.fromhex(digits[: len(digits) // 2 * 2])
    return [item for item in ids if item.startswith(whole) and item.hex().startswith(digits)]


def _kind(text: str) -> EntryKind | None:
    """The kind that a query asks for; None for all messages of people."""
    if not text:
        return None
    try:
        return EntryKind[text.strip().upper()]
    except KeyError:
        names = ", ".join(kind.name.lower() for kind in _KINDS.values())
        raise BoardRefused(f"{text[:40]!r} is no kind of message.", advice=f"Kinds are: {names}.") from None


def _start(hours: float, now: float) -> int:
    """The beginning of a window, unix ms."""
    if not math.isfinite(hours) or hours <= 0:
        raise BoardRefused("The hours to look back must be a number above 0.")
    return int(max(0.0, now - min(hours, 1e6) * 3600) * 1000)
