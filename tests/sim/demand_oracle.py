"""What placement with the same memory could reach at most: it knows the demand of the hour and loads in no time.

Both answers are upper bounds. `coverable` ignores that models compete for nodes. `answerable` is a maximum flow from
the models' requests to the slots of the nodes that can hold them, where one node may divide its slots between models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

# Less flow than this (slots) is rounding.
TINY = 1e-9


def coverable(able: Mapping[str, Collection[int]]) -> set[str]:
    """The models that a living node could serve. `able`: numbers of the nodes that hold each model."""
    return {model for model, nodes in able.items() if nodes}


def answerable(able: Mapping[str, Sequence[int]], wanted: Mapping[str, float], slots: float) -> dict[str, float]:
    """The part (0 to 1) of the requests for each model that can be answered. `wanted`: slots that they take; `slots`:
    of one node."""
    free = dict.fromkeys({node for nodes in able.values() for node in nodes}, slots)
    given: dict[int, dict[str, float]] = {node: {} for node in free}
    # The most wanted first: any order gives the maximum, for a later model makes room by moving earlier ones.
    for model in sorted(wanted, key=lambda name: -wanted[name]):
        left = wanted[model]
        while left > TINY and (pushed := _push(model, left, able, free, given)) > TINY:
            left -= pushed
    reached = dict.fromkeys(wanted, 0.0)
    for flows in given.values():
        for model, flow in flows.items():
            reached[model] += flow
    return {model: min(1.0, reached[model] / part) if part > TINY else 1.0 for model, part in wanted.items()}


def _push(
    model: str,
    most: float,
    able: Mapping[str, Sequence[int]],
    free: dict[int, float],
    given: dict[int, dict[str, float]],
) -> float:
    """Push flow of `model` along the shortest augmenting path; how much (0: there is none)."""
    came: dict[str, tuple[str, int]] = {}  # by which model, and over which node of its own, a model was reached
    tried: set[int] = set()
    queue = [model]
    for current in queue:
        for node in able[current]:
            if node in tried:
                continue
            tried.add(node)
            if free[node] > TINY:
                return _augment(model, current, node, most, came, free, given)
            for other, flow in given[node].items():
                if flow > TINY and other not in came and other != model:
                    came[other] = (current, node)
                    queue.append(other)
    return 0.0


def _augment(
    model: str,
    last: str,
    node: int,
    most: float,
    came: Mapping[str, tuple[str, int]],
    free: dict[int, float],
    given: dict[int, dict[str, float]],
) -> float:
    flow, current = min(most, free[node]), last
    while current != model:
        before, via = came[current]
        flow = min(flow, given[via][current])
        current = before
    free[node] -= flow
    current, target = last, node
    while True:
        given[target][current] = given[target].get(current, 0.0) + flow
        if current == model:
            return flow
        before, via = came[current]
        given[via][current] -= flow
        current, target = before, via
