"""Search in the messages of the blackboard: an index in memory, so that nothing of an erased text stays on the disk.

sqlite's FTS5 finds words, and parts of identifiers; where it is missing, each text is looked through. A match counts
the more the rarer its words are and the newer its message is. An index is used by one thread at a time.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from meshllm.core.board.entries import EntryId

# A message of this age counts half.
HALF_LIFE_SECONDS: Final = 12 * 3600
# Words of one search, and the letters of each: more of them are ignored.
MAX_TERMS: Final = 16
MAX_TERM_LETTERS: Final = 64
# The tokens of FTS5's trigram tokenizer.
_TRIGRAM: Final = 3
# A part of a word counts less than the word.
_PART_FACTOR: Final = 0.3
# Matches of a search that are ranked: ranking one takes about a microsecond.
_RANKED: Final = 3000
# What a match in the room, the kind or the name counts, where one in the text counts 1.
_FIELD_FACTOR: Final = 3.0


@dataclass(frozen=True, slots=True)
class SearchDocument:
    """A message as it is searched; `time` in unix seconds."""

    id: EntryId
    text: str
    room: str
    kind: str
    name: str
    time: float


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """What to look for: any of `terms`, in `room` (None: in all), not older than `since` (unix s), at most `limit`."""

    terms: tuple[str, ...]
    room: str | None
    since: float
    limit: int


class SearchIndex(Protocol):
    """An index of documents."""

    def add(self, document: SearchDocument) -> None:
        """Take a document, or replace it."""

    def remove(self, document: EntryId) -> None:
        """Drop a document."""

    def find(self, wanted: SearchTerms) -> list[EntryId]:
        """The documents that match, best first."""

    def close(self) -> None:
        """Free the memory."""


def terms_of(words: str) -> tuple[str, ...]:
    """The terms of a search, as typed; each once."""
    words = words.replace("\0", " ").encode(errors="replace").decode().casefold()
    found = (term[:MAX_TERM_LETTERS] for term in words.split())
    return tuple(dict.fromkeys(term for term in found if any(map(str.isalnum, term)) or len(term) > 1))[:MAX_TERMS]


def make_index(documents: Iterable[SearchDocument]) -> SearchIndex:
    """An index of the documents. Takes a while for many: about a second for 20,000."""
    documents = list(documents)
    try:
        return FullTextIndex(documents)
    except sqlite3.OperationalError:  # this sqlite has no FTS5
        return ScanIndex(documents)


class ScanIndex:
    """Looks through all texts. The score is the number of terms that occur, and the age."""

    def __init__(self, documents: Iterable[SearchDocument]) -> None:
        self._documents: dict[EntryId, tuple[SearchDocument, str, str]] = {}
        for document in documents:
            self.add(document)

    def add(self, document: SearchDocument) -> None:
        """See `SearchIndex`."""
        fields = f"{document.room}\n{document.name}".casefold()
        self._documents[document.id] = (document, document.text.casefold(), fields)

    def remove(self, document: EntryId) -> None:
        """See `SearchIndex`."""
        self._documents.pop(document, None)

    def find(self, wanted: SearchTerms) -> list[EntryId]:
        """See `SearchIndex`."""
        found = []
        for document, text, fields in self._documents.values():
            if document.time < wanted.since or (wanted.room is not None and document.room != wanted.room):
                continue
            score = sum(
                (term in text) + _FIELD_FACTOR * (term in fields or term == document.kind) for term in wanted.terms
            )
            if score:
                found.append((math.log2(score) + document.time / HALF_LIFE_SECONDS, document.id))
        found.sort(reverse=True)
        return [item for _, item in found[: wanted.limit]]

    def close(self) -> None:
        """See `SearchIndex`."""
        self._documents.clear()


_TABLES: Final = """
CREATE TABLE docs (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, text, room, kind, name);
CREATE TABLE facts (number INTEGER PRIMARY KEY, id BLOB NOT NULL, room TEXT NOT NULL, time REAL NOT NULL,
  weight REAL NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(text, room, kind, name, content='docs', content_rowid='number',
  tokenize="unicode61 tokenchars '_'");
"""
_PARTS: Final = """
CREATE VIRTUAL TABLE parts USING fts5(text, room, name, content='docs', content_rowid='number', tokenize='trigram');
"""
# bm25 is negative, the best match the lowest. Rows have numbers in the order of their times.
_FIND: Final = """
SELECT facts.id, bm25({table}, {weights}) * facts.weight
FROM {table} JOIN facts ON facts.number = {table}.rowid
WHERE {table} MATCH ? AND facts.time >= ? AND (? IS NULL OR facts.room = ?) ORDER BY {table}.rowid DESC LIMIT ?
"""
# Words of Chinese and Japanese are neither separated nor long enough for trigrams.
_FIND_SHORT: Final = """
SELECT facts.id, -facts.weight FROM docs JOIN facts USING (number)
WHERE instr(docs.text, ?) AND facts.time >= ? AND (? IS NULL OR facts.room = ?) ORDER BY number DESC LIMIT ?
"""
_FIND_WORDS: Final = _FIND.format(table="words", weights=f"1, {_FIELD_FACTOR}, {_FIELD_FACTOR}, {_FIELD_FACTOR}")
_FIND_PARTS: Final = _FIND.format(table="parts", weights=f"1, {_FIELD_FACTOR}, {_FIELD_FACTOR}")


class FullTextIndex:
    """FTS5: words (bm25), and parts of them where few words match. Raises sqlite3.OperationalError where sqlite lacks
    it."""

    def __init__(self, documents: Iterable[SearchDocument]) -> None:
        documents = list(documents)
        # Weights relate to the newest message of the beginning; only their ratios count.
        self._base = max((document.time for document in documents), default=0.0)
        self._numbers = 0
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self._connection.executescript(_TABLES)
        except sqlite3.Error:
            self._connection.close()
            raise
        self._has_parts = self._made(_PARTS)
        self._connection.execute("BEGIN")
        for document in sorted(documents, key=lambda document: document.time):
            self._insert(document)
        for table in self._tables:
            self._connection.execute(f"INSERT INTO {table}({table}) VALUES ('rebuild')")
        self._connection.execute("COMMIT")

    def _made(self, tables: str) -> bool:
        try:
            self._connection.executescript(tables)
        except sqlite3.OperationalError:  # the trigram tokenizer came with sqlite 3.34
            return False
        return True

    @property
    def _tables(self) -> tuple[str, ...]:
        return ("words", "parts") if self._has_parts else ("words",)

    def add(self, document: SearchDocument) -> None:
        """See `SearchIndex`."""
        self.remove(document.id)
        number = self._insert(document)
        fields = (document.text, document.room, document.kind, document.name)
        execute = self._connection.execute
        execute("INSERT INTO words(rowid, text, room, kind, name) VALUES (?, ?, ?, ?, ?)", (number, *fields))
        if self._has_parts:
            parts = (number, document.text, document.room, document.name)
            execute("INSERT INTO parts(rowid, text, room, name) VALUES (?, ?, ?, ?)", parts)

    def _insert(self, document: SearchDocument) -> int:
        self._numbers += 1
        exponent = max(-1000.0, min(1000.0, (document.time - self._base) / HALF_LIFE_SECONDS))
        facts = (self._numbers, document.id, document.room, document.time, 2.0**exponent)
        self._connection.execute("INSERT INTO facts VALUES (?, ?, ?, ?, ?)", facts)
        fields = (document.text, document.room, document.kind, document.name)
        self._connection.execute("INSERT INTO docs VALUES (?, ?, ?, ?, ?, ?)", (self._numbers, document.id, *fields))
        return self._numbers

    def remove(self, document: EntryId) -> None:
        """See `SearchIndex`."""
        execute = self._connection.execute
        row = execute("SELECT number, text, room, kind, name FROM docs WHERE id = ?", (document,)).fetchone()
        if row is None:
            return
        number, text, room, kind, name = row
        execute(
            "INSERT INTO words(words, rowid, text, room, kind, name) VALUES ('delete', ?, ?, ?, ?, ?)",
            (number, text, room, kind, name),
        )
        if self._has_parts:
            execute(
                "INSERT INTO parts(parts, rowid, text, room, name) VALUES ('delete', ?, ?, ?, ?)",
                (number, text, room, name),
            )
        execute("DELETE FROM docs WHERE number = ?", (number,))
        execute("DELETE FROM facts WHERE number = ?", (number,))

    def find(self, wanted: SearchTerms) -> list[EntryId]:
        """See `SearchIndex`."""
        scores = self._scores(_FIND_WORDS, wanted.terms, wanted)
        if self._has_parts and len(scores) < wanted.limit:
            terms = [term for term in wanted.terms if len(term) >= _TRIGRAM]
            for item, score in self._scores(_FIND_PARTS, terms, wanted).items():
                scores[item] = scores.get(item, 0.0) + _PART_FACTOR * score
        if len(scores) < wanted.limit:
            short = [term for term in wanted.terms if 1 < len(term) < _TRIGRAM and not term.isascii()]
            for item, score in self._scores(_FIND_SHORT, short, wanted, quoted=False).items():
                scores.setdefault(item, score)
        return sorted(scores, key=lambda item: (scores[item], item))[: wanted.limit]

    def _scores(
        self, query: str, terms: Sequence[str], wanted: SearchTerms, *, quoted: bool = True
    ) -> dict[EntryId, float]:
        """The sum of each document's scores for the terms. Of a term that is in most messages the newest count."""
        scores: dict[EntryId, float] = {}
        for term in terms:
            text = '"' + term.replace('"', '""') + '"' if quoted else term
            values = (text, wanted.since, wanted.room, wanted.room, max(wanted.limit, _RANKED // len(terms)))
            for item, score in self._connection.execute(query, values):
                scores[item] = scores.get(item, 0.0) + score
        return scores

    def close(self) -> None:
        """See `SearchIndex`."""
        self._connection.close()
