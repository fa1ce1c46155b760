"""A bound of the values in a JSON text, checked before it is parsed.

A parser makes an object of some 70 bytes for three bytes of `[],`: 60 MiB of them take 2 GB and stop the event loop for
seconds. The values are counted by what comes before them; characters in strings count, too.
"""

from __future__ import annotations

# 150 MB of objects at most. 2,048 prompts of 1,000 token ids fit.
MAX_VALUES = 2_500_000
# Of a guest: 10 MB of text, which no context holds, has some 150,000 commas.
MAX_GUEST_VALUES = 250_000


def has_too_many_values(data: bytes | str, limit: int = MAX_VALUES) -> bool:
    """Whether parsing `data` may make more than `limit` values."""
    if len(data) <= limit:
        return False  # each value takes a character
    if isinstance(data, str):
        return data.count(",") + data.count("[") + data.count("{") >= limit
    return data.count(b",") + data.count(b"[") + data.count(b"{") >= limit
