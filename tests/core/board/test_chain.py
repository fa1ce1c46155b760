"""What may be in a chain follows from signed bytes alone, in whatever order the entries come."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.board.chain import Chain, chain_of
from meshllm.core.board.entries import ENTRIES_AT_ONCE, ENTRIES_PER_MINUTE, RESERVED_AT_ONCE, SignedEntry
from tests.core.board.made_entries import NOW_MS, entry

MINUTE = 60_000


def chain_with(*entries: SignedEntry) -> Chain:
    chain = Chain(chain_of(entries[0]), chain_of(entries[0]).key)
    for each in entries:
        assert chain.contradiction(each) is None
        chain.put(each)
    return chain


def test_same_number_with_another_text_is_a_contradiction() -> None:
    one, other = entry(1, body="one"), entry(1, body="other")
    assert chain_with(one).contradiction(other) == one
    assert chain_with(one).contradiction(one) is None


def test_times_may_not_decrease() -> None:
    chain = chain_with(entry(5, NOW_MS))
    assert chain.contradiction(entry(6, NOW_MS - 1)) is not None
    assert chain.contradiction(entry(4, NOW_MS + 1)) is not None
    assert chain.contradiction(entry(6, NOW_MS)) is None


def test_author_may_write_a_burst_and_then_the_steady_rate() -> None:
    most = ENTRIES_AT_ONCE + RESERVED_AT_ONCE
    burst = [entry(seq, NOW_MS) for seq in range(1, most + 1)]
    chain = chain_with(*burst)
    assert chain.contradiction(entry(most + 1, NOW_MS)) is not None
    assert chain.contradiction(entry(most + 1, NOW_MS + MINUTE // ENTRIES_PER_MINUTE)) is None


def test_slow_flood_is_found_though_each_step_is_small() -> None:
    """One a second is above ten a minute: every neighbour is fine, the whole is not."""
    chain, refused = Chain(chain_of(entry(1)), chain_of(entry(1)).key), 0
    for seq in range(1, 100):
        each = entry(seq, NOW_MS + seq * 1000)
        if chain.contradiction(each) is not None:
            refused = seq
            break
        chain.put(each)
    assert 30 < refused < 50


@given(st.lists(st.integers(0, 20_000), min_size=2, max_size=60), st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_decide(steps: list[int], rng: random.Random) -> None:
    moment, written = NOW_MS, []
    for seq, step in enumerate(steps, start=1):
        moment += step
        written.append(entry(seq, moment))

    def is_whole(entries: list[SignedEntry]) -> bool:
        chain = Chain(chain_of(entries[0]), chain_of(entries[0]).key)
        for each in entries:
            if chain.contradiction(each) is not None:
                return False
            chain.put(each)
        return True

    shuffled = list(written)
    rng.shuffle(shuffled)
    assert is_whole(written) == is_whole(shuffled)


def test_gaps_are_what_is_missing_between_floor_and_last() -> None:
    chain = chain_with(entry(7, NOW_MS), entry(3, NOW_MS), entry(4, NOW_MS))
    assert list(chain.gaps()) == [(1, 2), (5, 6)]
    chain.remove(3)
    assert list(chain.gaps()) == [(5, 6)]
    assert chain.numbers_in(4, 6) == [4]
