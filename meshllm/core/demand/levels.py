"""Coarse levels of a request count, with hysteresis: what a node publishes of its demand.

A level is a factor of four. Counts vary with every request; a level changes only when the count has clearly changed.
Records name a demanded model by a key of four bytes: names of models would be a fifth of all gossip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

# Half of a count is left after this time (seconds) without requests.
HALF_LIFE_SECONDS = 600.0
# Models in a node's demand.
MAX_DEMANDED = 32
# The highest level: 16,384 requests or more, which are 19 a second for ten minutes.
MAX_LEVEL = 8
LEVEL_FACTOR = 4.0
# A model appears with its first request and disappears when less than this is left of it: 20 minutes later.
APPEARS_AT, DISAPPEARS_BELOW = 1.0, 0.25
# Of the key that stands for a model's name in a record.
KEY_BYTES = 4
# A level falls when the count is below this part of what it stands for.
FALL_PART = 0.5


@dataclass(frozen=True, slots=True)
class DemandLevel:
    """A model and the level (1 to `MAX_LEVEL`) of the requests for it."""

    model: str
    level: int


@dataclass(frozen=True, slots=True, order=True)
class KeyedLevel:
    """A demanded model in a record. `key`: its `model_key`; `level`: 1 to `MAX_LEVEL`."""

    key: int
    level: int


# Names in use at a time: those on the disks of a large mesh.
@lru_cache(maxsize=1 << 14)
def model_key(model: str) -> int:
    """A number of `KEY_BYTES` bytes that stands for the name of a model.

    Two names with one key share their demand. That is rare (a chance of 1 in 10,000 among 1,000 names), and harmless:
    a node takes only models on its own disk."""
    digest = blake2b(model.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES, person=b"demand").digest()
    return int.from_bytes(digest)


def keyed(levels: Iterable[DemandLevel]) -> tuple[KeyedLevel, ...]:
    """Levels as in a record, by key."""
    found: dict[int, int] = {}
    for entry in levels:
        key = model_key(entry.model)
        found[key] = max(found.get(key, 0), entry.level)
    return tuple([KeyedLevel(key, found[key]) for key in sorted(found)])


def requests_of(level: int) -> float:
    """The number of requests that a level stands for: the least that reaches it. 0 for level 0."""
    return 0.0 if level <= 0 else LEVEL_FACTOR ** (min(level, MAX_LEVEL) - 1)


def level_of(count: float, shown: int) -> int:
    """The level of `count`, given the level shown so far (0: none)."""
    if count < (DISAPPEARS_BELOW if shown else APPEARS_AT):
        return 0
    level = max(shown, 1)
    while level < MAX_LEVEL and count >= requests_of(level + 1):
        level += 1
    while level > 1 and count < FALL_PART * requests_of(level):
        level -= 1
    return level
