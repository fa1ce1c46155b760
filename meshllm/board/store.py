"""The blackboard on the disk: `board.db` in the home, an sqlite file that only the daemon opens. Blocking.

Invariants: an own entry is saved together with its number and time in one transaction, so that neither is used again
after a crash; `save_post` and `apply` have happened when they return, and not at all if they raise. An erased or
removed text is in none of the files after `clean`. The file takes at most MAX_FILE_BYTES. A store is used by one thread
at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from meshllm.core.board.entries import MAX_BYTES, EntryHeader, EntryId, SignedEntry, entry_id
from meshllm.core.ids import NodeId
from meshllm.errors import MeshError

log = logging.getLogger(__name__)

BOARD_FILE: Final = "board.db"
# Where a file is moved that is damaged or not a board's. It is deleted once its texts would have expired.
ASIDE_SUFFIX: Final = ".damaged"
ASIDE_SECONDS: Final = 48 * 3600
# Files that sqlite keeps beside it.
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
# sqlite's `application_id`, and the version of the tables.
APPLICATION: Final = 0x4D4C4244
VERSION: Final = 1
PAGE_BYTES: Final = 4096
# The board's bound is MAX_BYTES of headers and texts; pages are part empty, and changes are written before the room of
# old entries is free.
MAX_FILE_BYTES: Final = 3 * MAX_BYTES
# The write-ahead log is copied into the file and emptied at this size.
WAL_BYTES: Final = 1 << 20
# Readers' places, and how long one is kept after its last use.
MAX_CURSORS: Final = 1000
CURSOR_SECONDS: Final = 48 * 3600

DecodeHeader = Callable[[bytes], EntryHeader]


class StoreFailed(Exception):
    """The disk did not take a change; nothing of it was saved. The message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class StoredBoard:
    """What a store held when it was opened: see `BoardOpened`. `arrivals`: the number of each entry in the order in
    which this node's readers got them, for those that had one; `last_arrival`: the highest ever given."""

    epoch: int
    last_seq: int = 0
    last_time: int = 0
    entries: tuple[SignedEntry, ...] = ()
    certificates: tuple[bytes, ...] = ()
    arrivals: Mapping[EntryId, int] = field(default_factory=dict)
    last_arrival: int = 0
    cursors: Mapping[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(slots=True)
class StoreChange:
    """What to save at once. `added`: entries with their arrivals; `cursors`: places of readers, and when (unix s)."""

    added: dict[EntryId, tuple[SignedEntry, int]] = field(default_factory=dict)
    erased: set[EntryId] = field(default_factory=set)
    removed: set[EntryId] = field(default_factory=set)
    certificates: dict[bytes, None] = field(default_factory=dict)
    cursors: dict[str, tuple[int, float]] = field(default_factory=dict)
    last_arrival: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.erased or self.removed or self.certificates or self.cursors)

    def merge(self, later: StoreChange) -> None:
        """Add what happened later. An entry that was removed before it was saved is not saved."""
        self.removed -= later.added.keys()
        self.added |= later.added
        for item in later.erased | later.removed:
            self.added.pop(item, None) if item in later.removed else self._erase(item)
        self.erased |= later.erased
        self.removed |= later.removed
        self.certificates |= later.certificates
        self.cursors |= later.cursors
        self.last_arrival = max(self.last_arrival, later.last_arrival)

    def _erase(self, item: EntryId) -> None:
        if (held := self.added.get(item)) is not None:
            self.added[item] = (_without_body(held[0]), held[1])


class EntryStore(Protocol):
    """Where the entries are kept. All methods block; `open` comes first."""

    unclean: bool

    def open(self, author: NodeId, unix: float) -> StoredBoard:
        """Read all. `author`: this node; `unix`: the wall clock. Raises StoreFailed."""

    def save_post(self, entry: SignedEntry) -> None:
        """Save an own entry with its epoch, number and time. Raises StoreFailed: it is not saved then."""

    def apply(self, change: StoreChange) -> None:
        """Save a change. Raises StoreFailed: nothing of it is saved then."""

    def clean(self) -> None:
        """Leave nothing of erased and removed texts in the files. Raises StoreFailed."""

    def close(self) -> None:
        """Idempotent."""


class MemoryStore:
    """Keeps nothing: a node that starts again gets the entries from its peers, and numbers its own in a new epoch."""

    unclean = False

    def __init__(self, path: Path | None = None) -> None:
        """`path`: of a `SqliteStore` of an earlier run, which is deleted: nothing would remove its old texts."""
        self._path = path

    def open(self, author: NodeId, unix: float) -> StoredBoard:
        """See `EntryStore`."""
        if self._path is not None:
            try:
                for suffix in ("", *_COMPANIONS, ASIDE_SUFFIX):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            except OSError as error:
                raise StoreFailed(f"{self._path} cannot be deleted: {_reason(error)}.") from error
        return StoredBoard(epoch=int(unix * 1000))

    def save_post(self, entry: SignedEntry) -> None:
        """See `EntryStore`."""

    def apply(self, change: StoreChange) -> None:
        """See `EntryStore`."""

    def clean(self) -> None:
        """See `EntryStore`."""

    def close(self) -> None:
        """See `EntryStore`."""


_TABLES: Final = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE entries (
  number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, header BLOB NOT NULL, signature BLOB NOT NULL, body TEXT,
  first_seen INTEGER NOT NULL, arrival INTEGER);
CREATE TABLE authors (number INTEGER PRIMARY KEY, certificate BLOB NOT NULL UNIQUE);
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE cursors (reader TEXT PRIMARY KEY, arrival INTEGER NOT NULL, seen REAL NOT NULL) WITHOUT ROWID;
"""
_SAVE_ENTRY: Final = (
    "INSERT INTO entries (id, header, signature, body, first_seen, arrival) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET body = excluded.body, arrival = coalesce(excluded.arrival, arrival)"
)
_SAVE_META: Final = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_SAVE_CURSOR: Final = (
    "INSERT INTO cursors VALUES (?, ?, ?)"
    " ON CONFLICT (reader) DO UPDATE SET arrival = excluded.arrival, seen = excluded.seen"
)
# Results of sqlite that say that the file itself is bad.
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _DamagedFile(Exception):
    """The file is damaged, or belongs to another program or a newer version; the message says which."""


class SqliteStore:
    """Keeps the board in a file. See `EntryStore`; `unclean` is set while `clean` has something to do."""

    def __init__(self, path: Path, decode: DecodeHeader, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """`decode` reads the bytes of a header and raises a MeshError if they are none."""
        self._path = path
        self._decode = decode
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self.unclean = False

    # -- opening

    def open(self, author: NodeId, unix: float) -> StoredBoard:
        """Read all. A damaged or foreign file is moved aside with a warning, and the numbering begins a new epoch, as
        it does for another `author`. Raises StoreFailed if the disk does not let it."""
        self.close()
        aside = self._path.with_name(self._path.name + ASIDE_SUFFIX)
        try:
            _delete_if_old(aside, unix)
            try:
                return self._read(author, unix)
            except _DamagedFile as error:
                self.close()
                self._move_aside(aside, unix)
                log.warning("%s %s; it was moved to %s and a new one is begun.", self._path, error, aside.name)
            return self._read(author, unix)
        except (_DamagedFile, sqlite3.Error, OSError) as error:
            self.close()
            raise StoreFailed(f"{self._path} cannot be opened: {_reason(error)}.") from error

    def _read(self, author: NodeId, unix: float) -> StoredBoard:
        """Raises _DamagedFile, sqlite3.Error, OSError."""
        if not self._path.exists():
            # Left by a file that was deleted by hand: not of this one.
            for suffix in _COMPANIONS:
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            if self._path.is_symlink() or self._path.is_dir():
                raise _DamagedFile("is no file") from error
            raise
        with contextlib.suppress(AttributeError):
            os.fchmod(descriptor, 0o600)
        size = os.fstat(descriptor).st_size
        os.close(descriptor)
        if size > max(self._max_bytes, MAX_FILE_BYTES):
            raise _DamagedFile("is larger than a blackboard")
        try:
            self._connect()
            return self._load(author, unix)
        except sqlite3.Error as error:
            if _code(error) & 0xFF in _DAMAGE or isinstance(error, sqlite3.ProgrammingError):
                raise _DamagedFile("is damaged") from error
            if isinstance(error, sqlite3.OperationalError) and _code(error) & 0xFF == sqlite3.SQLITE_ERROR:
                raise _DamagedFile("lacks tables or columns") from error
            raise

    def _connect(self) -> None:
        connection = sqlite3.connect(self._path, timeout=2.0, isolation_level=None, check_same_thread=False)
        self._connection = connection
        # The home belongs to one daemon. Without shared memory the file works on any file system.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if pages and (application, version) != (APPLICATION, VERSION):
            raise _DamagedFile("is not a blackboard of this version")
        connection.execute("PRAGMA journal_mode = WAL")
        # An acknowledged post survives a power failure.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA max_page_count = {self._max_bytes // PAGE_BYTES}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if not pages:
            connection.executescript(f"BEGIN;{_TABLES}COMMIT;")
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise _DamagedFile("is damaged")

    def _load(self, author: NodeId, unix: float) -> StoredBoard:
        connection = self._open_connection()
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        if meta and (meta.keys() != _new_meta(author, 0).keys() or not _are_numbers(meta)):
            raise _DamagedFile("is damaged")
        if meta.get("author") != author:
            with self._transaction() as transaction:
                # Later than that of before, whatever the clock says: a new epoch is a later one.
                epoch = max(int(unix * 1000), meta.get("epoch", 0) + 1)
                fresh = _new_meta(author, epoch) | {"last_arrival": meta.get("last_arrival", 0)}
                transaction.executemany(_SAVE_META, fresh.items())
                meta = fresh
        with self._transaction() as transaction:
            transaction.execute("DELETE FROM cursors WHERE seen < ?", (unix - CURSOR_SECONDS,))
        entries, arrivals = self._load_entries()
        certificates = [
            certificate for (certificate,) in connection.execute("SELECT certificate FROM authors ORDER BY number")
        ]
        return StoredBoard(
            meta["epoch"],
            meta["last_seq"],
            meta["last_time"],
            tuple(entries),
            tuple(item for item in certificates if isinstance(item, bytes)),
            arrivals,
            max([meta["last_arrival"], *arrivals.values()]),
            {
                reader: (arrival, seen)
                for reader, arrival, seen in connection.execute("SELECT reader, arrival, seen FROM cursors")
                if isinstance(reader, str) and isinstance(arrival, int) and isinstance(seen, float)
            },
        )

    def _load_entries(self) -> tuple[list[SignedEntry], dict[EntryId, int]]:
        entries, arrivals, bad = [], {}, []
        for number, *row in self._open_connection().execute(
            "SELECT number, id, header, signature, body, first_seen, arrival FROM entries ORDER BY number"
        ):
            entry = self._entry(row)
            if entry is None:
                bad.append((number,))
                continue
            entries.append(entry)
            if isinstance(row[5], int):
                arrivals[entry.id] = row[5]
        if bad:
            log.warning("%s: %d messages are damaged and were removed", self._path, len(bad))
            with self._transaction() as transaction:
                transaction.executemany("DELETE FROM entries WHERE number = ?", bad)
            self.unclean = True
        return entries, arrivals

    def _entry(self, row: list[object]) -> SignedEntry | None:
        """An entry of a row; None if it is damaged. The core verifies signature and text."""
        item, data, signature, body, first_seen, _ = row
        if not (isinstance(item, bytes) and isinstance(data, bytes) and isinstance(signature, bytes)):
            return None
        if not (body is None or isinstance(body, str)) or not isinstance(first_seen, int):
            return None
        try:
            header = self._decode(data)
        except MeshError:
            return None
        if (own := entry_id(data)) != item:
            return None
        return SignedEntry(header, data, signature, own, body, first_seen)

    def _move_aside(self, aside: Path, unix: float) -> None:
        if aside.is_dir() and not aside.is_symlink():
            aside = aside.with_name(f"{aside.name}-{int(unix)}")
        self._path.replace(aside)
        for suffix in _COMPANIONS:
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        if aside.is_file() and not aside.is_symlink():
            os.utime(aside, (unix, unix))

    # -- saving

    def save_post(self, entry: SignedEntry) -> None:
        """See `EntryStore`."""
        header = entry.header
        with self._saving() as transaction:
            transaction.execute(_SAVE_ENTRY, (*_row(entry), None))
            own = {"epoch": header.epoch, "last_seq": header.seq, "last_time": header.time}
            transaction.executemany(_SAVE_META, own.items())

    def apply(self, change: StoreChange) -> None:
        """See `EntryStore`. What is removed goes first: a full disk can be emptied."""
        with self._saving() as transaction:
            removed, erased = ([(item,) for item in sorted(ids)] for ids in (change.removed, change.erased))
            transaction.executemany("DELETE FROM entries WHERE id = ?", removed)
            transaction.executemany("UPDATE entries SET body = NULL WHERE id = ?", erased)
            transaction.executemany(
                _SAVE_ENTRY,
                [
                    (*_row(entry if item not in change.erased else _without_body(entry)), arrival)
                    for item, (entry, arrival) in change.added.items()
                    if item not in change.removed
                ],
            )
            if change.certificates:
                self._save_certificates(transaction, change.certificates)
            if change.last_arrival:
                transaction.execute(_SAVE_META, ("last_arrival", change.last_arrival))
            if change.cursors:
                transaction.executemany(
                    _SAVE_CURSOR, [(reader, arrival, seen) for reader, (arrival, seen) in change.cursors.items()]
                )
                transaction.execute(
                    "DELETE FROM cursors WHERE reader NOT IN (SELECT reader FROM cursors ORDER BY seen DESC LIMIT ?)",
                    (MAX_CURSORS,),
                )
        self.unclean = self.unclean or bool(change.erased or change.removed)

    def _save_certificates(self, transaction: sqlite3.Connection, certificates: Iterable[bytes]) -> None:
        """The log bounds its authors; the newest certificates are kept here."""
        for certificate in certificates:
            transaction.execute("INSERT OR IGNORE INTO authors (certificate) VALUES (?)", (certificate,))
        transaction.execute(
            "DELETE FROM authors WHERE number NOT IN (SELECT number FROM authors ORDER BY number DESC LIMIT ?)",
            (_MAX_CERTIFICATES,),
        )

    def clean(self) -> None:
        """See `EntryStore`. `secure_delete` overwrites a deleted row, but not the copies that stay in a page when
        sqlite moves rows to another one: the file is written again without them."""
        if self._connection is None or not self.unclean:
            return
        try:
            self._connection.execute("VACUUM")
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise StoreFailed(f"{self._path} cannot be written: {_reason(error)}.") from error
        if busy:
            raise StoreFailed(f"{self._path} is read by another program.")
        self.unclean = False

    def close(self) -> None:
        """See `EntryStore`. Nothing of erased texts stays behind, if the disk lets it."""
        connection = self._connection
        if connection is None:
            return
        if self.unclean:
            try:
                self.clean()
            except StoreFailed as error:
                log.warning("%s", error)
        self._connection = None
        with contextlib.suppress(sqlite3.Error):
            connection.close()

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreFailed(f"{self._path} is not open.")
        return self._connection

    @contextlib.contextmanager
    def _saving(self) -> Iterator[sqlite3.Connection]:
        """A transaction; what fails is a StoreFailed."""
        try:
            with self._transaction() as transaction:
                yield transaction
        except sqlite3.Error as error:
            raise StoreFailed(f"{self._path} cannot be written: {_reason(error)}.") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._open_connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # sqlite may have rolled back by itself.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


# Certificates are small; each author of the board needs its own.
_MAX_CERTIFICATES: Final = 20_000


def _new_meta(author: NodeId, epoch: int) -> dict[str, object]:
    return {"author": author, "epoch": epoch, "last_seq": 0, "last_time": 0, "last_arrival": 0}


def _are_numbers(meta: Mapping[str, object]) -> bool:
    return all(isinstance(value, int) and 0 <= value < 1 << 62 for name, value in meta.items() if name != "author")


def _row(entry: SignedEntry) -> tuple[object, ...]:
    return entry.id, entry.data, entry.signature, entry.body, entry.first_seen


def _without_body(entry: SignedEntry) -> SignedEntry:
    return SignedEntry(entry.header, entry.data, entry.signature, entry.id, None, entry.first_seen)


def _delete_if_old(aside: Path, unix: float) -> None:
    """Delete a file that was moved aside so long ago that its texts have expired."""
    with contextlib.suppress(OSError):
        if not aside.is_symlink() and aside.is_file() and aside.stat().st_mtime < unix - ASIDE_SECONDS:
            aside.unlink()


def _code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", 0)
    return code if isinstance(code, int) else 0


def _reason(error: BaseException) -> str:
    if isinstance(error, sqlite3.Error) and _code(error) & 0xFF == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
