"""Progress of a build."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from meshllm.util.progress import Progress


class BuildStage(StrEnum):
    """The stages of a build, in order. WAIT: another process builds the same engine."""

    WAIT = "wait"
    FETCH = "fetch"
    VERIFY = "verify"
    UNPACK = "unpack"
    PATCH = "patch"
    CONFIGURE = "configure"
    COMPILE = "compile"
    INSTALL = "install"


Report = Callable[[Progress], None]
"""Receives progress whose stage is a BuildStage; in bytes for FETCH, VERIFY and UNPACK, else in steps."""


def silent(_: Progress) -> None:
    """A `Report` that does nothing."""
