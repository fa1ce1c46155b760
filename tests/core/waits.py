"""The rule that nothing waits for an event that may never come, as a check of a core after any event."""

from __future__ import annotations

from meshllm.core.membership.views import JoinPhase
from meshllm.core.node import NodeCore
from meshllm.core.serving.next_step import RECHECK_SECONDS
from meshllm.core.snapshot import EnginePhase, FilePhase, ServerPhase

# Times are sums of floats.
TOLERANCE = 1e-6


def check_waits(core: NodeCore, now: float) -> None:
    """Raises AssertionError, naming what waits, if `core` does not ask to be woken for it."""
    snapshot = core.snapshot()
    deadline = core.next_deadline()
    waiting = [
        model.name
        for model in snapshot.models
        if model.wanted
        and not model.unloaded
        and model.server is not ServerPhase.SERVING
        and model.file is not FilePhase.FAILED
    ]
    if waiting:
        assert deadline is not None, f"{waiting}: nothing wakes this node"
        retries = [model.not_before for model in snapshot.models if model.not_before is not None]
        if snapshot.engine.phase is EnginePhase.FAILED or retries:
            return  # there is a time for the next attempt
        assert deadline <= now + RECHECK_SECONDS + TOLERANCE, f"{waiting}: decided on again in {deadline - now:.1f} s"
    if snapshot.worker_lease is not None:
        assert deadline is not None, "a lease of a worker has no end"
    joining = snapshot.mesh is not None and snapshot.mesh.phase not in (JoinPhase.ALONE, JoinPhase.JOINED)
    if joining and not snapshot.stopping:
        assert deadline is not None, "a join has no deadline"
