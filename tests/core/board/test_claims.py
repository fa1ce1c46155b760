"""Who holds a claim: the answer follows from the set of entries and the time alone."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.board.claims import MAX_HELD_SECONDS, BoardClaim, ClaimFold
from meshllm.core.board.entries import MAX_CLAIM_SECONDS, SignedEntry
from tests.board.board_samples import START, SampleNode

SECOND = 1000
MINUTE = 60 * SECOND


def folded(*entries: SignedEntry) -> ClaimFold:
    """A fold of these entries."""
    fold = ClaimFold()
    fold.add(entries)
    return fold


def holder(fold: ClaimFold, at: int, key: str = "issue-1") -> BoardClaim | None:
    return fold.holder("", key, START + at)


def test_earliest_claim_holds_until_it_expires_then_the_next() -> None:
    one, two = SampleNode(1), SampleNode(2)
    first = one.claim(START, "issue-1", 60)
    second = two.claim(START + 10 * SECOND, "issue-1", 120)
    fold = folded(second, first)
    held = holder(fold, 20 * SECOND)
    assert held is not None
    assert (held.id, held.since, held.until) == (first.id, START, START + MINUTE)
    later = holder(fold, MINUTE)
    assert later is not None
    assert (later.id, later.until) == (second.id, START + 130 * SECOND)
    assert holder(fold, 130 * SECOND) is None


def test_claims_of_one_time_are_ordered_by_id() -> None:
    claims = [SampleNode(number).claim(START, "issue-1", 60) for number in range(1, 6)]
    held = holder(folded(*claims), 0)
    assert held is not None
    assert held.id == min(claim.id for claim in claims)


def test_rooms_and_keys_are_apart() -> None:
    one, two = SampleNode(1), SampleNode(2)
    here, there = one.claim(START, "issue-1", 60, "a"), two.claim(START, "issue-1", 60, "b")
    fold = folded(here, there)
    assert [claim.id for claim in fold.live("a", "issue-1", START)] == [here.id]
    assert [claim.id for claim in fold.live("b", "issue-1", START)] == [there.id]
    assert holder(fold, 0) is None
    assert {claim.id for claim in fold.holders(START)} == {here.id, there.id}


def test_renewal_before_the_end_extends_from_its_own_time() -> None:
    one = SampleNode(1)
    claim = one.claim(START, "issue-1", 60)
    fold = folded(claim, one.renew(START + 50 * SECOND, claim.id, 60))
    held = holder(fold, 100 * SECOND)
    assert held is not None
    assert held.until == START + 110 * SECOND


def test_renewal_never_shortens() -> None:
    one = SampleNode(1)
    claim = one.claim(START, "issue-1", 600)
    held = holder(folded(claim, one.renew(START + SECOND, claim.id, 1)), 0)
    assert held is not None
    assert held.until == START + 600 * SECOND


def test_renewal_after_the_end_or_of_another_node_counts_for_nothing() -> None:
    one, two = SampleNode(1), SampleNode(2)
    claim = one.claim(START, "issue-1", 60)
    fold = folded(claim, one.renew(START + MINUTE, claim.id, 600), two.renew(START + SECOND, claim.id, 600))
    assert holder(fold, MINUTE) is None


def test_release_ends_a_claim_at_once_and_only_by_its_author() -> None:
    one, two = SampleNode(1), SampleNode(2)
    claim = one.claim(START, "issue-1", 600)
    fold = folded(claim, two.release(START + SECOND, claim.id))
    assert holder(fold, 2 * SECOND) is not None
    # Its author's clock may be ahead: a release counts as soon as it is known, and no renewal undoes it.
    fold.add([one.renew(START + SECOND, claim.id, 600), one.release(START + MINUTE, claim.id)])
    fold.add([one.renew(START + 2 * MINUTE, claim.id, 600)])
    assert holder(fold, 2 * SECOND) is None


def test_claim_is_bounded_however_often_it_is_renewed() -> None:
    one = SampleNode(1)
    claim = one.claim(START, "issue-1", 1)
    claim = replace(claim, header=replace(claim.header, seconds=1 << 40))
    held = holder(folded(claim), 0)
    assert held is not None
    assert held.until == START + MAX_CLAIM_SECONDS * SECOND
    step = MAX_CLAIM_SECONDS * SECOND // 2
    fold = folded(claim, *(one.renew(START + number * step, claim.id, MAX_CLAIM_SECONDS) for number in range(40)))
    held = holder(fold, 0)
    assert held is not None
    assert held.until == START + MAX_HELD_SECONDS * SECOND


def test_entries_that_left_the_log_count_no_more() -> None:
    one, two = SampleNode(1), SampleNode(2)
    claim, other = one.claim(START, "issue-1", 60), two.claim(START + 1, "issue-1", 60)
    renewal, release = one.renew(START + SECOND, claim.id, 600), two.release(START + SECOND, other.id)
    fold = folded(claim, other, renewal, release)
    fold.remove([renewal.id])
    held = holder(fold, 30 * SECOND)
    assert held is not None
    assert held.until == START + MINUTE
    fold.remove([claim.id, claim.id])
    assert holder(fold, 30 * SECOND) is None
    fold.remove([release.id])
    assert [each.id for each in fold.holders(START + 30 * SECOND)] == [other.id]
    fold.remove([other.id])
    assert fold.holders(START) == []


_STEP = st.tuples(
    st.sampled_from(["claim", "renew", "release"]),
    st.integers(0, 2),  # the node
    st.integers(0, 40),  # seconds
    st.integers(1, 30),  # for how long
    st.integers(0, 30),  # which claim, of those made so far
)


def history(steps: list[tuple[str, int, int, int, int]]) -> list[SignedEntry]:
    """Entries of three nodes; renewals and releases are also of other nodes' claims."""
    nodes = [SampleNode(number) for number in range(3)]
    entries: list[SignedEntry] = []
    claims: list[SignedEntry] = []
    for kind, number, second, seconds, which in steps:
        at = START + second * SECOND
        if kind == "claim" or not claims:
            claims.append(nodes[number].claim(at, "issue-1", seconds))
            entries.append(claims[-1])
        elif kind == "renew":
            entries.append(nodes[number].renew(at, claims[which % len(claims)].id, seconds))
        else:
            entries.append(nodes[number].release(at, claims[which % len(claims)].id))
    return entries


@given(st.lists(_STEP, max_size=25), st.randoms(use_true_random=False), st.integers(0, 80))
def test_order_and_repetition_never_matter(
    steps: list[tuple[str, int, int, int, int]], rng: Random, second: int
) -> None:
    entries = history(steps)
    one, other = ClaimFold(), ClaimFold()
    one.add(entries)
    shuffled = entries + rng.sample(entries, len(entries) // 2)
    rng.shuffle(shuffled)
    for entry in shuffled:
        other.holders(START + rng.randrange(80) * SECOND)  # readers between arrivals change nothing
        other.add([entry])
    now = START + second * SECOND
    assert one.live("", "issue-1", now) == other.live("", "issue-1", now)
    assert one.holders(now) == other.holders(now)


@given(st.lists(_STEP, max_size=25), st.randoms(use_true_random=False))
def test_entries_added_and_removed_again_leave_no_trace(
    steps: list[tuple[str, int, int, int, int]], rng: Random
) -> None:
    entries = history(steps)
    kept = [entry for entry in entries if rng.random() < 0.6]
    fold = folded(*entries)
    fold.holders(START)
    fold.remove(entry.id for entry in entries if entry not in kept)
    fresh = folded(*kept)
    for second in range(0, 80, 7):
        now = START + second * SECOND
        assert fold.live("", "issue-1", now) == fresh.live("", "issue-1", now)


@given(st.lists(_STEP, max_size=25))
def test_no_claim_is_taken_over_before_it_ends(steps: list[tuple[str, int, int, int, int]]) -> None:
    fold = folded(*history(steps))
    held: BoardClaim | None = None
    for second in range(80):
        now = START + second * SECOND
        found = fold.holder("", "issue-1", now)
        if held is not None and now < held.until:
            assert found == held
        held = found


def test_races_with_partitions_have_one_winner_after_healing() -> None:
    """Five nodes claim one key, each by what it has heard; the halves of a partition hear nothing of each other until
    it heals. Then all see one holder, and it is none that came after an unexpired one."""
    for seed in range(200):
        rng = Random(seed)
        nodes = [SampleNode(number, name=f"agent{number}") for number in range(5)]
        folds = [ClaimFold() for _ in nodes]
        side = [rng.randrange(2) for _ in nodes]
        clocks = [rng.randrange(-2000, 2000) for _ in nodes]
        entries: list[SignedEntry] = []
        granted: dict[int, SignedEntry] = {}
        for step in range(40):
            now = START + step * SECOND + rng.randrange(900)
            number = rng.randrange(5)
            me, local = nodes[number], now + clocks[number]
            own = granted.get(number)
            if own is None:
                if folds[number].holder("", "k", local) is not None:
                    continue
                entry = granted[number] = me.claim(local, "k", rng.randrange(5, 60))
            elif rng.random() < 0.3:
                entry = me.renew(local, own.id, 30)
            elif rng.random() < 0.1:
                entry = me.release(local, own.id)
                del granted[number]
            else:
                continue
            entries.append(entry)
            for other, fold in enumerate(folds):
                if side[other] == side[number]:
                    fold.add([entry])
        # Healing: each gets all the rest, in an order of its own.
        for fold in folds:
            arriving = rng.sample(entries, len(entries))
            for entry in arriving:
                fold.add([entry])
        before: BoardClaim | None = None
        for second in range(120):
            now = START + second * SECOND
            seen = {fold.holder("", "k", now) for fold in folds}
            assert len(seen) == 1, f"seed {seed}"
            (found,) = seen
            if before is not None and now < before.until:
                assert found == before, f"seed {seed}: taken over before its end"
            before = found
