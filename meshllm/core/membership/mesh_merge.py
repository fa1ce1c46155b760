"""Two meshes of one secret have met: who changes its id?

Law: the decision is antisymmetric and follows a total order, so that both sides of a meeting decide alike, any number
of meetings in any order end in one id, and no merge sets off another.
"""

from __future__ import annotations

from enum import Enum

from meshllm.core.records import MeshId


class MergeDecision(Enum):
    """What to do about the other's mesh id."""

    SAME = "same"
    KEEP = "keep"  # the other is to adopt ours
    ADOPT = "adopt"  # we adopt the other's


def decide(mine: MeshId, theirs: MeshId) -> MergeDecision:
    """The smaller id wins, always. That is all there is to weigh: an id is a label, and adopting one stops nothing."""
    if mine == theirs:
        return MergeDecision.SAME
    return MergeDecision.ADOPT if theirs < mine else MergeDecision.KEEP
