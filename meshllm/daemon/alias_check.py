"""Tells the owner of aliases whose models exist nowhere: a typing error would only be seen by callers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

# Seconds after the start: the disk is read, the backends are asked and the mesh is joined by then.
CHECK_SECONDS = 10.0


class AliasCheck:
    """Looks once. `notices`: what the owner should know, for the status."""

    def __init__(self, unknown: Callable[[], Mapping[str, str]], seconds: float = CHECK_SECONDS) -> None:
        """`unknown`: the aliases, with the models that they mean, for which there is no such model."""
        self.notices: tuple[str, ...] = ()
        self._unknown = unknown
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def close(self) -> None:
        """Do not look any more."""
        self._timer.cancel()

    def _check(self) -> None:
        self.notices = tuple(
            [
                f"The alias {alias} means {model}, which no node serves or has on its disk now. "
                "Check the name: GET /v1/models lists the models."
                for alias, model in self._unknown().items()
            ]
        )
        for notice in self.notices:
            log.warning("%s", notice)
