"""Merging two meshes with the same secret: which of the two ids stays.

Invariants: the decision follows a total order, so that both sides decide alike and any sequence of merges ends in one
id.
"""

from __future__ import annotations

from enum import Enum

from meshllm.core.records import MeshId


class MergeDecision(Enum):
    """What to do about the peer's mesh id."""

    SAME = "same"
    KEEP = "keep"  # the peer adopts ours
    ADOPT = "adopt"  # this node adopts the peer's


def decide(mine: MeshId, theirs: MeshId) -> MergeDecision:
    """The smaller id wins. An id is only a label: adopting another one interrupts nothing."""
    if mine == theirs:
        return MergeDecision.SAME
    return MergeDecision.ADOPT if theirs < mine else MergeDecision.KEEP
