"""What a split took per token, compared with its forecast, and why they differ. Pure.

The cause is looked for among facts that the host knows: parallel requests, the round trips of the links, nodes on one
machine, other programs on this machine, nodes whose speed was never measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import NodeId
from meshllm.core.split.planner import SplitPlan, WorkerOffer, path_seconds, sharers

# A forecast that is off by more than this factor is explained.
MISS_FACTOR = 1.5
# A link explains a miss if it takes at least this part of the time that the forecast did not know of.
LINK_PART = 1 / 3
# Other programs explain a miss from this part of the machine's processors on.
OTHERS_PART = 0.25
# The time of a step is the mean of about so many last ones.
RECENT_STEPS = 256.0
NOTHING = DraftCounts()


@dataclass(frozen=True, slots=True)
class MeasuredSplit:
    """What a split took. `seconds`: for one step of the engine, which computes one token and checks drafted ones;
    0: not measured yet. `steps`: how many of the last ones count. `text`: how the forecast missed, and why, for users;
    "" if it did not. `counts`: of the engine process, as read last."""

    seconds: float = 0.0
    steps: float = 0.0
    text: str = ""
    counts: DraftCounts = NOTHING


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What may slow a split. `team`: its nodes as they are known now, the host first. `parallel`: the most requests at
    a time. `others`: the part of the host's processors that other programs use (None: unknown)."""

    team: tuple[WorkerOffer, ...]
    parallel: int = 1
    others: float | None = None


def new_steps(before: DraftCounts, counts: DraftCounts) -> tuple[int, float]:
    """Steps between two readings of an engine, and the seconds for them. Each accepted draft token saves a step."""
    steps = (counts.written - counts.accepted) - (before.written - before.accepted)
    return max(0, steps), max(0.0, counts.seconds - before.seconds)


def continued(old: MeasuredSplit, counts: DraftCounts) -> MeasuredSplit:
    """`old` with the steps up to `counts`; older steps count for less."""
    steps, seconds = new_steps(old.counts, counts)
    if steps == 0 or seconds <= 0:
        return MeasuredSplit(old.seconds, old.steps, old.text, counts)
    kept = old.steps * 0.5 ** (steps / RECENT_STEPS)
    mean = (old.seconds * kept + seconds) / (kept + steps)
    return MeasuredSplit(mean, kept + steps, old.text, counts)


def explain(plan: SplitPlan, seconds: float, found: Circumstances) -> str:
    """How the forecast of `plan` missed the measured `seconds`, and why; "" if it did not."""
    if not plan.seconds > 0 or not seconds > 0:
        return ""
    ratio = seconds / plan.seconds
    if 1 / MISS_FACTOR <= ratio <= MISS_FACTOR:
        return ""
    if ratio < 1:
        return f"{_times(1 / ratio)} faster than forecast: {_why_faster(plan)}"
    return f"{_times(ratio)} slower than forecast: {_why_slower(plan, seconds, found)}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def _why_faster(plan: SplitPlan) -> str:
    unmeasured = [offer.called for offer in plan.team if not offer.speed]
    if unmeasured:
        return f"the speed of {_listed(unmeasured)} was not measured"
    if plan.corrected:
        return "what slowed earlier answers is gone"
    return "the nodes compute faster than measured before"


def _why_slower(plan: SplitPlan, seconds: float, found: Circumstances) -> str:
    if found.parallel > 1:
        return f"{found.parallel} requests at a time share the nodes"
    if link := _slow_link(plan.team, found.team, seconds - plan.seconds):
        return link
    if groups := sharers(plan.team):
        return _shared_processor(plan.team, groups)
    if found.others is not None and found.others >= OTHERS_PART:
        return f"other programs use {found.others * 100:.0f} % of this machine's processor"
    unmeasured = [offer.called for offer in plan.team[1:] if not offer.speed]
    if unmeasured:
        return f"the speed of {_listed(unmeasured)} was not measured"
    return "the cause is unknown"


def _slow_link(before: Sequence[WorkerOffer], now: Sequence[WorkerOffer], excess: float) -> str:
    """The link whose round trip grew most, if the path grew by a good part of the `excess` seconds."""
    if path_seconds(now) - path_seconds(before) < LINK_PART * excess:
        return ""
    then: dict[NodeId, float] = {offer.node: offer.rtt for offer in before if offer.rtt is not None}
    grown = [(offer.rtt - then[offer.node], offer) for offer in now if offer.rtt is not None and offer.node in then]
    growth, worst = max(grown, key=lambda pair: pair[0], default=(0.0, None))
    if worst is None or worst.rtt is None or growth <= 0:
        return ""
    return f"the link to {worst.called} is busy (round trip {_ms(worst.rtt)}, before {_ms(then[worst.node])})"


def _shared_processor(team: Sequence[WorkerOffer], groups: Sequence[tuple[WorkerOffer, ...]]) -> str:
    """Which nodes share a processor; the host is this node."""
    here = next((group for group in groups if team[0] in group), None)
    if here is None:
        return f"{_listed([offer.called for offer in groups[0]])} share one machine's processor"
    if len(here) == len(team):
        return f"{'both' if len(team) == 2 else 'all'} nodes share this machine's processor"
    others = [offer.called for offer in here if offer is not team[0]]
    return f"{_listed(others)} and this node share this machine's processor"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
