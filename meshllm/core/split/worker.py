"""A node as a worker: it lends an rpc-server to the host of a split, for one lease at a time.

Law: what is lent belongs to the lease: it is prepared only for a proposal of the host's own, and ends with the link to
the host, with its word, or with the process. A host that proposes and is never heard of again holds nobody for long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Commit, Lease, LeaseMessage, LeasePhase, Propose, Release, WorkerReport
from meshllm.util.format import gigabytes
from meshllm.util.progress import Progress

# While it prepares, a worker says so this often; the host gives up on who is silent for longer (`hosting.py`).
TELL_SECONDS = 2.0
# A host that has everybody ready commits at once. Another member may still be fetching the model, for as long as it
# takes; but whoever hears nothing at all for so long is held by nobody any more.
COMMIT_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class WorkerLeaseState:
    """The lease that this node lends to, how far it is, and in words what is being done for it."""

    lease: Lease
    phase: LeasePhase
    detail: str = ""


class SplitWorker:
    """What this node lends, to one lease at a time."""

    def __init__(self, own: NodeId, send: Callable[[NodeId, LeaseMessage], None]) -> None:
        self._own = own
        self._send = send
        self._state: WorkerLeaseState | None = None
        self._tell_at: float | None = None
        self._end_at: float | None = None
        self._out: list[c.Command] = []

    @property
    def state(self) -> WorkerLeaseState | None:
        """The lease that is held; None if there is none."""
        return self._state

    def drain_commands(self) -> list[c.Command]:
        """What is to be done since the last time."""
        done = self._out[:]
        self._out.clear()
        return done

    def next_deadline(self) -> float | None:
        """When to look at the clock again."""
        return min((at for at in (self._tell_at, self._end_at) if at is not None), default=None)

    # -- what happens

    def on_propose(self, peer: NodeId, message: Propose, free: int, busy: str, now: float) -> None:
        """A host asks. `free` bytes could be lent; `busy` says why none are, or is empty."""
        lease = message.lease
        share = lease.share(self._own)
        if lease.host != peer or share is None:
            return  # not its own to propose, or nothing of ours: nobody honest says that
        held = self._state.lease if self._state is not None else None
        if held is not None and (held.host, held.session) == (peer, lease.session):
            if lease.generation <= held.generation:
                return
            self._end("a newer generation was proposed", tell=False)
        elif held is not None:
            busy = busy or f"it already carries layers of {held.model}"
        if busy or share.memory > free:
            words = busy or f"its share takes {gigabytes(share.memory)} and {gigabytes(free)} are free"
            self._send(peer, WorkerReport(lease.session, lease.generation, LeasePhase.ENDED, words))
            return
        self._state = WorkerLeaseState(lease, LeasePhase.PREPARING, "preparing")
        self._tell_at, self._end_at = now + TELL_SECONDS, now + COMMIT_SECONDS
        self._out.append(c.StartWorker(lease))
        self._tell(self._state)

    def on_message(self, peer: NodeId, message: LeaseMessage) -> None:
        """The host says something of the lease."""
        state = self._state
        if state is None or state.lease.host != peer:
            return
        match message:
            case Commit(session, generation) if state.phase is LeasePhase.READY and self._is(session, generation):
                self._state, self._end_at = replace(state, phase=LeasePhase.COMMITTED), None
            case Release(session, generation) if self._is(session, generation):
                self._end("the host released it", tell=False)
            case _:
                pass

    def on_worker_event(self, event: e.WorkerProgress | e.WorkerReady | e.WorkerGone) -> None:
        """Something happened to the process."""
        state = self._state
        if state is None or not self._is(event.session, event.generation):
            return
        match event:
            case e.WorkerProgress(_, _, progress):
                self._state = replace(state, detail=_words(progress))
            case e.WorkerReady() if state.phase is LeasePhase.PREPARING:
                self._tell_at = None
                self._state = replace(state, phase=LeasePhase.READY, detail="")
                self._tell(self._state)
            case e.WorkerGone(_, _, reason):
                self._tell(replace(state, phase=LeasePhase.ENDED, detail=reason))
                self._forget()
            case _:
                pass

    def host_lost(self, node: NodeId) -> None:
        """The link to `node` is gone, and with it every tunnel."""
        if self._state is not None and self._state.lease.host == node:
            self._end("the link to the host is gone", tell=False)

    def stop(self) -> None:
        """This node ends."""
        if self._state is not None:
            self._end("the worker stops", tell=True)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._state is None:
            return
        if self._end_at is not None and self._end_at <= now:
            self._end("the host never began", tell=True)
        elif self._tell_at is not None and self._tell_at <= now:
            self._tell_at = now + TELL_SECONDS
            self._tell(self._state)

    # -- inside

    def _is(self, session: bytes, generation: int) -> bool:
        lease = self._state.lease if self._state is not None else None
        return lease is not None and (lease.session, lease.generation) == (session, generation)

    def _tell(self, state: WorkerLeaseState) -> None:
        lease = state.lease
        self._send(lease.host, WorkerReport(lease.session, lease.generation, state.phase, state.detail))

    def _end(self, reason: str, *, tell: bool) -> None:
        assert self._state is not None
        lease = self._state.lease
        self._out.append(c.StopWorker(lease.session, lease.generation))
        if tell:
            self._tell(replace(self._state, phase=LeasePhase.ENDED, detail=reason))
        self._forget()

    def _forget(self) -> None:
        self._state = self._tell_at = self._end_at = None


def _words(progress: Progress) -> str:
    share = "" if progress.fraction is None else f" {progress.fraction * 100:.0f}%"
    return f"{progress.stage}{share}"
