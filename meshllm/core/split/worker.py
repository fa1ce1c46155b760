"""The worker side of a split: one lease at a time, and the rpc-server that belongs to it.

Invariants: a lease ends with its time to live, the link to its host, a Release, or the rpc-server, whichever is first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.observation import SHOWN_CHANGE
from meshllm.core.records import NodeId
from meshllm.core.split.lease import (
    LEASE_TTL_SECONDS,
    TRANSITIONS,
    Commit,
    Lease,
    LeaseMessage,
    LeasePhase,
    Propose,
    Release,
    Renew,
    WorkerReport,
)
from meshllm.core.transitions import move
from meshllm.util.format import gigabytes
from meshllm.util.progress import Progress

# Until the lease is committed the worker reports its phase this often; the host drops a worker that is silent for
# longer (`host.SILENT_SECONDS`).
REPORT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class WorkerLeaseState:
    """The lease that this node holds as a worker. `detail`: what the worker does now, for users; `memory_used`: bytes
    that its process takes (0: unknown); `leaving`: the host was asked to do without this node."""

    lease: Lease
    phase: LeasePhase
    detail: str = ""
    memory_used: int = 0
    leaving: bool = False


class SplitWorker:
    """The lease that this node holds as a worker, if any."""

    def __init__(self, own: NodeId, send: Callable[[NodeId, LeaseMessage], None]) -> None:
        self._own = own
        self._send = send
        self._state: WorkerLeaseState | None = None
        self._report_at: float | None = None
        self._expires_at: float | None = None
        self._commands: list[c.Command] = []

    @property
    def state(self) -> WorkerLeaseState | None:
        """The lease that this node holds; None if it holds none."""
        return self._state

    def drain_commands(self) -> list[c.Command]:
        """The commands since the last call."""
        done = self._commands[:]
        self._commands.clear()
        return done

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        return min((at for at in (self._report_at, self._expires_at) if at is not None), default=None)

    # -- events

    def on_propose(self, peer: NodeId, message: Propose, free: int, busy: str, now: float) -> None:
        """A host proposes a lease. `free`: bytes this node offers; `busy`: why it accepts no lease, "" if it does."""
        lease = message.lease
        share = lease.share(self._own)
        if lease.host != peer or share is None:
            return  # only the host itself may propose, and only a lease with a share for this node
        held = self._state.lease if self._state is not None else None
        if held is not None and held.host == peer and held.session == lease.session:
            if lease.generation == held.generation:
                self._renew(now)
                self._report(now)  # a repeated proposal: the host has not received a report
            if lease.generation <= held.generation:
                return
            self._end("a newer generation was proposed")
        elif held is not None and held.host == peer and held.model == lease.model:
            # A host keeps the session of a model as long as it runs: this host was restarted.
            self._end("the host was restarted")
        elif held is not None:
            busy = busy or f"it already serves layers of {held.model}"
        if busy or share.memory > free:
            refusal = busy or f"its share needs {gigabytes(share.memory)}, free: {gigabytes(free)}"
            self.refuse(peer, lease, refusal)
            return
        self._state = WorkerLeaseState(lease, move(TRANSITIONS, LeasePhase.ASKED, LeasePhase.PREPARING), "preparing")
        self._renew(now)
        self._commands.append(c.StartWorker(lease))
        self._report(now)

    def refuse(self, peer: NodeId, lease: Lease, reason: str) -> None:
        """Answer a proposal of `peer` that may not count, and hold nothing for it."""
        self._send(peer, WorkerReport(lease.session, lease.generation, LeasePhase.ENDED, reason))

    def on_message(self, peer: NodeId, message: LeaseMessage, now: float) -> None:
        """The host commits, renews or releases a lease."""
        match message:
            case Release(session, generation):
                if self._holds(peer, session, generation):
                    self._end("the host released it")
            case Commit(session, generation) | Renew(session, generation):
                if not self._holds(peer, session, generation):
                    # The host may wait for this lease, or serve with it: it must plan without this worker.
                    self._send(
                        peer, WorkerReport(session, generation, LeasePhase.ENDED, "the worker has no such lease")
                    )
                    return
                self._renew(now)
                if isinstance(message, Commit) or message.committed:
                    self._commit()
                if self._state is not None and self._state.leaving:
                    self._report_leaving(self._state.lease)  # again: the host may be another process by now
            case _:
                pass

    def on_worker_event(self, event: e.WorkerProgress | e.WorkerReady | e.WorkerGone, now: float) -> None:
        """The rpc-server, or what it needs, made progress or ended."""
        state = self._state
        if state is None or not self._holds(state.lease.host, event.session, event.generation):
            return
        match event:
            case e.WorkerProgress(_, _, progress):
                self._state = replace(state, detail=_progress_text(progress))
            case e.WorkerReady() if state.phase is LeasePhase.PREPARING:
                self._state = replace(state, phase=move(TRANSITIONS, state.phase, LeasePhase.READY), detail="")
                self._report(now)
            case e.WorkerGone(_, _, reason):
                self._report_end(reason)
                self._clear()
            case _:
                pass

    def memory_used(self, used: int) -> None:
        """Bytes that the worker process takes now. Small changes are not shown."""
        if self._state is not None and abs(used - self._state.memory_used) > SHOWN_CHANGE * self._state.memory_used:
            self._state = replace(self._state, memory_used=used)

    def host_lost(self, node: NodeId) -> None:
        """The link to `node` is closed, and every tunnel with it."""
        if self._state is not None and self._state.lease.host == node:
            self._end("the link to the host is closed")

    def leave(self) -> None:
        """This node is about to stop: ask the host to do without it, if it computes for it; else end the lease."""
        state = self._state
        if state is not None and state.phase is LeasePhase.COMMITTED:
            self._state = replace(state, leaving=True, detail="stopping once the host needs it no more")
            self._report_leaving(state.lease)
        else:
            self.stop()

    def stop(self) -> None:
        """This node stops."""
        if self._state is not None:
            self._report_end("the worker stops")
            self._end("the worker stops")

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._state is None:
            return
        if self._expires_at is not None and self._expires_at <= now:
            reason = f"not renewed by the host for {LEASE_TTL_SECONDS:.0f} s"
            self._report_end(reason)
            self._end(reason)
        elif self._report_at is not None and self._report_at <= now:
            self._report(now)

    # -- inside

    def _holds(self, host: NodeId, session: bytes, generation: int) -> bool:
        lease = self._state.lease if self._state is not None else None
        return lease is not None and (lease.host, lease.session, lease.generation) == (host, session, generation)

    def _renew(self, now: float) -> None:
        self._expires_at = now + LEASE_TTL_SECONDS

    def _commit(self) -> None:
        state = self._state
        if state is not None and state.phase is LeasePhase.READY:
            self._state = replace(state, phase=move(TRANSITIONS, state.phase, LeasePhase.COMMITTED))
            self._report_at = None

    def _report(self, now: float) -> None:
        """Report the phase, and again after `REPORT_SECONDS` unless the lease is committed."""
        state = self._state
        assert state is not None
        if state.phase is LeasePhase.COMMITTED:
            return
        self._report_at = now + REPORT_SECONDS
        lease = state.lease
        self._send(lease.host, WorkerReport(lease.session, lease.generation, state.phase, state.detail))

    def _report_leaving(self, lease: Lease) -> None:
        report = WorkerReport(lease.session, lease.generation, LeasePhase.READY, "the worker stops", leaving=True)
        self._send(lease.host, report)

    def _report_end(self, reason: str) -> None:
        state = self._state
        assert state is not None
        phase = move(TRANSITIONS, state.phase, LeasePhase.ENDED)
        self._send(state.lease.host, WorkerReport(state.lease.session, state.lease.generation, phase, reason))

    def _end(self, reason: str) -> None:
        """Give the lease back and stop what was started for it."""
        assert self._state is not None
        lease = self._state.lease
        self._commands.append(c.StopWorker(lease.session, lease.generation, reason))
        self._clear()

    def _clear(self) -> None:
        self._state = self._report_at = self._expires_at = None


def _progress_text(progress: Progress) -> str:
    percent = "" if progress.fraction is None else f" {progress.fraction * 100:.0f}%"
    return f"{progress.stage}{percent}"
