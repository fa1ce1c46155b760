"""Makes the drafts of entries of what people and agents write: the only way onto the blackboard. Pure.

Invariants: each text, room, name, recipient and claim key of a draft has been cleaned, then scrubbed, and is within the
bounds of an entry; what was replaced is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from meshllm.board.scrub import Scrubbed, scrub
from meshllm.board.text import clean_line, clean_name, clean_text, different_names, kind_of, mentions
from meshllm.core.board.entries import (
    MAX_AUTHOR_NAME_BYTES,
    MAX_BODY_BYTES,
    MAX_CLAIM_KEY_BYTES,
    MAX_CLAIM_SECONDS,
    MAX_RECIPIENTS,
    MAX_ROOM_BYTES,
    NO_ENTRY,
    TEXT_KINDS,
    EntryDraft,
    EntryId,
    EntryKind,
)
from meshllm.core.board.service import ALL_ROOMS, BoardWriter, ClaimWish, PostWish, ScrubPreview
from meshllm.errors import BoardRefused

OPERATIONS: Final = ("acquire", "renew", "release")
# Names of users and hosts that are the same on many machines, and words of ordinary texts besides.
_GENERIC: Final = (
    "admin administrator agent alpine build builder centos container daemon debian default developer docker ec2-user "
    "fedora guest home host jenkins laptop linux local localhost macbook model node pi root runner "
    "server service system test tester ubuntu user username users vagrant work worker workstation"
)
GENERIC_NAMES: Final = frozenset(_GENERIC.split())
# Longer texts are not even cleaned.
MAX_INPUT_LETTERS: Final = 64 * MAX_BODY_BYTES


class DraftMaker:
    """Makes drafts. `names`: what this machine and its user are called, each with a label, to be replaced in texts;
    `public`: those names among them that the board shows anyway, and which are therefore not replaced. Nor are
    names that say nothing of a machine or its user."""

    def __init__(self, writer: str, names: Iterable[tuple[str, str]], public: Callable[[], Iterable[str]]) -> None:
        """`writer`: the name of a writer that gives none."""
        self._writer = writer
        self._names = tuple((name, label) for name, label in names if name.casefold() not in GENERIC_NAMES)
        self._public = public

    def writer(self, writer: BoardWriter) -> BoardWriter:
        """The writer with its name filled in, as the board shows it."""
        report = _DraftScrubber(())
        name = _bounded(report.name(writer.name), MAX_AUTHOR_NAME_BYTES, "name")
        program = _bounded(report.name(writer.program), MAX_AUTHOR_NAME_BYTES, "program's name")
        return BoardWriter(name or _shortened(report.name(self._writer), MAX_AUTHOR_NAME_BYTES), program)

    def room(self, room: str) -> str:
        """The name of a room as the board has it; ALL_ROOMS stays as it is."""
        return self._report().line(room)

    def key(self, key: str) -> str:
        """The key of a claim as the board has it."""
        return self._report().line(key)

    def preview(self, text: str) -> ScrubPreview:
        """A text as it would be posted, and what was replaced in it."""
        report = self._report()
        return ScrubPreview(report.text(text).strip(), report.replaced)

    def post(
        self, wish: PostWish, reply_to: EntryId = NO_ENTRY, room_of_reply: str | None = None
    ) -> tuple[EntryDraft, str]:
        """The draft of a message, and what was replaced. Raises BoardRefused."""
        report = self._report()
        text = report.text(wish.text).strip()
        if not text:
            raise BoardRefused("The message is empty.", advice="Give a text.")
        _bounded(text, MAX_BODY_BYTES, "message")
        room = wish.room
        if not room and room_of_reply is not None:
            room = room_of_reply
        writer = self._counted_writer(wish.writer, report)
        draft = EntryDraft(
            text,
            _kind(wish.kind) if wish.kind else kind_of(text),
            self._room(room, report),
            writer.name,
            writer.program,
            reply_to,
            self._recipients(wish.to, text, report),
        )
        return draft, report.replaced

    def claim(self, wish: ClaimWish) -> tuple[EntryDraft, str]:
        """The draft of a claim, and what was replaced. Raises BoardRefused."""
        if wish.op not in OPERATIONS:
            raise BoardRefused(f"{wish.op[:40]!r} is nothing that is done to a claim.", advice=_ONE_OF + _OPERATIONS)
        if not 1 <= wish.seconds <= MAX_CLAIM_SECONDS:
            hours = MAX_CLAIM_SECONDS // 3600
            raise BoardRefused(f"A claim lasts 1 second to {hours} hours; it can be renewed before it ends.")
        report = self._report()
        key = report.line(wish.key)
        if not key:
            raise BoardRefused("The claim has no key.", advice="Name what is claimed, such as issue-123.")
        writer = self._counted_writer(wish.writer, report)
        draft = EntryDraft(
            "",
            EntryKind.CLAIM,
            self._room(wish.room, report),
            writer.name,
            writer.program,
            subject=_bounded(key, MAX_CLAIM_KEY_BYTES, "key of a claim"),
            seconds=wish.seconds,
        )
        return draft, report.replaced

    def _report(self) -> _DraftScrubber:
        """Names that the board shows anyway are not replaced: a text could not address them any more."""
        public = {name.casefold() for name in (self._writer, *self._public())}
        return _DraftScrubber(tuple((name, label) for name, label in self._names if name.casefold() not in public))

    def _counted_writer(self, writer: BoardWriter, report: _DraftScrubber) -> BoardWriter:
        report.name(writer.name)
        report.name(writer.program)
        return self.writer(writer)

    def _room(self, room: str, report: _DraftScrubber) -> str:
        cleaned = report.line(room)
        if cleaned == ALL_ROOMS:
            raise BoardRefused("A message is for one room.", advice="Name a room, or none for the common room.")
        return _bounded(cleaned, MAX_ROOM_BYTES, "name of a room")

    def _recipients(self, to: Iterable[str], text: str, report: _DraftScrubber) -> tuple[str, ...]:
        """The names that are given, then those in the text."""
        lines = [report.line(name.strip().removeprefix("@")) for name in to]
        given = different_names(name for name in lines if name)
        if len(given) > MAX_RECIPIENTS:
            raise BoardRefused(f"A message names at most {MAX_RECIPIENTS} recipients.", advice="Use all for everyone.")
        for name in given:
            _bounded(name, MAX_AUTHOR_NAME_BYTES, "name of a recipient")
        found = [name for name in mentions(text) if len(name.encode()) <= MAX_AUTHOR_NAME_BYTES]
        return different_names([*given, *found])[:MAX_RECIPIENTS]


class _DraftScrubber:
    """Scrubs the parts of one draft, and counts what it replaces."""

    def __init__(self, names: tuple[tuple[str, str], ...]) -> None:
        self._names = names
        self._counts: Counter[str] = Counter()

    @property
    def replaced(self) -> str:
        return Scrubbed("", tuple(sorted(self._counts.items()))).report

    def text(self, text: str) -> str:
        """Cleaned first: a character that is not seen would hide a secret from the scrubber."""
        return self._scrubbed(clean_text(_limited(text)), self._names)

    def line(self, text: str) -> str:
        """A room, key or recipient must be the same on all machines, whatever they and their users are called."""
        return self._scrubbed(clean_line(_limited(text)), ())

    def name(self, text: str) -> str:
        """The name that a writer chose may be the user's."""
        return self._scrubbed(clean_name(_limited(text)), ())

    def _scrubbed(self, text: str, names: tuple[tuple[str, str], ...]) -> str:
        scrubbed = scrub(text, names)
        for label, count in scrubbed.replaced:
            self._counts[label] += count
        return scrubbed.text


_ONE_OF: Final = "Use one of: "
_OPERATIONS: Final = ", ".join(OPERATIONS)
_KINDS: Final = {kind.name.lower(): kind for kind in TEXT_KINDS}


def _kind(text: str) -> EntryKind:
    kind = _KINDS.get(text.strip().lower())
    if kind is None:
        raise BoardRefused(f"{text[:40]!r} is no kind of message.", advice=_ONE_OF + ", ".join(_KINDS))
    return kind


def _limited(text: str) -> str:
    if len(text) > MAX_INPUT_LETTERS:
        raise BoardRefused(f"The text is longer than {MAX_BODY_BYTES} bytes.", advice="Post a summary of it.")
    return text


def _bounded(text: str, limit: int, what: str) -> str:
    if (size := len(text.encode())) > limit:
        raise BoardRefused(f"The {what} has {size} bytes; the limit is {limit}.", advice="Shorten it.")
    return text


def _shortened(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")
