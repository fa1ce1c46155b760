"""What a build says of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class BuildStage(StrEnum):
    """The parts of a build, in order. WAIT comes in where another process builds the same engine."""

    WAIT = "wait"
    FETCH = "fetch"
    VERIFY = "verify"
    UNPACK = "unpack"
    PATCH = "patch"
    CONFIGURE = "configure"
    COMPILE = "compile"
    INSTALL = "install"


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """`done` of `total` (bytes for fetch, verify and unpack; steps otherwise; total 0: not known) and a few words."""

    stage: BuildStage
    done: int = 0
    total: int = 0
    detail: str = ""


Report = Callable[[BuildProgress], None]


def silent(_: BuildProgress) -> None:
    """A `Report` for those who do not care."""
