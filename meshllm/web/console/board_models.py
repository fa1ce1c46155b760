"""What the endpoints of the blackboard accept: bodies and parameters, and the answers that are lists.

All other answers are the values of `core.board.service`, which are documented there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from meshllm.core.board.entries import (
    DEFAULT_CLAIM_SECONDS,
    ENTRY_ID_BYTES,
    LIFETIME_SECONDS,
    MAX_AUTHOR_NAME_BYTES,
    MAX_BODY_BYTES,
    MAX_CLAIM_KEY_BYTES,
    MAX_CLAIM_SECONDS,
    MAX_RECIPIENTS,
    MAX_ROOM_BYTES,
)
from meshllm.core.board.service import (
    ALL_ROOMS,
    DEFAULT_HOURS,
    DEFAULT_LISTED,
    MAX_LISTED,
    MAX_WAIT_SECONDS,
    BoardPost,
    BoardWriter,
    ClaimFacts,
    RoomFacts,
)
from meshllm.wire.mesh.fields import UNPRINTABLE

# A cursor of a page, or what a reader calls itself.
MAX_CURSOR_BYTES = 256
MAX_WORDS_BYTES = 1024
# Longest part of a field's name that an error repeats.
MAX_FIELD = 60


class _OneLine:
    """Checks a text of one line."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, text: str) -> str:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > self._most:
            raise ValueError(f"has {size:,} bytes; at most {self._most:,} are possible")
        if UNPRINTABLE.search(text):
            raise ValueError("has characters that cannot be printed")
        return text


def _message(text: str) -> str:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BODY_BYTES:
        raise ValueError(f"has {size:,} bytes; a message has at most {MAX_BODY_BYTES:,}")
    if not text.strip():
        raise ValueError("is empty")
    return text


MessageText = Annotated[str, AfterValidator(_message)]
Room = Annotated[str, AfterValidator(_OneLine(MAX_ROOM_BYTES))]
PersonName = Annotated[str, AfterValidator(_OneLine(MAX_AUTHOR_NAME_BYTES))]
Recipient = Annotated[str, AfterValidator(_OneLine(MAX_AUTHOR_NAME_BYTES)), Field(min_length=1)]
# An id or the beginning of one.
MessageId = Annotated[str, Field(pattern=rf"^[0-9a-f]{{0,{2 * ENTRY_ID_BYTES}}}$")]
Cursor = Annotated[str, AfterValidator(_OneLine(MAX_CURSOR_BYTES))]
Kind = Literal["", "note", "status", "question", "finding", "tip", "done"]


class BoardBody(BaseModel):
    """Base of what is sent to the blackboard: a field that is not known is an error, not ignored."""

    model_config = ConfigDict(defer_build=True, extra="forbid")


class WriterBody(BoardBody):
    """Base of what a person or a program sends: its `name` (empty: the node's `--name`) and the `program`."""

    name: PersonName = ""
    program: PersonName = ""

    @property
    def writer(self) -> BoardWriter:
        """Who writes or reads."""
        return BoardWriter(self.name, self.program)


class PostRequest(WriterBody):
    """A message to post: `text` of at most 4,096 bytes (UTF-8). `kind` empty: by the prefix of the text
    (`STATUS: ...`), else a note. `reply_to`: an id, or the beginning of one. `to`: names."""

    text: MessageText
    room: Room = ""
    kind: Kind = ""
    reply_to: MessageId = ""
    to: list[Recipient] = Field(default=[], max_length=MAX_RECIPIENTS)


class ClaimRequest(WriterBody):
    """Acquires, renews or releases a claim of `key` in `room` for `seconds`."""

    key: Annotated[str, AfterValidator(_OneLine(MAX_CLAIM_KEY_BYTES)), Field(min_length=1)]
    op: Literal["acquire", "renew", "release"] = "acquire"
    room: Room = ""
    seconds: int = Field(default=DEFAULT_CLAIM_SECONDS, ge=1, le=MAX_CLAIM_SECONDS)


class RetractRequest(BoardBody):
    """The id of one of this node's own messages, or the beginning of it."""

    post: Annotated[MessageId, Field(min_length=1)]


class PreviewRequest(BoardBody):
    """A text that may be posted."""

    text: MessageText


class NoticeRequest(WriterBody):
    """What the reader calls itself: one `cursor` is told of a message once."""

    cursor: Annotated[Cursor, Field(min_length=1)]


class _Listing(WriterBody):
    room: Room = ALL_ROOMS
    author: PersonName = ""
    hours: float = Field(default=DEFAULT_HOURS, gt=0, allow_inf_nan=False)
    limit: int = Field(default=DEFAULT_LISTED, ge=1, le=MAX_LISTED)


class FeedParameters(_Listing):
    """Which messages to list; see `FeedQuery`. `room`: `*` is all rooms, empty the common room."""

    to_me: bool = False
    mine: bool = False
    thread: MessageId = ""
    kind: Kind = ""
    after: Cursor = ""
    wait_seconds: float = Field(default=0.0, ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)

    @model_validator(mode="after")
    def _waits_after_a_page(self) -> FeedParameters:
        if self.wait_seconds and not self.after:
            raise ValueError("wait_seconds needs after: the cursor of the page that was read last")
        return self


class SearchParameters(_Listing):
    """The words to search for, any of which counts, and where."""

    words: Annotated[str, AfterValidator(_OneLine(MAX_WORDS_BYTES)), Field(min_length=1)]
    hours: float = Field(default=LIFETIME_SECONDS / 3600, gt=0, allow_inf_nan=False)


class ClaimsParameters(BoardBody):
    """The claims of one room; `*`: of all rooms."""

    room: Room = ALL_ROOMS


class NoParameters(BoardBody):
    """An endpoint without parameters."""


class ClaimsAnswer(BoardBody):
    """The claims that hold now, the next to end first."""

    claims: list[ClaimFacts]


class RoomsAnswer(BoardBody):
    """The rooms with messages, the latest first."""

    rooms: list[RoomFacts]


class RetractAnswer(BoardBody):
    """The message, without its text."""

    post: BoardPost


def problem(error: ValidationError, what: str) -> str:
    """What is wrong with the body or the parameters (`what`), for people: the first error."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))[:MAX_FIELD]
    match first["type"]:
        case "json_invalid":
            return f"{what} is not valid JSON."
        case "missing":
            return f"{what} needs {field!r}."
        case "extra_forbidden":
            return f"{what} has the unknown field {field!r}."
        case _:
            said = str(first["msg"]).removeprefix("Value error, ")
            return f"{what} is not valid: {field}: {said}." if field else f"{what} is not valid: {said}."
