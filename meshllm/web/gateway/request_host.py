"""The phases of a request, and what it needs of the gateway: the interface that `dispatcher.py` implements."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.routes import ModelRoute, Target
from meshllm.web.gateway.request_log import AttemptTrace
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.client import UpstreamPool

if TYPE_CHECKING:
    from meshllm.web.gateway.request import ProxiedRequest


class RequestPhase(Enum):
    """The phase of a request."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    SENT = "sent"
    BUFFERING = "buffering"
    STREAMING = "streaming"
    LOST = "lost"  # the engine's connection was lost; the core is about to say why
    DONE = "done"


class RequestHost(Protocol):
    """What a request needs of the gateway."""

    @property
    def now(self) -> Callable[[], float]:
        """The clock: seconds, monotonic."""

    @property
    def node(self) -> str:
        """The first digits of this node's id; empty if it is in no mesh."""

    @property
    def affinity(self) -> SessionAffinity:
        """Which host answered which conversation last."""

    def wall(self) -> int:
        """Seconds since the epoch, for timestamps that callers see."""

    def find(self, model: str, *, local_only: bool) -> tuple[ModelRoute, list[TargetQueue]]:
        """The route of `model` now, and the queues of its targets, best first."""

    def failed(self, queue: TargetQueue, model: str, now: float, *, whole: bool) -> None:
        """An attempt failed: the model rests there; with `whole`, all models of that peer or backend do."""

    def key_for(self, target: Target) -> str | None:
        """The API key that a backend requires."""

    def connect(self, request: ProxiedRequest, pool: UpstreamPool) -> None:
        """Open a connection; leads to `request.connected` or `request.not_connected`."""

    def engine_died(self, body: bytes, *, alone: bool) -> bool:
        """An engine here died while it processed `body`; returns whether that is refused from now on."""

    def host_crashed(self, body: bytes) -> None:
        """A host says that `body` crashed its engine."""

    def waits(self, request: ProxiedRequest, waiting: bool) -> None:
        """Call `request.reconsider` whenever something changes (True), or no longer (False)."""

    def attempt_ended(self, request: ProxiedRequest, attempt: AttemptTrace) -> None:
        """An attempt of `request`, the last one in its trace, is over."""

    def ended(self, request: ProxiedRequest) -> None:
        """The request is over; its trace is complete."""
