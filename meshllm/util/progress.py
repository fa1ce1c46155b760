"""Progress of a long operation: an engine build, a transfer, a model load. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_FRACTION_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units (bytes, steps) in `stage`; total 0: unknown. `detail` is text for people."""

    stage: str
    done: int = 0
    total: int = 0
    detail: str = ""

    @classmethod
    def at(cls, stage: str, fraction: float | None, detail: str = "") -> Progress:
        """Progress that is known only as a fraction, 0 to 1 (None: unknown)."""
        if fraction is None:
            return Progress(stage, detail=detail)
        return Progress(stage, round(fraction * _FRACTION_STEPS), _FRACTION_STEPS, detail)

    @property
    def fraction(self) -> float | None:
        """The part that is done, 0 to 1; None if unknown."""
        return self.done / self.total if self.total else None
