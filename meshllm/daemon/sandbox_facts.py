"""How this node runs its engine processes: found once at the start, logged, and part of the status."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshllm import paths
from meshllm.daemon.settings import Settings
from meshllm.engine.sandbox.availability import available
from meshllm.engine.sandbox.policy import Caging, Sandboxing
from meshllm.util.threads import in_thread

if TYPE_CHECKING:
    from meshllm.web.console.status import SandboxStatus

log = logging.getLogger(__name__)


async def find(settings: Settings) -> Sandboxing:
    """Try the sandbox, in about 50 ms. A client runs no engine process and tries nothing."""
    if settings.client or not settings.sandbox:
        return Sandboxing(wanted=settings.sandbox)
    found = await in_thread(lambda stop: available(), "try the sandbox")
    return Sandboxing(found, wanted=True, cache=paths.cache() / "drivers")


def log_start(sandboxing: Sandboxing, settings: Settings) -> None:
    """Log how engine processes run; what the system lacks is a warning."""
    if settings.client:
        return
    match sandboxing.caging:
        case Caging.YES:
            log.info("engine processes run in a sandbox", extra={"fields": {"layers": sandboxing.available.layers}})
        case Caging.NO:
            problems = " ".join(sandboxing.available.problems)
            log.warning("engine processes run without a full sandbox; leases of other nodes are refused. %s", problems)
        case Caging.FORCED:
            log.warning("engine processes run without a sandbox: --no-sandbox")


def status(sandboxing: Sandboxing, settings: Settings) -> SandboxStatus | None:
    """The same for the status; None for a client."""
    from meshllm.web.console.status import SandboxStatus

    if settings.client:
        return None
    return SandboxStatus(
        caged=sandboxing.caging is Caging.YES,
        disabled=sandboxing.caging is Caging.FORCED,
        layers=sandboxing.available.layers,
        problems=list(sandboxing.available.problems),
    )
