"""How long a host may take to the first byte of a streamed answer before another one is asked instead.

Source: the retransmission timer of TCP (Jacobson 1988; RFC 6298): smoothed mean and deviation, mean + 4 deviations,
doubled each time it has run out. Times are taken per token of the prompt, since reading it is what takes long; the
allowance of `FIXED_TOKENS` stands for what does not depend on its length.

Law: pure, and only an estimate. What it cannot know: a prompt that is in the host's cache costs next to nothing, so a
history of such flatters the host. Hence the bounds from below, and whoever uses it gives nobody up for lack of time
unless there is another host with a free slot.
"""

from __future__ import annotations

from meshllm.util.backoff import backoff

FIXED_TOKENS = 1000
# With history: no host is given up sooner than this (seconds), nor while it reads faster than so many tokens a second,
# which a processor without an accelerator just about does with a small model.
FLOOR_SECONDS = 20.0
SLOW_TOKENS_PER_SECOND = 100.0
# Without history nothing is known of its speed: a big model on a processor reads some 20 tokens a second.
UNKNOWN_SECONDS = 45.0
UNKNOWN_TOKENS_PER_SECOND = 20.0
MAX_SECONDS = 600.0
MIN_SAMPLES = 3


class FirstByteTimes:
    """What is known of one host's times to the first byte. Seconds and tokens."""

    __slots__ = ("_deviation", "_mean", "samples")

    def __init__(self) -> None:
        self.samples = 0
        self._mean = 0.0
        self._deviation = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """It took `seconds` for a prompt of about `tokens`."""
        rate = max(0.0, seconds) / (FIXED_TOKENS + tokens)
        self.samples += 1
        if self.samples == 1:
            self._mean, self._deviation = rate, rate / 2
            return
        self._deviation += (abs(rate - self._mean) - self._deviation) / 4
        self._mean += (rate - self._mean) / 8

    def deadline(self, tokens: int, late: int = 0) -> float:
        """Seconds that a prompt of about `tokens` may take; twice as long for each of the `late` hosts before."""
        if self.samples < MIN_SAMPLES:
            seconds = UNKNOWN_SECONDS + tokens / UNKNOWN_TOKENS_PER_SECOND
        else:
            expected = (self._mean + 4 * self._deviation) * (FIXED_TOKENS + tokens)
            seconds = max(expected, FLOOR_SECONDS + tokens / SLOW_TOKENS_PER_SECOND)
        return backoff(late, base=seconds, cap=MAX_SECONDS)
