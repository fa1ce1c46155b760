"""Token buckets: the rate, the burst, and clocks that step back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshllm.util.rate_limiter import TokenBucket


def test_token_bucket_allows_the_burst_then_the_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=5.0, now=10.0)
    assert [bucket.take(10.0) for _ in range(6)] == [True] * 5 + [False]
    assert [bucket.take(11.0) for _ in range(3)] == [True, True, False]


def test_token_bucket_refuses_an_amount_without_taking_any() -> None:
    bucket = TokenBucket(rate=1.0, burst=10.0, now=0.0)
    assert not bucket.take(0.0, 11)
    assert bucket.take(0.0, 10)


def test_token_bucket_ignores_a_clock_that_steps_back() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0, now=100.0)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 20)), max_size=50))
def test_token_bucket_never_exceeds_rate_and_burst(takes: list[tuple[float, float]]) -> None:
    bucket, now, taken = TokenBucket(rate=4.0, burst=16.0, now=0.0), 0.0, 0.0
    for pause, amount in takes:
        now += pause
        taken += amount if bucket.take(now, amount) else 0.0
        assert taken <= 16.0 + 4.0 * now + 1e-6
