"""Counts the API requests of this node and of its clients, by model: decayed, bounded, published as levels.

Invariants: nothing depends on an event: counts decay and reports of clients expire at `next_deadline`. A model without
requests disappears. One client counts with a bounded number of requests, and all guests together do, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from meshllm.core.demand.levels import (
    HALF_LIFE_SECONDS,
    MAX_DEMANDED,
    DemandLevel,
    level_of,
    requests_of,
)
from meshllm.core.ids import NodeId

# Models that are counted; the largest `MAX_DEMANDED` of them are published.
MAX_COUNTED = 64
# Requests that one event can add for one model: ten times what a gateway answers in a second.
MAX_AT_ONCE = 10_000
# How often the levels are computed while there is demand, without any event.
REVIEW_SECONDS = 15.0
# A client repeats its report after the first time and is forgotten after the second.
REPORT_SECONDS = 60.0
REPORT_TTL_SECONDS = 180.0
# Requests that a client of the owner's own counts with, a guest, and all guests of a node together.
CLIENT_REQUESTS = 1024.0
GUEST_REQUESTS = 16.0
GUESTS_REQUESTS = 64.0


@dataclass(frozen=True, slots=True)
class _ClientReport:
    """What a client reported: requests by model; `until`: when it expires."""

    requests: Mapping[str, float]
    until: float
    guest: bool


class DemandCounter:
    """The demand that this node publishes."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._at = 0.0  # the time of `_counts`
        self._clients: dict[NodeId, _ClientReport] = {}
        self._review_at: float | None = None
        self.levels: tuple[DemandLevel, ...] = ()

    @property
    def models(self) -> Collection[str]:
        """The models that are counted."""
        return self._counts.keys()

    def next_deadline(self) -> float | None:
        """When to call `review` again, or None while there is no demand."""
        return self._review_at

    def add(self, requests: Mapping[str, int], now: float) -> None:
        """Callers of this node's API asked for models. The caller keeps unknown names out."""
        self._decay(now)
        for model, count in requests.items():
            if count <= 0:
                continue
            if model not in self._counts and len(self._counts) >= MAX_COUNTED:
                least = min(self._counts, key=lambda name: self._counts[name])
                if self._counts[least] >= count:
                    continue
                del self._counts[least]
            self._counts[model] = self._counts.get(model, 0.0) + min(count, MAX_AT_ONCE)
        self.review(now)

    def report(self, client: NodeId, demand: Iterable[DemandLevel], *, guest: bool, now: float) -> None:
        """A client reported its demand: it replaces the last report. `guest`: it is not one of the owner's machines."""
        found = {entry.model: requests_of(entry.level) for entry in demand if entry.level > 0}
        found = dict(sorted(found.items(), key=lambda item: -item[1])[:MAX_DEMANDED])
        if found:
            most = GUEST_REQUESTS if guest else CLIENT_REQUESTS
            self._clients[client] = _ClientReport(scaled(found, most), now + REPORT_TTL_SECONDS, guest)
        else:
            self._clients.pop(client, None)
        self.review(now)

    def forget(self, client: NodeId, now: float) -> None:
        """A client is not linked any more: it reports to another node."""
        if self._clients.pop(client, None) is not None:
            self.review(now)

    def review(self, now: float) -> bool:
        """Compute the levels at `now`; returns whether they changed."""
        self._decay(now)
        for client in [client for client, report in self._clients.items() if report.until <= now]:
            del self._clients[client]
        shown = {entry.model: entry.level for entry in self.levels}
        total = self._total()
        levels = {model: level_of(count, shown.get(model, 0)) for model, count in total.items()}
        for model in [model for model in self._counts if not levels[model] and self._counts[model] < 1.0]:
            del self._counts[model]
        # By level and name, not by count: the counts change all the time.
        found = sorted((-level, model) for model, level in levels.items() if level)[:MAX_DEMANDED]
        new = tuple([DemandLevel(model, -level) for level, model in sorted(found, key=lambda item: item[1])])
        changed, self.levels = new != self.levels, new
        self._review_at = now + REVIEW_SECONDS if self._counts or self._clients else None
        return changed

    def _decay(self, now: float) -> None:
        if now > self._at:
            part = 0.5 ** ((now - self._at) / HALF_LIFE_SECONDS)
            self._counts = {model: count * part for model, count in self._counts.items()}
        self._at = max(self._at, now)

    def _total(self) -> dict[str, float]:
        """The requests of this node and of its clients."""
        total = dict(self._counts)
        guests: dict[str, float] = {}
        for report in self._clients.values():
            into = guests if report.guest else total
            for model, count in report.requests.items():
                into[model] = into.get(model, 0.0) + count
        for model, count in scaled(guests, GUESTS_REQUESTS).items():
            total[model] = total.get(model, 0.0) + count
        return total


Model = TypeVar("Model")


def scaled(requests: Mapping[Model, float], most: float) -> dict[Model, float]:
    """`requests` by model, each smaller by the same factor if together they are more than `most`."""
    total = sum(requests.values())
    factor = most / total if total > most else 1.0
    return {model: count * factor for model, count in requests.items()}
