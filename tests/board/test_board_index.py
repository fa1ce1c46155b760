"""The messages of the board as readers ask for them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshllm.board.index import BoardIndex, mask, reader_names
from meshllm.board.search import FullTextIndex, ScanIndex, SearchDocument, SearchIndex, make_index, terms_of
from meshllm.core.board.entries import NO_ENTRY, EntryId, EntryKind, SignedEntry
from meshllm.core.board.service import ALL_ROOMS, BoardPage, BoardWriter, FeedQuery, SearchQuery
from meshllm.core.ids import NodeId
from meshllm.errors import BoardRefused
from tests.board.board_samples import START, WORDS, SampleNode, node, sample_text

NOW = START / 1000
HOUR = 3_600_000
ME = node(1)


def name_of(item: NodeId) -> str:
    return f"host{int.from_bytes(item[:2], 'big')}"


def index_of(*entries: SignedEntry) -> BoardIndex:
    index = BoardIndex(ME, name_of)
    index.begin("tag", 0)
    index.add(entries)
    return index


def texts(page: BoardPage) -> list[str]:
    return [post.text for post in page.posts]


def feed(index: BoardIndex, **query: object) -> list[str]:
    return texts(index.feed(FeedQuery(**query), NOW))  # type: ignore[arg-type]


def search(index: BoardIndex, words: str, kind: type[SearchIndex] | None = None, **query: object) -> BoardPage:
    """A search with a fresh index of the texts."""
    documents = [mask(found[0]) for item in index.ids() if (found := index.document(item)) is not None]
    made = make_index(documents) if kind is None else kind(documents)  # type: ignore[call-arg]
    wanted = SearchQuery(words, **query)  # type: ignore[arg-type]
    try:
        return index.found(wanted, made.find(index.terms(wanted, NOW)))
    finally:
        made.close()


# -- feed


def test_feed_is_newest_first_by_the_authors_times_whatever_the_order_of_arrival() -> None:
    author = SampleNode(2)
    entries = [author.write(START - number * 1000, f"text {number}") for number in (5, 4, 3)]
    entries += [SampleNode(3).write(START - 3500, "other")]
    expected = ["text 3", "other", "text 4", "text 5"]
    assert feed(index_of(*entries)) == expected
    assert feed(index_of(*reversed(entries))) == expected


def test_filters() -> None:
    me, two = SampleNode(1, name="ann"), SampleNode(2, name="bob", program="codex")
    entries = [
        two.write(START - 30 * HOUR, "old", room="a"),
        two.write(START - 2 * HOUR, "question", EntryKind.QUESTION, room="a", to=("ANN",)),
        me.write(START - HOUR, "answer", room="a"),
        two.write(START - 1000, "status", EntryKind.STATUS, to=("all",)),
        two.claim(START, "issue-1", 60, room="a"),
    ]
    index = index_of(*entries)
    assert feed(index) == ["status", "answer", "question"]
    assert feed(index, hours=48.0) == ["status", "answer", "question", "old"]
    assert feed(index, hours=0.5) == ["status"]
    assert feed(index, room="a") == ["answer", "question"]
    assert feed(index, room="") == ["status"]
    assert feed(index, room=ALL_ROOMS, kind="question") == ["question"]
    assert feed(index, kind="claim") == ["issue-1"]
    assert feed(index, author="BO") == feed(index, author="bob@host2") == feed(index, author="codex")
    assert feed(index, author="host1") == ["answer"]
    assert feed(index, mine=True) == ["answer"]
    assert feed(index, to_me=True, reader=BoardWriter("ann")) == ["status", "question"]
    assert feed(index, to_me=True, reader=BoardWriter("x", "y")) == ["status"]
    assert [room.room for room in index.rooms()] == ["", "a"]
    assert [(room.posts, room.last) for room in index.rooms()] == [(1, NOW - 1), (3, NOW - 3600)]


def test_pages_say_how_many_more_there_are() -> None:
    author = SampleNode(2)
    index = index_of(*(author.write(START - 100 + number, str(number)) for number in range(30)))
    page = index.feed(FeedQuery(limit=10), NOW)
    assert (texts(page), page.more) == ([str(number) for number in range(29, 19, -1)], 20)
    assert index.feed(FeedQuery(limit=10_000), NOW).more == 0
    assert len(index.feed(FeedQuery(limit=0), NOW).posts) == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (FeedQuery(hours=float("nan")), "above 0"),
        (FeedQuery(hours=-1), "above 0"),
        (FeedQuery(kind="poem"), "'poem' is no kind"),
        (FeedQuery(after="yesterday"), "is no cursor"),
        (FeedQuery(after="tag.-1"), "is no cursor"),
        (FeedQuery(after="tag." + "9" * 40), "is no cursor"),
        (FeedQuery(thread="ffff"), "No message has an id"),
        (FeedQuery(thread="*"), "is no id"),
    ],
)
def test_bad_queries_are_refused(query: FeedQuery, message: str) -> None:
    with pytest.raises(BoardRefused, match=message):
        index_of(SampleNode(2).write(START, "x")).feed(query, NOW)


def test_following_by_cursor_misses_nothing_that_comes_late() -> None:
    author, late = SampleNode(2), SampleNode(3)
    old = [late.write(START - 5 * HOUR + number, f"late {number}") for number in range(7)]
    index = index_of(author.write(START - 1000, "first"))
    page = index.feed(FeedQuery(), NOW)
    index.add(old)
    index.add([author.write(START, "last")])
    seen: list[str] = []
    pages = 0
    while True:
        page = index.feed(FeedQuery(after=page.cursor, limit=3), NOW)
        seen += reversed(texts(page))
        pages += 1
        if not page.more:
            break
    assert pages == 3
    assert seen == [*(f"late {number}" for number in range(7)), "last"]
    assert texts(index.feed(FeedQuery(after=page.cursor), NOW)) == []
    # The cursor of another store: all counts.
    assert len(index.feed(FeedQuery(after="other.99"), NOW).posts) == 9


def test_arrivals_go_on_where_they_ended() -> None:
    one, two, three = (SampleNode(number).write(START, f"text {number}") for number in (2, 3, 4))
    index = BoardIndex(ME, name_of)
    index.begin("tag", 41)
    assert index.add([three, one, two], {one.id: 7, two.id: 9}) == {three.id: 42, one.id: 7, two.id: 9}
    assert set(feed(index, after="tag.8")) == {"text 3", "text 4"}
    assert index.feed(FeedQuery(), NOW).cursor == "tag.42"
    # A text that came later counts as news.
    assert index.add([two]) == {two.id: 43}
    assert feed(index, after="tag.42") == ["text 3"]
    assert len(index) == 3


# -- threads


def test_threads_with_and_without_their_beginning() -> None:
    one, two = SampleNode(2), SampleNode(3)
    root = one.write(START - 9000, "root")
    reply = two.write(START - 8000, "reply", reply_to=root.id)
    second = one.write(START - 7000, "second", reply_to=reply.id)
    beside = one.write(START - 6000, "beside", reply_to=root.id)
    other = one.write(START - 5000, "other")
    index = index_of(second, beside, other, reply)
    assert feed(index, thread=second.id.hex()[:8]) == ["beside", "second", "reply"]  # orphans of one missing message
    posts = index.feed(FeedQuery(), NOW).posts
    assert {post.text: post.thread for post in posts} == {
        "other": other.id.hex(), "beside": root.id.hex(), "second": root.id.hex(), "reply": root.id.hex(),
    }  # fmt: skip
    assert feed(index, thread=root.id.hex()) == ["beside", "second", "reply"]
    index.add([root])
    assert feed(index, thread=beside.id.hex()) == ["beside", "second", "reply", "root"]
    assert [post.replies for post in index.feed(FeedQuery(thread=root.id.hex()), NOW).posts] == [0, 0, 1, 2]
    index.remove([reply.id])
    assert feed(index, thread=root.id.hex()) == ["beside", "root"]
    assert feed(index, thread=second.id.hex()) == ["second"]


def test_threads_show_that_a_message_was_retracted() -> None:
    one = SampleNode(2)
    root = one.write(START - 9000, "root")
    index = index_of(root, one.write(START - 8000, "reply", reply_to=root.id))
    index.erase([root.id])
    assert feed(index) == ["reply"]
    page = index.feed(FeedQuery(thread=root.id.hex()), NOW)
    assert [(post.text, post.retracted) for post in page.posts] == [("reply", False), ("", True)]
    assert [room.posts for room in index.rooms()] == [1]


def test_long_chains_of_replies_cost_a_bounded_walk() -> None:
    author, before, entries = SampleNode(2), NO_ENTRY, list[SignedEntry]()
    for number in range(3000):
        entries.append(author.write(START - 5000 + number, str(number), reply_to=before))
        before = entries[-1].id
    index = index_of(*entries)
    assert len(index.feed(FeedQuery(limit=500), NOW).posts) == 500
    assert index.feed(FeedQuery(thread=entries[0].id.hex()), NOW).more == 2980


_PART = st.tuples(st.integers(1, 3), st.integers(0, 30), st.integers(-1, 12), st.booleans())


@given(st.lists(_PART, max_size=14), st.randoms(use_true_random=False))
def test_index_is_the_same_however_it_came_about(parts: list[tuple[int, int, int, bool]], rng: Random) -> None:
    """Added in any order, with others added and removed between: as if only what is left had been added."""
    nodes = {number: SampleNode(number) for number in (1, 2, 3)}
    entries: list[SignedEntry] = []
    for number, minute, reply, _ in parts:
        reply_to = entries[reply % len(entries)].id if entries and reply >= 0 else NO_ENTRY
        entries.append(nodes[number].write(START - minute * 60_000, f"text {len(entries)}", reply_to=reply_to))
    kept = [entry for entry, part in zip(entries, parts, strict=True) if part[3]]
    index = BoardIndex(ME, name_of)
    index.begin("tag", 0)
    shuffled = rng.sample(entries, len(entries))
    for entry in shuffled:
        index.add([entry])
        if rng.random() < 0.3:
            index.add([entry])
    index.remove(entry.id for entry in entries if entry not in kept)
    fresh = index_of(*kept)
    for query in (FeedQuery(), FeedQuery(mine=True), FeedQuery(limit=3)):
        assert index.feed(query, NOW).posts == fresh.feed(query, NOW).posts
    for entry in kept:
        thread = FeedQuery(thread=entry.id.hex())
        assert index.feed(thread, NOW).posts == fresh.feed(thread, NOW).posts
    index.remove(entry.id for entry in kept)
    assert index.feed(FeedQuery(), NOW).posts == ()
    assert len(index) == 0


def test_reader_is_addressed_by_its_names() -> None:
    names = reader_names(BoardWriter("Ann", "codex"), "host1")
    assert names == {"ann", "codex", "host1", "all", "ann@host1", "codex@host1"}
    assert reader_names(BoardWriter(), "") == {"all"}


# -- search


KINDS = [FullTextIndex, ScanIndex]


@pytest.mark.parametrize("kind", KINDS)
def test_any_word_counts_and_rarer_ones_more(kind: type[SearchIndex]) -> None:
    author = SampleNode(2)
    common = [author.write(START - 9000 + number, f"the parser is slow {number}") for number in range(20)]
    both = author.write(START - 8000, "the parser meets a Heisenbug")
    index = index_of(*common, both)
    page = search(index, "PARSER heisenbug", kind, limit=5)
    assert texts(page)[0] == "the parser meets a Heisenbug"
    assert (len(page.posts), page.more) == (5, 16)
    assert texts(search(index, "heisenbug nowhere", kind)) == ["the parser meets a Heisenbug"]
    assert texts(search(index, "nowhere", kind)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("load_tensors", "call load_tensors() first"),
        ("tensors", "call load_tensors() first"),
        ("foo-bar", "use foo-bar here"),
        ("NOT", "do not touch"),
        ('"quoted', 'a "quoted text'),
        ("GgufRead", "class GGUFReader fails"),
        ("grün", "die Ampel ist GRÜN"),
        ("#1234", "see #1234 for it"),
        ("端口号", "服务器的端口号错误"),
        ("端口", "服务器的端口号错误"),
        ("host7", "hello"),
        ("owner/name", "hello"),
        ("finding", "hello"),
        ("ann", "hello"),
    ],
)
def test_words_and_parts_are_found(kind: type[SearchIndex], words: str, text: str) -> None:
    author = SampleNode(7, name="ann")
    filler = [SampleNode(2).write(START - 10 + number, f"filler {number}") for number in range(3)]
    index = index_of(*filler, author.write(START, text, EntryKind.FINDING, room="owner/name"))
    assert texts(search(index, words, kind))[:1] == [text]


@pytest.mark.parametrize("kind", KINDS)
def test_newer_messages_come_first(kind: type[SearchIndex]) -> None:
    author = SampleNode(2)
    entries = [author.write(START - hours * HOUR, f"the build fails after {hours} h") for hours in (40, 20, 1)]
    assert texts(search(index_of(*reversed(entries)), "build", kind)) == [
        f"the build fails after {hours} h" for hours in (1, 20, 40)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_filters_of_a_search(kind: type[SearchIndex]) -> None:
    one, two = SampleNode(2, name="bob"), SampleNode(3, name="eve")
    index = index_of(
        one.write(START - 30 * HOUR, "cache old", room="a"),
        one.write(START - HOUR, "cache a", room="a"),
        two.write(START - HOUR, "cache b", room="b"),
        two.write(START, "cache common"),
    )
    assert set(texts(search(index, "cache", kind, hours=24.0))) == {"cache a", "cache b", "cache common"}
    assert set(texts(search(index, "cache", kind, room="a"))) == {"cache old", "cache a"}
    assert texts(search(index, "cache", kind, room="")) == ["cache common"]
    assert set(texts(search(index, "cache", kind, author="eve@host3"))) == {"cache b", "cache common"}


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_thread_the_best_match_is_shown(kind: type[SearchIndex]) -> None:
    author = SampleNode(2)
    root = author.write(START - 5000, "why is it slow?")
    reply = author.write(START - 4000, "the cache, the cache, the cache", reply_to=root.id)
    again = author.write(START - 3000, "cache, and many other words that say little about it", reply_to=root.id)
    page = search(index_of(root, reply, again, author.write(START, "cache elsewhere")), "cache", kind)
    assert (len(page.posts), page.more) == (2, 0)
    assert {post.thread for post in page.posts} == {root.id.hex(), page.posts[0].id, page.posts[1].id} - {
        post.id for post in page.posts if post.reply_to
    }


def test_terms_are_bounded() -> None:
    assert terms_of('A a "B" - -- \0 x') == ("a", '"b"', "--", "x")
    assert len(terms_of(" ".join(f"word{number}" for number in range(100)))) == 16
    assert terms_of("x" * 1000) == ("x" * 64,)
    with pytest.raises(BoardRefused, match="no words"):
        index_of().terms(SearchQuery(" - "), NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_index_of_texts_follows_what_comes_and_goes(kind: type[SearchIndex]) -> None:
    rng = Random(4)
    documents = {
        EntryId(rng.randbytes(16)): SearchDocument(EntryId(b""), sample_text(rng), "r", "note", "n", NOW)
        for _ in range(300)
    }
    documents = {item: replace(document, id=item) for item, document in documents.items()}
    started = list(documents.values())[:200]
    made = kind(started)  # type: ignore[call-arg]
    for document in list(documents.values())[100:]:
        made.add(document)
    for item in list(documents)[:50]:
        made.remove(item)
        made.remove(item)
        del documents[item]
    changed = replace(next(iter(documents.values())), text="something quite different")
    documents[changed.id] = changed
    made.add(changed)
    fresh = kind(list(documents.values()))  # type: ignore[call-arg]
    index = BoardIndex(ME, name_of)
    for words in [*WORDS[:20], "quite", "alyser", WORDS[20][1:]]:
        wanted = replace(index.terms(SearchQuery(words), NOW), limit=1000)
        assert set(made.find(wanted)) == set(fresh.find(wanted)), words
    made.close()
    fresh.close()


_ODD = st.text(st.characters() | st.sampled_from("\"'*^(){}:+-~\\ ANDORNEAR\0\u00df\u0130\ud800"), max_size=60)


@given(_ODD, st.booleans())
@example("a\ud800", False)
@example('""" "', False)
def test_no_query_is_an_error(words: str, scan: bool) -> None:
    index = index_of(SampleNode(2).write(START, 'a "text" NEAR (the) AND {others}: foo-bar*'))
    if terms_of(words):
        search(index, words, ScanIndex if scan else FullTextIndex)
    else:
        with pytest.raises(BoardRefused, match="no words"):
            search(index, words)
