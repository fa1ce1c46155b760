"""Bounds how often one place in the program may log, so that a peer or a caller cannot flood the log.

A line above the bound is counted; the next line of that place carries the number in its field `left_out`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from meshllm.util.rate_limiter import TokenBucket

# Lines of one place in the program: 200 at once, then 5 a second, 1 kB/s.
BURST: Final = 200.0
RATE: Final = 5.0
# It has a bound of its own, for each kind of outcome (`web.gateway.request_log`).
ACCESS_LOGGER: Final = "meshllm.access"


class FloodFilter(logging.Filter):
    """A filter for one handler. The places are the program's own lines, so that their number is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, monotonic."""
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, str, int], tuple[TokenBucket, list[int]]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.name == ACCESS_LOGGER:
            return True
        now = self._clock()
        place = (record.name, record.pathname, record.lineno)
        found = self._places.get(place)
        if found is None:
            found = self._places[place] = (TokenBucket(RATE, BURST, now), [0])
        allowance, left_out = found
        if not allowance.take(now):
            left_out[0] += 1
            return False
        if left_out[0]:
            fields = getattr(record, "fields", None)
            record.fields = {**(fields if isinstance(fields, Mapping) else {}), "left_out": left_out[0]}
            left_out[0] = 0
        return True
