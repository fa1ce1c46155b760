"""The log keeps its bounds, its lifetimes and retractions, whatever comes in whatever order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.core.board import entries as b
from meshllm.core.board.entries import EntryKind, SignedEntry
from meshllm.core.board.log import AHEAD_MS, LIFETIME_MS, AddResult, BoardLog
from tests.core.board.made_entries import NOW_MS, author, entry, without_text

HOUR, MINUTE = 3_600_000, 60_000


def filled(*entries: SignedEntry, now: int = NOW_MS) -> BoardLog:
    log = BoardLog()
    for each in entries:
        log.add(each, now)
    return log


def test_new_known_and_late_entries() -> None:
    log, one = BoardLog(), entry(1)
    assert log.add(one, NOW_MS) is AddResult.NEW
    assert log.add(one, NOW_MS) is AddResult.KNOWN
    assert log.add(entry(2, NOW_MS - LIFETIME_MS - 1), NOW_MS) is AddResult.LATE
    assert log.take_delta().added == [one]


def test_entry_from_the_future_is_taken_later() -> None:
    log, early = BoardLog(), entry(1, NOW_MS + AHEAD_MS + 1)
    assert log.add(early, NOW_MS) is AddResult.AHEAD
    assert len(log) == 0
    assert log.add(early, NOW_MS + 1) is AddResult.NEW


@pytest.mark.parametrize("ahead", [0, AHEAD_MS])
def test_nothing_outlives_its_lifetime(ahead: int) -> None:
    log = BoardLog()
    log.add(entry(1, NOW_MS + ahead, first_seen=NOW_MS), NOW_MS)
    log.expire(NOW_MS + LIFETIME_MS - 1)
    assert len(log) == 1
    log.expire(NOW_MS + LIFETIME_MS)
    assert len(log) == 0
    assert log.take_delta().removed
    assert log.hash == BoardLog().hash


def test_expired_entry_does_not_come_again() -> None:
    """Another node may hold it longer, because its clock is behind."""
    log, one = BoardLog(), entry(1)
    log.add(one, NOW_MS)
    log.expire(NOW_MS + LIFETIME_MS)
    assert log.add(entry(1, NOW_MS), NOW_MS + LIFETIME_MS - 10) is AddResult.LATE


def test_retracted_text_is_held_nowhere() -> None:
    secret = entry(1, body="a secret")
    log = filled(secret, entry(2, kind=EntryKind.RETRACT, target=secret.id))
    assert [each.body for each in log if each.id == secret.id] == [None]
    assert log.take_delta().erased == [secret.id]
    # Nor does it come back, with or without the text.
    assert log.add(secret, NOW_MS) is AddResult.KNOWN
    assert [each.body for each in log if each.id == secret.id] == [None]


def test_retraction_before_its_target() -> None:
    secret = entry(1, body="a secret")
    log = filled(entry(2, kind=EntryKind.RETRACT, target=secret.id), secret)
    assert [each.body for each in log if each.id == secret.id] == [None]


def test_nobody_retracts_for_another() -> None:
    theirs = entry(1, by=2, body="stays")
    log = filled(theirs, entry(1, by=1, kind=EntryKind.RETRACT, target=theirs.id))
    assert [each.body for each in log if each.id == theirs.id] == ["stays"]


def test_text_that_was_not_sent_is_filled_in_later() -> None:
    whole = entry(1, body="whole")
    log = filled(without_text(whole))
    assert [chain.id for chain in log.incomplete(4)]
    assert log.add(whole, NOW_MS) is AddResult.FILLED
    assert log.incomplete(4) == []
    assert [each.body for each in log] == ["whole"]


def test_two_texts_with_one_number_end_the_chain_and_flag_the_author() -> None:
    one, other = entry(1, body="one"), entry(1, body="other")
    logs = [filled(one, other), filled(other, one)]
    assert [log.flagged for log in logs] == [(author(1),)] * 2
    assert logs[0].hash == logs[1].hash
    # All show the one with the lower hash.
    assert {each.body for log in logs for each in log} == {min(one, other, key=lambda each: each.id).body}
    assert logs[0].add(entry(2), NOW_MS) is AddResult.REFUSED


def test_flooder_evicts_only_itself() -> None:
    log = BoardLog()
    others = [entry(seq, NOW_MS, by=by, body="keep") for by in range(2, 12) for seq in range(1, 11)]
    for each in others:
        log.add(each, NOW_MS)
    for seq in range(1, 3000):
        log.add(entry(seq, NOW_MS - 300 * MINUTE + seq * 6000, by=1, body="flood"), NOW_MS)
    assert {each.id for each in log} >= {each.id for each in others}
    assert log.count(author(1)) == b.MAX_AUTHOR_ENTRIES


def test_bytes_of_an_author_are_bounded() -> None:
    log = BoardLog()
    for seq in range(1, 400):
        log.add(entry(seq, NOW_MS - 60 * MINUTE + seq * 6000, body="x" * 4096), NOW_MS)
    assert log.bytes <= b.MAX_AUTHOR_BYTES
    assert 200 < log.count(author(1)) < 400


def test_whole_mesh_is_bounded_and_the_largest_author_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "MAX_ENTRIES", 100)
    log = BoardLog()
    for by in range(2, 20):
        for seq in range(1, 5):
            log.add(entry(seq, by=by), NOW_MS)
    for seq in range(1, 60):
        log.add(entry(seq, NOW_MS - 60 * MINUTE + seq * 6000, by=1), NOW_MS)
    assert len(log) == 100
    assert all(log.count(author(by)) == 4 for by in range(2, 20))


def test_epochs_of_an_author_are_bounded() -> None:
    log = BoardLog()
    for epoch in range(1, 50):
        log.add(entry(1, epoch=epoch, body=f"of epoch {epoch}"), NOW_MS)
    assert sorted(each.header.epoch for each in log) == list(range(34, 50))
    assert log.add(entry(2, epoch=2), NOW_MS) is AddResult.REFUSED


def test_expelled_author_leaves_nothing() -> None:
    log = filled(entry(1, by=1), entry(1, by=2))
    log.remove_author(author(1))
    assert [each.header.author for each in log] == [author(2)]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=60
    ),
    st.randoms(use_true_random=False),
)
def test_equal_sets_give_equal_hashes_and_texts(made: list[tuple[int, int, int, int]], rng: random.Random) -> None:
    """Of honest authors, in any order; each of them erases some."""
    entries: dict[tuple[int, int], SignedEntry] = {}
    moment = dict.fromkeys((1, 2, 3), NOW_MS - HOUR)
    for by, _, step, kind in made:
        seq = 1 + sum(1 for who, _ in entries if who == by)
        moment[by] += 6000 + step
        target = entries.get((by, rng.randrange(1, seq))) if seq > 1 and not kind else None
        entries[by, seq] = (
            entry(seq, moment[by], by=by, kind=EntryKind.RETRACT, target=target.id)
            if target is not None
            else entry(seq, moment[by], by=by, body=f"{by}.{seq}")
        )
    logs = []
    for _ in range(3):
        order = list(entries.values())
        rng.shuffle(order)
        logs.append(filled(*order))
    texts = [sorted((each.id, each.body) for each in log) for log in logs]
    assert texts[0] == texts[1] == texts[2]
    assert logs[0].hash == logs[1].hash == logs[2].hash
    assert all(log.incomplete(4) == [] for log in logs)


def test_retraction_by_another_brings_no_erased_text_back() -> None:
    secret = entry(1, by=2, body="a secret")
    log = filled(secret, entry(2, by=2, kind=EntryKind.RETRACT, target=secret.id))
    old = NOW_MS - 47 * HOUR
    hostile = entry(1, old, by=1, kind=EntryKind.RETRACT, target=secret.id)
    log.add(hostile, NOW_MS)
    assert log.add(secret, NOW_MS) is AddResult.KNOWN
    log.expire(NOW_MS + 2 * HOUR)  # the hostile one goes
    assert log.add(secret, NOW_MS + 2 * HOUR) is AddResult.KNOWN
    assert [each.body for each in log if each.id == secret.id] == [None]
    assert log.incomplete(4) == []


def test_nothing_is_kept_of_epochs_that_went() -> None:
    log = BoardLog()
    for epoch in range(1, 400):
        target = entry(1, epoch=1)
        for seq in range(1, 25):
            log.add(entry(seq, epoch=epoch, kind=EntryKind.RETRACT, target=target.id, body=f"{epoch}.{seq}"), NOW_MS)
    held = len(log)
    assert held <= 16 * 24
    assert sum(len(found) for found in log._retracted.values()) <= held
    assert len(log._expiry) <= 1024 + 2 * held


def test_chain_with_a_proof_is_listed_alike_whatever_came_first() -> None:
    """An author contradicts itself, and retracts what is shown from another epoch: in any order, all hold the same."""
    one, other = entry(1, body="one"), entry(1, body="other")
    shown = min(one, other, key=lambda each: each.id)
    retraction = entry(1, epoch=2, kind=EntryKind.RETRACT, target=shown.id)
    logs = [filled(*order) for order in ((one, other, retraction), (retraction, one, other), (other, retraction, one))]
    assert len({log.hash for log in logs}) == 1
