"""Whether the slots of a served model are taken for long: then the mesh should have another host for it. Pure.

Invariants: a model is pressed after `PRESSED_SECONDS` with more requests than slots, or after `FULL_SECONDS` with as
many, and stays so until less than half of the slots are taken for `RELIEVED_SECONDS`. Requests that
wait at the gateways of other nodes are not seen here: they fill the slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshllm.core.records import ModelLoad

PRESSED_SECONDS = 30.0
FULL_SECONDS = 120.0
RELIEVED_SECONDS = 60.0
RELIEVED_PART = 0.5


class PressureWatch:
    """The pressed models of this node."""

    def __init__(self) -> None:
        self.pressed: frozenset[str] = frozenset()
        self._above: dict[str, float] = {}  # since when there are more requests than slots
        self._full: dict[str, float] = {}  # since when all slots are taken
        self._below: dict[str, float] = {}  # since when most slots are free

    def update(self, loads: Iterable[ModelLoad], slots: Mapping[str, int], now: float) -> bool:
        """Take in the `loads` at `now`; returns whether `pressed` changed. `slots` of the models that are served."""
        pressure = {
            load.name: (load.active + load.waiting) / slots[load.name] for load in loads if slots.get(load.name, 0) > 0
        }
        self._above = _since(self._above, {model for model, part in pressure.items() if part > 1.0}, now)
        self._full = _since(self._full, {model for model, part in pressure.items() if part >= 1.0}, now)
        below = {model for model in self.pressed & slots.keys() if pressure.get(model, 0.0) < RELIEVED_PART}
        self._below = _since(self._below, below, now)
        before = self.pressed
        new = {model for model, since in self._above.items() if now >= since + PRESSED_SECONDS}
        new |= {model for model, since in self._full.items() if now >= since + FULL_SECONDS}
        kept = {model for model in before & slots.keys() if now < self._below.get(model, now) + RELIEVED_SECONDS}
        self.pressed = frozenset(new | kept)
        return self.pressed != before

    def next_deadline(self, now: float) -> float | None:
        """When `pressed` changes at `now` or later if no load changes before, or None."""
        times = [at + PRESSED_SECONDS for model, at in self._above.items() if model not in self.pressed]
        times += [at + FULL_SECONDS for model, at in self._full.items() if model not in self.pressed]
        times += [at + RELIEVED_SECONDS for at in self._below.values()]
        return min((at for at in times if at > now), default=None)


def _since(before: Mapping[str, float], models: Iterable[str], now: float) -> dict[str, float]:
    return {model: before.get(model, now) for model in models}
