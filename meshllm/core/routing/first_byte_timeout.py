"""The time a host may take to the first byte of a streamed answer before another host is asked. Pure.

Source: the retransmission timer of TCP (Jacobson 1988; RFC 6298): smoothed mean + 4 deviations, doubled after each
timeout. Times are taken per token of the prompt; `FIXED_TOKENS` stands for what does not depend on its length.

An estimate: a prompt in the host's cache costs next to nothing, so a history of such prompts makes the host look fast.
Hence the lower bounds, and the gateway gives up on a host only if another one has a free slot.
"""

from __future__ import annotations

from meshllm.util.backoff import backoff

FIXED_TOKENS = 1000
# With history: the timeout is at least this (seconds) plus the time for the prompt at this speed, which a CPU just
# about reaches with a small model.
FLOOR_SECONDS = 20.0
SLOW_TOKENS_PER_SECOND = 100.0
# Without history the speed is unknown: a large model on a CPU reads some 20 tokens a second.
UNKNOWN_SECONDS = 45.0
UNKNOWN_TOKENS_PER_SECOND = 20.0
MAX_SECONDS = 600.0
MIN_SAMPLES = 3


class FirstByteTimes:
    """The times to the first byte of one host."""

    __slots__ = ("_deviation", "_mean", "samples")

    def __init__(self) -> None:
        self.samples = 0
        self._mean = 0.0
        self._deviation = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Add a time of `seconds` for a prompt of about `tokens`."""
        rate = max(0.0, seconds) / (FIXED_TOKENS + tokens)
        self.samples += 1
        if self.samples == 1:
            self._mean, self._deviation = rate, rate / 2
            return
        self._deviation += (abs(rate - self._mean) - self._deviation) / 4
        self._mean += (rate - self._mean) / 8

    def deadline(self, tokens: int, late: int = 0) -> float:
        """The timeout in seconds for a prompt of about `tokens`, doubled for each of the `late` hosts before."""
        if self.samples < MIN_SAMPLES:
            seconds = UNKNOWN_SECONDS + tokens / UNKNOWN_TOKENS_PER_SECOND
        else:
            expected = (self._mean + 4 * self._deviation) * (FIXED_TOKENS + tokens)
            seconds = max(expected, FLOOR_SECONDS + tokens / SLOW_TOKENS_PER_SECOND)
        return backoff(late, base=seconds, cap=MAX_SECONDS)
