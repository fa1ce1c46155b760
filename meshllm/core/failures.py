"""The event that answers a command which could not even be begun.

A command is answered by events (see `commands`). If its execution raises, this event takes their place: otherwise the
core would wait for an answer that never comes.
"""

from __future__ import annotations

from meshllm.core import commands as c
from meshllm.core import events as e

DEFECT_ADVICE = "This is a defect; please report it."


def failure(command: c.Command, reason: str) -> e.Event | None:
    """The event that says that `command` failed; None for a command that nothing answers."""
    match command:
        case c.PrepareEngine():
            return e.EngineFailed(reason, DEFECT_ADVICE)
        case c.FetchModel(model):
            return e.FileFailed(model, reason, DEFECT_ADVICE)
        case c.MeasureModel(model):
            return e.MeasureFailed(model, reason, DEFECT_ADVICE)
        case c.StartServer(model, generation) | c.StopServer(model, generation):
            return e.ServerGone(model, generation, reason, DEFECT_ADVICE)
        case c.StartWorker(lease):
            return e.WorkerGone(lease.session, lease.generation, reason)
        case c.StopWorker(session, generation):
            return e.WorkerGone(session, generation, reason)
        case c.ProbeBackend(url):
            return e.BackendSilent(url, f"{reason} {DEFECT_ADVICE}")
        case c.DialPeer(target):
            return e.DialFailed(target, reason, DEFECT_ADVICE, local=True)
        case c.SavePost(number):
            return e.PostFailed(number, reason)
        case _:
            return None
