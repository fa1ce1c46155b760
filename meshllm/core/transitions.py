"""Transition tables of state machines: which state may follow which, and why.

Each table is a dict {(state, next state): why}. `scripts/docs.py` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

S = TypeVar("S", bound=Enum)


def move(table: Mapping[tuple[S, S], str], old: S, new: S) -> S:
    """`new`, if `table` has the pair (`old`, `new`). Raises ValueError, naming both states, for any other pair."""
    if (old, new) not in table:
        raise ValueError(f"{type(old).__name__}: {old.value} -> {new.value} is not in the transition table")
    return new
