"""What an exchange needs of the server it belongs to, and the words for where it is."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.routes import ModelRoute, Target
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.client import UpstreamPool

if TYPE_CHECKING:
    from meshllm.web.gateway.request import ProxiedRequest


class RequestPhase(Enum):
    """Where an exchange is."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    ASKING = "asking"
    BUFFERING = "buffering"
    STREAMING = "streaming"
    DONE = "done"


class RequestHost(Protocol):
    """What an exchange needs of the gateway it belongs to."""

    @property
    def now(self) -> Callable[[], float]:
        """The clock: seconds, monotonic."""

    def wall(self) -> int:
        """Seconds since the epoch, for timestamps that callers see."""

    def find(self, model: str) -> tuple[ModelRoute, list[TargetQueue]]:
        """Who can answer for `model` now, and the desks of its targets, best first."""

    @property
    def stickiness(self) -> SessionAffinity:
        """Who answered for which conversation."""

    def failed(self, desk: TargetQueue, now: float) -> None:
        """A request failed there: it rests, for everybody."""

    def key_for(self, target: Target) -> str | None:
        """The key that a backend wants of us."""

    def connect(self, exchange: ProxiedRequest, pool: UpstreamPool) -> None:
        """Make a connection; leads to `exchange.connected` or `exchange.not_connected`."""

    def waits(self, exchange: ProxiedRequest, waiting: bool) -> None:
        """`exchange` wants to `reconsider` when something changes (True), or no longer."""

    def ended(self, exchange: ProxiedRequest) -> None:
        """The exchange is over; its `outcome`, `status` and times stay readable."""
