"""`scripts/bench board`: the blackboard's store and index at their bounds.

Search in a full board against a look through all its texts; random queries; a daemon's board killed while it posts; a
flood by one author.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from random import Random

from meshllm.board.index import BoardIndex
from meshllm.board.search import ScanIndex, SearchDocument, SearchIndex, make_index
from meshllm.board.store import MAX_FILE_BYTES, SqliteStore, StoreChange
from meshllm.core.board.entries import MAX_AUTHOR_ENTRIES, MAX_ENTRIES, EntryId
from meshllm.core.board.service import SearchQuery
from meshllm.wire.mesh.board import decode_header
from tests.board.board_samples import START, WORDS, SampleNode, node, sample_text
from tests.daemon.board_kills import kill_while_posting

from . import report

PARTS = ("search", "queries", "kills", "flood")
MOST_SEARCH_MS = 10.0
AUTHORS = 40
# Random queries are asked of a smaller board: whether one fails does not depend on its size.
SMALL_BOARD = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--only", choices=PARTS, help="one part (default: all)")
    parser.add_argument("--queries", type=int, default=100_000, help="random queries (default 100000)")
    parser.add_argument("--kills", type=int, default=200, help="kills of a process that posts (default 200)")
    parser.add_argument("--entries", type=int, default=100_000, help="entries of the flood (default 100000)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default 1)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a bar is not met."""
    rows: list[list[str]] = []
    bars: list[report.Bar] = []
    rng = Random(options.seed)
    for part in PARTS:
        if options.only in (None, part):
            report.progress(f"board: {part}")
            found = {"search": _search, "queries": _queries, "kills": _kills, "flood": _flood}[part](options, rng)
            rows += found[0]
            bars += found[1]
    report.progress("")
    if options.json:
        print(report.as_json("board", bars, measured=rows, notes=[]))
    else:
        report.show("board", ["", "measured"], rows, bars, [])
    return int(not all(bar.met for bar in bars))


Part = tuple[list[list[str]], list[report.Bar]]


def _board(count: int, rng: Random) -> tuple[BoardIndex, list[SearchDocument]]:
    """A board of that many messages of the last 48 hours, and their texts."""
    authors = [SampleNode(number) for number in range(1, AUTHORS + 1)]
    index = BoardIndex(node(1), lambda item: f"host{item[1]}")
    first = START - 48 * 3_600_000
    rooms = [f"owner/name{number}" for number in range(12)]
    index.add(
        rng.choice(authors).write(first + number * 172_800_000 // count, sample_text(rng), room=rng.choice(rooms))
        for number in range(count)
    )
    return index, [found[0] for item in index.ids() if (found := index.document(item)) is not None]


def _query(rng: Random) -> str:
    """What people and agents search for: words, identifiers, parts of them, numbers."""
    kind = rng.random()
    if kind < 0.5:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))
    if kind < 0.7:
        return f"{rng.choice(WORDS)}_{rng.choice(WORDS)}_{rng.randrange(500)}"
    if kind < 0.85:
        return rng.choice(WORDS)[1:5]
    return f"#{rng.randrange(3000)} {rng.choice(WORDS)}"


def _odd_query(rng: Random) -> str:
    """Words mixed with what means something to FTS5, and letters of any script."""
    parts = [*rng.choices(WORDS, k=3), *"\"'*^(){}:+-~\\,;&|<>[]\0\n", "AND", "OR", "NOT", "NEAR(", "text:", '""', "/*"]
    letters = "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(0, 6)))
    chosen = [*rng.choices(parts, k=rng.randint(1, 8)), letters]
    rng.shuffle(chosen)
    return rng.choice(["", " "]).join(chosen)


def _times(index: BoardIndex, texts: SearchIndex, queries: list[str]) -> list[float]:
    """Milliseconds of CPU for each query, up to the page that is shown."""
    times = []
    for words in queries:
        query = SearchQuery(words)
        begin = time.thread_time()
        index.found(query, texts.find(index.terms(query, START / 1000)))
        times.append((time.thread_time() - begin) * 1000)
    return sorted(times)


def _search(options: argparse.Namespace, rng: Random) -> Part:
    index, documents = _board(MAX_ENTRIES, rng)
    begin = time.thread_time()
    texts = make_index(documents)
    made = time.thread_time() - begin
    queries = [_query(rng) for _ in range(1000)]
    times = _times(index, texts, queries)
    scan = _times(index, ScanIndex(documents), queries[:100])
    texts.close()
    p95 = times[len(times) * 95 // 100]
    rows = [
        [f"index of {len(documents)} messages made, s of CPU", f"{made:.2f}"],
        ["search, ms of CPU: median, p95, longest", f"{times[len(times) // 2]:.2f}, {p95:.2f}, {times[-1]:.2f}"],
        ["look through all texts, ms of CPU: median", f"{scan[len(scan) // 2]:.1f}"],
    ]
    return rows, [report.bar("search of a full board, p95, ms of CPU", p95, MOST_SEARCH_MS, at_most=True)]


def _queries(options: argparse.Namespace, rng: Random) -> Part:
    index, documents = _board(SMALL_BOARD, rng)
    texts = make_index(documents)
    errors: list[str] = []
    asked = 0
    for _ in range(options.queries):
        query = SearchQuery(_odd_query(rng))
        try:
            terms = index.terms(query, START / 1000)
        except Exception as error:  # noqa: BLE001 - counted below
            if "has no words" not in str(error):
                errors.append(f"{query.words!r}: {error!r}")
            continue
        asked += 1
        try:
            index.found(query, texts.find(terms))
        except Exception as error:  # noqa: BLE001 - counted below
            errors.append(f"{query.words!r}: {error!r}")
    texts.close()
    rows = [["random queries; with words in them; errors", f"{options.queries}; {asked}; {len(errors)}"]]
    rows += [["error", text] for text in errors[:5]]
    return rows, [report.bar("errors of random queries", float(len(errors)), 0.0, at_most=True)]


def _kills(options: argparse.Namespace, rng: Random) -> Part:
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as home:
        result = kill_while_posting(Path(home), options.kills, rng)
    rows = [["kills while posting; posts acknowledged", f"{result.kills}; {result.acknowledged}"]]
    return rows, [
        report.bar("acknowledged posts lost", float(result.lost), 0.0, at_most=True),
        report.bar("numbers used twice", float(result.reused), 0.0, at_most=True),
    ]


def _flood(options: argparse.Namespace, rng: Random) -> Part:
    """One author writes as many entries as given, of which the log keeps what an author may have."""
    others = [SampleNode(number).write(START, sample_text(rng)) for number in range(10, 110)]
    flooder, held, largest, number = SampleNode(2), list[EntryId](), 0, len(others)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as home:
        store = SqliteStore(Path(home) / "board.db", decode_header)
        store.open(node(1), START / 1000)
        store.apply(StoreChange({entry.id: (entry, each) for each, entry in enumerate(others, 1)}))
        while number < options.entries:
            batch = [flooder.write(START + number, "y" * 1600) for _ in range(200)]
            held += [entry.id for entry in batch]
            added = {entry.id: (entry, number + each) for each, entry in enumerate(batch, 1)}
            store.apply(StoreChange(added, removed=set(held[:-MAX_AUTHOR_ENTRIES]), last_arrival=number + len(batch)))
            held, number = held[-MAX_AUTHOR_ENTRIES:], number + len(batch)
            largest = max(largest, sum(path.stat().st_size for path in Path(home).iterdir()))
        store.close()
        kept = store.open(node(1), START / 1000).entries
        store.close()
    lost = len(set(others) - set(kept))
    rows = [[f"flood of {options.entries}: largest size of the files, MiB", f"{largest / (1 << 20):.1f}"]]
    return rows, [
        report.bar("flood: entries of others lost", float(lost), 0.0, at_most=True),
        report.bar("flood: size of the files / bound", largest / MAX_FILE_BYTES, 1.0, at_most=True),
    ]
