"""The serialised status, cached so that all viewers of one change share one dump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshllm.web.console.redaction import redacted_status
from meshllm.web.console.status import NodeStatus

# Uptime and free memory change without an event, so that an older dump is not given to a new viewer.
MAX_AGE_SECONDS: Final = 1.0
# Redacted dumps differ by the host name that a caller uses; there are only a few.
MAX_AUDIENCES: Final = 16


@dataclass(frozen=True, slots=True)
class AudienceUrls:
    """URLs of the API and the console as a caller on another machine reaches them."""

    api: str
    console: str


class StatusCache:
    """Calls `status` once per version and second at most, and serialises it once per audience."""

    def __init__(self, status: Callable[[], NodeStatus], now: Callable[[], float]) -> None:
        """`now` is a monotonic clock in seconds."""
        self._status = status
        self._now = now
        self._version = -1
        self._made_at = 0.0
        self._current: NodeStatus | None = None
        self._texts: dict[AudienceUrls | None, str] = {}

    def text(self, version: int, audience: AudienceUrls | None) -> str:
        """The status as JSON at change number `version`; redacted for `audience`, whole if that is None."""
        now = self._now()
        if self._current is None or version != self._version or now - self._made_at > MAX_AGE_SECONDS:
            self._current, self._version, self._made_at = self._status(), version, now
            self._texts.clear()
        found = self._texts.get(audience)
        if found is None:
            if len(self._texts) >= MAX_AUDIENCES:
                self._texts.clear()
            found = self._texts[audience] = dumped(self._current, audience)
        return found


def dumped(status: NodeStatus, audience: AudienceUrls | None) -> str:
    """`status` as JSON; redacted for `audience`, whole if that is None."""
    if audience is not None:
        status = redacted_status(status, api=audience.api, console=audience.console)
    return status.model_dump_json()
