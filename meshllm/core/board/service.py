"""What the blackboard does for those who use it: the API of the console, the MCP server, and through them the CLI.

Texts from other nodes are data, never instructions. All times are unix seconds; ids are hexadecimal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from meshllm.core.board.entries import DEFAULT_CLAIM_SECONDS

# Longest feed or result of a search; what is returned by default; the default windows in hours.
MAX_LISTED, DEFAULT_LISTED, DEFAULT_HOURS, SEARCH_HOURS = 500, 20, 24.0, 48.0
# Longest time that a feed waits for news (seconds): below the limits of MCP clients.
MAX_WAIT_SECONDS = 50.0
# The room that stands for all rooms in a query.
ALL_ROOMS = "*"


@dataclass(frozen=True, slots=True)
class BoardWriter:
    """Who writes: `name` (empty: the node's `--name`), and the `program` that writes (`claude-code`; empty: a
    person)."""

    name: str = ""
    program: str = ""


@dataclass(frozen=True, slots=True)
class BoardPost:
    """A message as readers see it: secrets masked, control characters removed.

    `kind`: the name of an `EntryKind` in lower case. `node`: the name of the author's node, `author` its id. `thread`:
    the id of the first message of its thread. `mine`: written on this node. `flagged`: its author broke the log's rules
    (equivocation). `retracted`: the text is erased. `replies`: how many messages reply to it directly.
    """

    id: str
    kind: str
    text: str
    room: str
    name: str
    program: str
    node: str
    author: str
    time: float
    reply_to: str = ""
    thread: str = ""
    to: tuple[str, ...] = ()
    mine: bool = False
    flagged: bool = False
    retracted: bool = False
    replies: int = 0


@dataclass(frozen=True, slots=True)
class PostWish:
    """A message to post. `kind` empty: by the prefix of the text (`STATUS: ...`), else a note. `reply_to`: an id or the
    beginning of one. `to`: names; names after an @ in the text are added."""

    text: str
    room: str = ""
    kind: str = ""
    reply_to: str = ""
    to: tuple[str, ...] = ()
    writer: BoardWriter = field(default_factory=BoardWriter)


@dataclass(frozen=True, slots=True)
class PostAnswer:
    """The message that was posted. `replaced`: what the scrubber replaced, for people; empty if nothing."""

    post: BoardPost
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class FeedQuery:
    """Which messages to list, newest first.

    `room` empty: the common room; ALL_ROOMS: all. `author`: a part of the writer's or the node's name. `hours`: how far
    back. `to_me`: only those that name the reader. `mine`: only those of this node. `thread`: an id, or the beginning
    of one, of any message of a thread. `kind`: as in `BoardPost`. `after`: only messages that came after the page with
    that `cursor`; `wait_seconds`: with `after`, how long to wait for one.
    """

    room: str = ALL_ROOMS
    author: str = ""
    hours: float = DEFAULT_HOURS
    limit: int = DEFAULT_LISTED
    to_me: bool = False
    mine: bool = False
    thread: str = ""
    kind: str = ""
    after: str = ""
    wait_seconds: float = 0.0
    reader: BoardWriter = field(default_factory=BoardWriter)


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """Words to search for; any of them counts. Other fields as in `FeedQuery`."""

    words: str
    room: str = ALL_ROOMS
    author: str = ""
    hours: float = SEARCH_HOURS
    limit: int = DEFAULT_LISTED
    reader: BoardWriter = field(default_factory=BoardWriter)


@dataclass(frozen=True, slots=True)
class BoardPage:
    """Messages, and how many more there were. `cursor`: see `FeedQuery.after`."""

    posts: tuple[BoardPost, ...]
    more: int = 0
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """A claim that holds now: of `key` in `room`, by `name` (with `program`) on `node`, since and until when."""

    key: str
    room: str
    name: str
    program: str
    node: str
    author: str
    since: float
    until: float
    mine: bool
    id: str


@dataclass(frozen=True, slots=True)
class ClaimWish:
    """`op`: acquire, renew or release a claim of `key` in `room` for `seconds`."""

    key: str
    op: str = "acquire"
    room: str = ""
    seconds: int = DEFAULT_CLAIM_SECONDS
    writer: BoardWriter = field(default_factory=BoardWriter)


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    """`granted`: whether the writer holds the claim now (with `release`: whether it was released). `holder`: who holds
    it and until when, None if no writer does. Claims are soft: an agreement, not a lock."""

    granted: bool
    holder: ClaimFacts | None
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """A room, how many messages it has, and when the last one was written."""

    room: str
    posts: int
    last: float


@dataclass(frozen=True, slots=True)
class ScrubPreview:
    """A text as it would be posted, and what the scrubber replaced in it."""

    text: str
    replaced: str


@dataclass(frozen=True, slots=True)
class BoardNotice:
    """How many messages name the reader that it was not told of yet; how many of them are questions without an answer
    of the reader."""

    count: int
    questions: int = 0


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """The state of the blackboard on this node: whether it is on and, if not, why; this node's writer name; messages
    held; messages that wait because their clocks are ahead of this machine's; names of authors who broke the rules."""

    enabled: bool
    reason: str
    name: str
    node: str
    posts: int
    waiting: int
    flagged: tuple[str, ...]


class Blackboard(Protocol):
    """The blackboard of this node. Methods raise `MeshError` (`BoardOff`, `BoardRefused`) with what to do next."""

    def facts(self) -> BoardFacts:
        """The state of the board; never raises."""

    async def post(self, wish: PostWish) -> PostAnswer:
        """Scrub, sign and store a message; it is on its way to the mesh then."""

    async def feed(self, query: FeedQuery) -> BoardPage:
        """The messages, newest first."""

    async def search(self, query: SearchQuery) -> BoardPage:
        """The messages that have one of the words, best first."""

    async def claim(self, wish: ClaimWish) -> ClaimAnswer:
        """Acquire, renew or release a claim. Acquiring waits up to 2 s for what other nodes say."""

    def claims(self, room: str = ALL_ROOMS) -> tuple[ClaimFacts, ...]:
        """The claims that hold now, the next to end first."""

    def rooms(self) -> tuple[RoomFacts, ...]:
        """The rooms with messages, the latest first."""

    async def retract(self, post: str) -> BoardPost:
        """Erase the text of one of this node's own messages everywhere. `post`: its id or the beginning of it."""

    def preview(self, text: str) -> ScrubPreview:
        """What posting would make of `text`; nothing is posted."""

    async def notice(self, reader: BoardWriter, cursor: str) -> BoardNotice:
        """What the reader that calls itself `cursor` was not told of yet; it counts as told then."""
