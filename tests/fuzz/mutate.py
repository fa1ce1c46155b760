"""Small changes to an input, for runs without a coverage-guided fuzzer."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

MAX_BYTES = 1 << 16
# Numbers at which lengths and counts go wrong.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def mutate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """`data` with one to four changes; some bring in a part of one of `others`."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(changed))
        match rng.randrange(7):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[at % len(changed)] = rng.randrange(256)
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del changed[at : at + rng.randint(1, 16)]
            case 4:
                width = rng.choice((1, 2, 4, 8))
                edge = rng.choice(EDGES) & ((1 << 8 * width) - 1)
                changed[at : at + width] = edge.to_bytes(width, rng.choice(("little", "big")))
            case 5 if others:
                other = rng.choice(others)
                start = rng.randint(0, len(other))
                changed[at:at] = other[start : start + rng.randint(1, 64)]
            case _:
                end = at + rng.randint(1, 32)
                changed[at:at] = changed[at:end] * rng.randint(1, 3)
    return bytes(changed[:MAX_BYTES])
