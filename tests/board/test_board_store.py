"""The board on the disk: real sqlite files, damaged ones, full disks, and what is left of erased texts."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from meshllm.board.store import (
    ASIDE_SECONDS,
    CURSOR_SECONDS,
    MAX_CURSORS,
    MAX_FILE_BYTES,
    MemoryStore,
    SqliteStore,
    StoreChange,
    StoredBoard,
    StoreFailed,
)
from meshllm.core.board.entries import MAX_AUTHOR_ENTRIES, MAX_ENTRIES, EntryId, SignedEntry
from meshllm.wire.mesh.board import decode_header
from tests.board.board_samples import START, SampleNode, node, sample_text

UNIX = START / 1000
ME = node(1)


def store_at(folder: Path, **options: int) -> SqliteStore:
    """The store of a home."""
    return SqliteStore(folder / "board.db", decode_header, **options)


def opened(folder: Path, unix: float = UNIX) -> tuple[SqliteStore, StoredBoard]:
    """The store of a home, opened."""
    store = store_at(folder)
    return store, store.open(ME, unix)


def added(*entries: SignedEntry, first: int = 1) -> StoreChange:
    """A change that adds entries."""
    change = {entry.id: (entry, number) for number, entry in enumerate(entries, first)}
    return StoreChange(change, last_arrival=first + len(entries) - 1)


def raw_bytes(folder: Path) -> bytes:
    """All bytes of the files of a home."""
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    me, other = SampleNode(1), SampleNode(2)
    own, theirs, bare = me.write(START, "mine"), other.write(START, "theirs ü"), other.write(START + 1, "gone")
    bare = replace(bare, body=None)
    store, fresh = opened(tmp_path)
    assert (fresh.epoch, fresh.last_seq, fresh.last_time, fresh.entries) == (START, 0, 0, ())
    store.save_post(own)
    change = added(own, theirs, bare)
    change.certificates = {b"certificate": None}
    change.cursors = {"reader": (2, UNIX)}
    store.apply(change)
    store.close()
    _, read = opened(tmp_path, UNIX + 60)
    assert (read.epoch, read.last_seq, read.last_time) == (START, 1, START)
    assert read.entries == (own, theirs, bare)
    assert read.arrivals == {own.id: 1, theirs.id: 2, bare.id: 3}
    assert (read.last_arrival, read.certificates, read.cursors) == (3, (b"certificate",), {"reader": (2, UNIX)})


def test_file_is_private_and_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        store, _ = opened(tmp_path)
        store.save_post(SampleNode(1).write(START, "text"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(previous)
    assert modes == {"board.db": 0o600, "board.db-wal": 0o600}
    (tmp_path / "board.db").chmod(0o644)
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["board.db"]
    opened(tmp_path)
    assert stat.S_IMODE((tmp_path / "board.db").stat().st_mode) == 0o600


def test_post_survives_without_close(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    entry = SampleNode(1).write(START, "text")
    store.save_post(entry)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("board.db*"):  # as a crash leaves them
        (copy / path.name).write_bytes(path.read_bytes())
    _, read = opened(copy)
    assert (read.entries, read.last_seq, read.arrivals) == ((entry,), 1, {})


def test_another_author_numbers_in_a_later_epoch(tmp_path: Path) -> None:
    store, first = opened(tmp_path)
    store.save_post(SampleNode(1).write(START, "text"))
    store.close()
    other = store_at(tmp_path).open(node(2), UNIX - 3600)  # the clock was set back
    assert other.epoch > first.epoch
    assert (other.last_seq, other.last_time, len(other.entries)) == (0, 0, 1)


@pytest.mark.parametrize("remove", [False, True])
def test_text_is_in_no_file_after_it_was_erased_or_removed(tmp_path: Path, remove: bool) -> None:
    """Also the copies that sqlite leaves in a page when it moves rows to another page."""
    rng = Random(2)  # without VACUUM a copy of a removed text is left
    author = SampleNode(2)
    store, _ = opened(tmp_path)
    kept: list[SignedEntry] = []
    gone: list[bytes] = []
    number = 0
    for _ in range(60):
        batch = []
        for _ in range(rng.randint(1, 20)):
            number += 1
            text = f"<{number:06}>" + "x" * rng.choice([400, 700, 1000]) + f"<{number:06}/>"
            batch.append(author.write(START + number, text))
        store.apply(added(*batch, first=number))
        kept += batch
        victims = rng.sample(kept, len(kept) // 8)
        kept = [entry for entry in kept if entry not in victims]
        ids = {entry.id for entry in victims}
        store.apply(StoreChange(removed=ids) if remove else StoreChange(erased=ids))
        gone += [str(entry.body)[-9:].encode() for entry in victims] + [
            str(entry.body)[:8].encode() for entry in victims
        ]
    assert store.unclean
    store.clean()
    assert not store.unclean
    raw = raw_bytes(tmp_path)
    assert [mark for mark in gone if mark in raw] == []
    assert all(str(entry.body).encode()[:8] in raw for entry in kept)
    assert not (tmp_path / "board.db-wal").stat().st_size


def test_close_leaves_nothing_of_erased_texts(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    entry = SampleNode(1).write(START, "a text to forget")
    store.save_post(entry)
    store.apply(StoreChange(erased={entry.id}))
    store.close()
    assert b"to forget" not in raw_bytes(tmp_path)
    _, read = opened(tmp_path)
    assert read.entries == (replace(entry, body=None),)


def test_full_disk_refuses_the_post_and_loses_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path, max_bytes=40 * 4096)
    store.open(ME, UNIX)
    author = SampleNode(1)
    saved: list[SignedEntry] = []

    def fill() -> None:
        for _ in range(100):
            entry = author.write(START, "x" * 4000)
            store.save_post(entry)
            saved.append(entry)

    with pytest.raises(StoreFailed, match="the disk is full"):
        fill()
    assert len(saved) > 10
    with pytest.raises(StoreFailed):
        store.apply(added(SampleNode(2).write(START, "y" * 4000), SampleNode(3).write(START, "z" * 4000)))
    # What goes makes room, in the same change as what comes.
    store.apply(replace(added(SampleNode(2).write(START, "y" * 100)), removed={saved[0].id, saved[1].id}))
    store.close()
    _, read = opened(tmp_path)
    assert read.last_seq == len(saved)
    assert {entry.body for entry in read.entries} == {"x" * 4000, "y" * 100}
    assert len(read.entries) == len(saved) - 1


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def _of_another_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (text)")
        connection.execute("INSERT INTO theirs VALUES ('precious')")
    connection.close()


def _of_a_newer_version(path: Path) -> None:
    store, _ = opened(path.parent)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _overwritten(path: Path) -> None:
    store, _ = opened(path.parent)
    store.apply(added(*(SampleNode(2).write(START, "x" * 3000) for _ in range(50))))
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(40_000))


def _cut(path: Path) -> None:
    _overwritten(path)
    os.truncate(path, 5000)


def _without_tables(path: Path) -> None:
    store, _ = opened(path.parent)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE entries")
    connection.close()


def _with_odd_values(path: Path) -> None:
    store, _ = opened(path.parent)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = 'many' WHERE name = 'last_seq'")
    connection.close()


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    "make",
    [
        _not_a_database, _of_another_program, _of_a_newer_version, _overwritten, _cut, _without_tables,
        _with_odd_values, _link, Path.mkdir,
    ],
)  # fmt: skip
def test_damaged_or_foreign_file_is_moved_aside(tmp_path: Path, make: object, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "board.db"
    make(path)  # type: ignore[operator]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        store, fresh = opened(tmp_path, UNIX + 10)
    assert (fresh.epoch, fresh.last_seq, fresh.entries) == (START + 10_000, 0, ())
    assert ["moved to board.db.damaged" in record.getMessage() for record in caplog.records] == [True]
    assert os.path.lexists(tmp_path / "board.db.damaged")
    entry = SampleNode(1).write(START, "text")
    store.save_post(entry)
    store.close()
    _, read = opened(tmp_path)
    assert read.entries == (entry,)


def test_file_of_another_program_is_kept_whole_until_its_texts_would_have_expired(tmp_path: Path) -> None:
    _of_another_program(tmp_path / "board.db")
    store, _ = opened(tmp_path)
    store.close()
    connection = sqlite3.connect(tmp_path / "board.db.damaged")
    assert connection.execute("SELECT text FROM theirs").fetchone() == ("precious",)
    connection.close()
    opened(tmp_path, UNIX + ASIDE_SECONDS - 1)[0].close()
    assert (tmp_path / "board.db.damaged").exists()
    opened(tmp_path, UNIX + ASIDE_SECONDS + 1)[0].close()
    assert not (tmp_path / "board.db.damaged").exists()


def test_damaged_rows_are_removed_and_the_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [SampleNode(number).write(START, f"text {number}") for number in range(2, 8)]
    store, _ = opened(tmp_path)
    store.apply(added(*entries))
    store.close()
    with sqlite3.connect(tmp_path / "board.db") as connection:
        connection.execute("UPDATE entries SET header = x'00' WHERE number = 1")
        connection.execute("UPDATE entries SET header = (SELECT header FROM entries WHERE number = 5) WHERE number = 2")
        connection.execute("UPDATE entries SET body = x'ff' WHERE number = 3")
        connection.execute("UPDATE entries SET first_seen = 'soon' WHERE number = 4")
    connection.close()
    _, read = opened(tmp_path)
    assert read.entries == tuple(entries[4:])
    assert "4 messages are damaged" in caplog.text
    with sqlite3.connect(tmp_path / "board.db", timeout=0) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("SELECT * FROM entries").fetchall()  # the daemon alone has it open
    connection.close()


def test_file_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    first, _ = opened(tmp_path)
    entry = SampleNode(1).write(START, "text")
    first.save_post(entry)
    with pytest.raises(StoreFailed, match="locked"):
        opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board.db", "board.db-wal"]
    first.close()
    assert opened(tmp_path)[1].entries == (entry,)


def test_home_that_does_not_exist_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=r"missing.*board\.db cannot be opened: No such file"):
        opened(tmp_path / "missing")


def test_cursors_expire_and_are_bounded(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    store.apply(StoreChange(cursors={f"reader {number}": (number, UNIX + number) for number in range(MAX_CURSORS + 5)}))
    store.close()
    store, read = opened(tmp_path)
    assert len(read.cursors) == MAX_CURSORS
    assert "reader 4" not in read.cursors
    store.close()
    _, read = opened(tmp_path, UNIX + CURSOR_SECONDS + 10)
    assert min(int(reader.split()[1]) for reader in read.cursors) == 10


def test_changes_merge_into_what_they_come_to() -> None:
    one, two, three = (SampleNode(2).write(START + number, f"text {number}") for number in range(3))
    change = added(one, two)
    change.merge(StoreChange(erased={one.id}, removed={two.id}, certificates={b"c": None}))
    change.merge(added(three, first=3))
    assert change.added == {one.id: (replace(one, body=None), 1), three.id: (three, 3)}
    assert (change.removed, change.last_arrival) == ({two.id}, 3)
    change.merge(added(two, first=4))
    assert change.removed == set()
    assert not StoreChange()


def test_entry_whose_text_came_later_is_filled(tmp_path: Path) -> None:
    entry = SampleNode(2).write(START, "text")
    store, _ = opened(tmp_path)
    store.apply(added(replace(entry, body=None)))
    store.apply(added(entry, first=2))
    store.close()
    _, read = opened(tmp_path)
    assert (read.entries, read.arrivals) == ((entry,), {entry.id: 2})


@pytest.mark.slow
def test_flood_keeps_the_file_bounded(tmp_path: Path) -> None:
    """100,000 entries of one author, of which the log keeps some hundred: those of others are all there."""
    rng = Random(3)
    others = [SampleNode(number).write(START, sample_text(rng)) for number in range(10, 60)]
    store, _ = opened(tmp_path)
    store.apply(added(*others))
    flooder, held, largest, number = SampleNode(2), list[EntryId](), 0, len(others)
    text = "y" * 1400
    for _ in range(200):
        batch = [flooder.write(START + number, text) for _ in range(500)]
        change = added(*batch, first=number + 1)
        number += len(batch)
        held += [entry.id for entry in batch]
        change.removed = set(held[:-MAX_AUTHOR_ENTRIES])
        held = held[-MAX_AUTHOR_ENTRIES:]
        store.apply(change)
        largest = max(largest, sum(path.stat().st_size for path in tmp_path.iterdir()))
    store.close()
    assert largest < 8 << 20
    _, read = opened(tmp_path)
    assert len(read.entries) == len(others) + MAX_AUTHOR_ENTRIES
    assert set(others) <= set(read.entries)


@pytest.mark.slow
def test_board_of_the_largest_size_fits_into_the_file(tmp_path: Path) -> None:
    """Headers and texts of MAX_BYTES, or MAX_ENTRIES small ones, and while a third of them is replaced."""
    store, _ = opened(tmp_path)
    author, held, number = SampleNode(2), list[EntryId](), 0
    for _ in range(30):
        batch = [author.write(START + number + each, "z" * 480) for each in range(1000)]
        change = added(*batch, first=number + 1)
        number += len(batch)
        held += [entry.id for entry in batch]
        change.removed = set(held[:-MAX_ENTRIES])
        held = held[-MAX_ENTRIES:]
        store.apply(change)
    store.clean()
    assert (tmp_path / "board.db").stat().st_size < MAX_FILE_BYTES
    store.close()


def test_memory_store_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = MemoryStore()
    assert store.open(ME, UNIX) == StoredBoard(START)
    store.save_post(SampleNode(1).write(START, "text"))
    store.apply(added(SampleNode(2).write(START, "text")))
    store.clean()
    store.close()
    assert store.open(ME, UNIX + 1) == StoredBoard(START + 1000)
    assert list(tmp_path.iterdir()) == []


def test_memory_store_deletes_what_an_earlier_run_kept(tmp_path: Path) -> None:
    _not_a_database(tmp_path / "board.db")
    store, _ = opened(tmp_path)
    store.save_post(SampleNode(1).write(START, "text"))
    copy = (tmp_path / "board.db-wal").read_bytes()
    store.close()
    (tmp_path / "board.db-wal").write_bytes(copy)
    (tmp_path / "mesh.json").touch()
    MemoryStore(tmp_path / "board.db").open(ME, UNIX)
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]
    (tmp_path / "board.db").mkdir()
    with pytest.raises(StoreFailed, match="cannot be deleted"):
        MemoryStore(tmp_path / "board.db").open(ME, UNIX)
