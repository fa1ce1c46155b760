"""The host side of splits: plan, propose, wait for the workers, commit, renew.

Invariants: one lease for each split model; a lease without one of its workers is released, and the next generation is
planned without that worker. A better worker that appears later changes nothing that is committed, nor does a
measurement: it corrects the forecasts of later plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from meshllm.core.membership.links import Rng
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import NodeId, short
from meshllm.core.split.corrections import LEAST_STEPS, Corrections
from meshllm.core.split.lease import (
    RENEW_SECONDS,
    SESSION_BYTES,
    TRANSITIONS,
    Commit,
    Lease,
    LeasedFile,
    LeaseMessage,
    LeasePhase,
    MemberState,
    Propose,
    Release,
    Renew,
    WorkerReport,
)
from meshllm.core.split.measurement import Circumstances, MeasuredSplit, continued, explain, new_steps
from meshllm.core.split.planner import Correct, NoPlan, SplitNeed, SplitPlan, WorkerOffer, forecast_for, plan
from meshllm.core.transitions import move
from meshllm.util.format import gigabytes

# Until the first report about a proposal: a dial (5 s at most) and a round trip.
ASKED_SECONDS = 8.0
# A worker reports every 2 s until its lease is committed (`worker.REPORT_SECONDS`).
SILENT_SECONDS = 10.0
# A dropped worker is left out of plans for this long: a lost one may reconnect soon, a busy one stays busy for longer.
LOST_SECONDS = 5.0
REFUSED_SECONDS = 30.0
# If no plan works without it, a lost worker is asked again after this: often only its rpc-server has died.
AGAIN_SECONDS = 1.0
# Without a plan, planning is repeated this often: memory may appear at any time.
PLAN_SECONDS = 1.0


UNMEASURED = MeasuredSplit()


@dataclass(frozen=True, slots=True)
class SizeNeed:
    """The memory that a model needs when served with `size`."""

    size: ContextSize
    need: SplitNeed


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """Memory that a model needs on this node, by the engine's arithmetic.

    `fits_locally`: the model fits on this node in some size. `disk_paging`: it does not fit, but this node can serve it
    slowly with weights read from the disk. `free_bytes`: memory of this node for the model. `sizes`: sizes to try in a
    split, best first. `files`: the files that workers need. `least_bytes`: an estimate of the least memory in which the
    model fits (0: unknown)."""

    fits_locally: bool
    free_bytes: int
    sizes: tuple[SizeNeed, ...] = ()
    files: tuple[LeasedFile, ...] = ()
    disk_paging: bool = False
    least_bytes: int = 0

    def need_of(self, size: ContextSize | None) -> SplitNeed | None:
        """The need with `size`; None if that is none of the sizes."""
        return next((tried.need for tried in self.sizes if tried.size == size), None)


@dataclass(frozen=True, slots=True)
class SplitState:
    """The state of one split, and the `reason` for it.

    `refused`: the known nodes cannot serve the model. `disk_paging`: it is refused, and this node serves it from the
    disk. `plan`, `size`, `lease` and `members` are set once there is a plan; `committed`: the engine may start.
    `measured`: what the committed split took.
    """

    reason: str = ""
    refused: bool = False
    disk_paging: bool = False
    plan: SplitPlan | None = None
    size: ContextSize | None = None
    lease: Lease | None = None
    members: tuple[MemberState, ...] = ()
    committed: bool = False
    measured: MeasuredSplit = UNMEASURED

    @property
    def leaving(self) -> tuple[str, ...]:
        """The names of the workers that are about to stop."""
        return tuple(member.name or short(member.node) for member in self.members if member.leaving)

    def status_text(self) -> str:
        """What the split waits for, for users."""
        if self.disk_paging:
            return f"served by this node alone, slowly, with weights read from the disk ({self.reason})"
        if self.lease is None:
            return self.reason
        workers = ", ".join(_waiting_text(member) for member in self.members if _waited_for(member))
        return f"waiting for {workers}" if workers else self.reason


class SplitHost:
    """The splits that this node hosts, by model."""

    def __init__(
        self,
        own: NodeId,
        rng: Rng,
        send: Callable[[NodeId, LeaseMessage], None],
        linked: Callable[[NodeId], bool],
        dial: Callable[[NodeId, float], bool],
        corrections: Corrections | None = None,
    ) -> None:
        """`linked`: whether there is a link to a node; `dial`: make one, False if that cannot be done now;
        `corrections`: what earlier splits took."""
        self.corrections = corrections or Corrections()
        self._own = own
        self._rng = rng
        self._send = send
        self._linked = linked
        self._dial = dial
        self._splits: dict[str, SplitState] = {}
        self._sessions: dict[str, bytes] = {}
        self._generations: dict[str, int] = {}
        # The workers of the last lease of a model while there is no new one: each that is lost now is left out, too.
        self._dropped_team: dict[str, tuple[NodeId, ...]] = {}
        self._left_out: dict[NodeId, float] = {}  # not planned with, until then
        self._returning: dict[NodeId, float] = {}  # of these, the ones that may reconnect soon
        self._plan_at: dict[str, float] = {}
        self._renew_at: float | None = None

    def state(self, model: str) -> SplitState | None:
        """The split of `model`; None if there is none."""
        return self._splits.get(model)

    def states(self) -> Iterable[tuple[str, SplitState]]:
        """All splits, by model."""
        return self._splits.items()

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        times = list(self._plan_at.values())
        leased = [split for split in self._splits.values() if split.lease is not None]
        if leased and self._renew_at is not None:
            times.append(self._renew_at)
        for split in leased:
            times += [_deadline(member) for member in split.members if _reports(member)]
        return min(times, default=None)

    # -- called by the core

    def advance_lease(
        self,
        model: str,
        measured: MeasuredModel,
        host: WorkerOffer,
        workers: Sequence[WorkerOffer],
        now: float,
        *,
        force: bool,
    ) -> SplitState:
        """Advance the lease of `model`: plan and propose, or commit when all workers are ready.

        `host` is this node. A state with a plan but without a lease means: serve the model on this node alone.
        """
        split = self._splits.get(model)
        if split is not None and split.committed:
            return split
        if split is not None and split.lease is not None:
            if all(member.phase is LeasePhase.READY for member in split.members):
                known = _with_forecast(split, measured, (host, *workers), self._correct(now))
                split = self._commit(model, known, split.lease)
            return split
        if split is not None and model in self._plan_at:
            return split
        return self._propose(model, measured, host, workers, now, force=force)

    def on_decode(
        self, model: str, need: SplitNeed | None, counts: DraftCounts, found: Circumstances, now: float
    ) -> bool:
        """The engine of a committed split has written `counts` since its start, under the circumstances `found`.

        Returns whether later forecasts change. What several requests at a time took teaches nothing: a forecast is for
        one.
        """
        split = self._splits.get(model)
        if split is None or not split.committed or split.plan is None:
            return False
        before, shown = split.measured.counts, split.plan
        result = continued(split.measured, counts)
        text = explain(shown, result.seconds, found) if result.steps >= LEAST_STEPS else ""
        self._splits[model] = replace(split, measured=replace(result, text=text))
        steps, seconds = new_steps(before, counts)
        if need is None or found.parallel > 1 or not steps:
            return False
        nodes = [share.node for share in shown.shares]
        return self.corrections.observe(nodes, need.token_bytes, shown.plain_seconds, seconds / steps, steps, now)

    def release(self, model: str, reason: str) -> None:
        """Release the lease of `model`, if there is one."""
        split = self._splits.pop(model, None)
        self._plan_at.pop(model, None)
        self._dropped_team.pop(model, None)
        if split is not None and split.lease is not None:
            self._release(split, reason)

    def on_worker_status(self, peer: NodeId, message: WorkerReport, now: float) -> None:
        """A worker reports the phase of its lease. A report that is not a possible next phase is ignored."""
        for model, split in self._splits.items():
            lease = split.lease
            if lease is None or (lease.session, lease.generation) != (message.session, message.generation):
                continue
            member = next((m for m in split.members if m.node == peer), None)
            if member is not None and message.leaving:
                self._member_leaves(model, split, member, now)
                return
            if member is None or (member.phase, message.phase) not in TRANSITIONS:
                return
            if message.phase is LeasePhase.COMMITTED:
                return  # only the host decides that
            if message.phase is LeasePhase.ENDED:
                if member.phase is LeasePhase.ASKED:
                    self.drop_member(peer, f"refused: {message.detail}", now, REFUSED_SECONDS)
                else:
                    self.drop_member(peer, f"ended its lease: {message.detail}", now)
                return
            reported = replace(
                member,
                phase=move(TRANSITIONS, member.phase, message.phase),
                detail=message.detail,
                reported_at=now,
            )
            members = tuple(reported if m.node == peer else m for m in split.members)
            self._splits[model] = replace(split, members=members)
            return

    def _member_leaves(self, model: str, split: SplitState, member: MemberState, now: float) -> None:
        """A worker is about to stop: plan without it, once the answers of a committed split have ended."""
        if not split.committed:
            self.drop_member(member.node, "stops", now, REFUSED_SECONDS)
        elif not member.leaving:
            self._leave_out(member.node, now, REFUSED_SECONDS)
            leaving = replace(member, leaving=True, detail="stops when the answers have ended")
            members = tuple(leaving if m.node == member.node else m for m in split.members)
            self._splits[model] = replace(split, members=members)

    def link_up(self, peer: NodeId, now: float) -> None:
        """A link to `peer` is up: send it the proposals that wait for one."""
        for split in self._splits.values():
            if split.lease is not None and any(m.node == peer and m.phase is LeasePhase.ASKED for m in split.members):
                self._send(peer, Propose(split.lease))

    def tunnel_broken(self, peer: NodeId, session: bytes, generation: int, now: float) -> None:
        """The tunnel to `peer` broke. The engine never reconnects, so the lease is useless."""
        for split in self._splits.values():
            lease = split.lease
            if split.committed and lease is not None and (lease.session, lease.generation) == (session, generation):
                self.drop_member(peer, "is lost: the tunnel to it broke", now)
                return

    def drop_member(self, peer: NodeId, reason: str, now: float, seconds: float = LOST_SECONDS) -> None:
        """Release each lease that `peer` is part of, and plan without `peer` for `seconds`. `reason`: a predicate."""
        for model, split in list(self._splits.items()):
            if split.lease is not None and split.lease.share(peer) is not None:
                self._drop(model, split, {peer: reason}, now, seconds)
            elif peer in self._dropped_team.get(model, ()):
                self._leave_out(peer, now, seconds)

    def tick(self, now: float) -> None:
        """Renew the leases, drop the workers that did not report in time, and allow the next plan."""
        for model, split in list(self._splits.items()):
            if not split.committed:
                silent = {m.node: "timed out" for m in split.members if _reports(m) and now >= _deadline(m)}
                if silent:
                    self._drop(model, split, silent, now, LOST_SECONDS)
        for model in [model for model, at in self._plan_at.items() if at <= now]:
            del self._plan_at[model]
        if self._renew_at is not None and self._renew_at <= now:
            self._renew(now)

    # -- inside

    def _correct(self, now: float) -> Correct:
        return lambda nodes, token_bytes, plain: self.corrections.forecast(nodes, token_bytes, plain, now)

    def _renew(self, now: float) -> None:
        """Renew every lease; a proposal without a report is repeated instead."""
        self._renew_at = None
        for split in self._splits.values():
            lease = split.lease
            if lease is None:
                continue
            self._renew_at = now + RENEW_SECONDS
            for member in split.members:
                if not self._linked(member.node):
                    continue
                if member.phase is LeasePhase.ASKED:
                    self._send(member.node, Propose(lease))
                else:
                    self._send(member.node, Renew(lease.session, lease.generation, split.committed))

    def _drop(self, model: str, split: SplitState, lost: Mapping[NodeId, str], now: float, seconds: float) -> None:
        """The lease of `model` is over because of the workers in `lost` (each with the reason)."""
        assert split.lease is not None
        for peer in lost:
            self._leave_out(peer, now, seconds)
        # The dropped worker as well: its link may be up, and its memory must not stay taken.
        self._release(split, "a worker was lost")
        self._dropped_team[model] = split.lease.members
        names = {member.node: member.name or short(member.node) for member in split.members}
        text = "; ".join(f"worker {names.get(peer, short(peer))} {reason}" for peer, reason in lost.items())
        self._splits[model] = SplitState(text)

    def _leave_out(self, peer: NodeId, now: float, seconds: float) -> None:
        self._left_out[peer] = now + seconds
        if seconds <= LOST_SECONDS:
            self._returning[peer] = now + seconds

    def _propose(
        self,
        model: str,
        measured: MeasuredModel,
        host: WorkerOffer,
        workers: Sequence[WorkerOffer],
        now: float,
        *,
        force: bool,
    ) -> SplitState:
        for left_out in (self._left_out, self._returning):
            for node in [node for node, until in left_out.items() if until <= now]:
                del left_out[node]
        willing = [worker for worker in workers if worker.node not in self._left_out]
        again = now + LOST_SECONDS - AGAIN_SECONDS
        more = [worker for worker in workers if self._returning.get(worker.node, again + 1.0) <= again]
        refusal = ""
        for tried, team in [(tried, team) for team in (willing, [*willing, *more]) for tried in measured.sizes]:
            found = plan(tried.need, host, team, model, force=force, correct=self._correct(now))
            if isinstance(found, NoPlan):
                refusal = found.reason  # in the end, of the smallest size
                continue
            reason = (
                f"{found.reason}; {_memory_text(found, tried, measured.sizes[0].size)}"
                if found.members
                else found.reason
            )
            split = SplitState(reason, plan=found, size=tried.size)
            if found.members:
                names = {worker.node: worker.name for worker in workers}
                split = self._ask(model, split, found, measured.files, names, now)
            self._splits[model] = split
            return split
        self._plan_at[model] = now + PLAN_SECONDS
        returning = [worker.called for worker in workers if worker.node in self._returning]
        if returning:
            # An error now would be wrong within seconds: callers wait.
            self._splits[model] = SplitState(f"{', '.join(returning)} disconnected; retrying in a few seconds")
        else:
            self._splits[model] = SplitState(refusal, refused=True)
        return self._splits[model]

    def _ask(
        self,
        model: str,
        split: SplitState,
        found: SplitPlan,
        files: tuple[LeasedFile, ...],
        names: Mapping[NodeId, str],
        now: float,
    ) -> SplitState:
        session = self._sessions.setdefault(model, bytes(self._rng.randrange(256) for _ in range(SESSION_BYTES)))
        generation = self._generations[model] = self._generations.get(model, 0) + 1
        lease = Lease(session, generation, model, files, found.shares)
        for node in lease.members:
            if self._linked(node):
                self._send(node, Propose(lease))
            else:
                self._dial(node, now)  # `link_up` sends the proposal
        self._dropped_team.pop(model, None)
        if self._renew_at is None:
            self._renew_at = now + RENEW_SECONDS
        members = tuple(MemberState(node, reported_at=now, name=names[node]) for node in lease.members)
        return replace(split, lease=lease, members=members)

    def _commit(self, model: str, split: SplitState, lease: Lease) -> SplitState:
        for node in lease.members:
            self._send(node, Commit(lease.session, lease.generation))
        members = tuple(
            replace(member, phase=move(TRANSITIONS, member.phase, LeasePhase.COMMITTED), detail="")
            for member in split.members
        )
        self._splits[model] = replace(split, members=members, committed=True)
        return self._splits[model]

    def _release(self, split: SplitState, reason: str) -> None:
        assert split.lease is not None
        for node in split.lease.members:
            self._send(node, Release(split.lease.session, split.lease.generation, reason))


def _with_forecast(
    split: SplitState, measured: MeasuredModel, known: Sequence[WorkerOffer], correct: Correct
) -> SplitState:
    """`split` with the forecast for the round trips known now: at planning time there may have been no link."""
    offers = {offer.node: offer for offer in known}
    need = measured.need_of(split.size)
    if need is None or split.plan is None or any(share.node not in offers for share in split.plan.shares):
        return split
    team = [offers[share.node] for share in split.plan.shares]
    return replace(split, plan=forecast_for(need, team, split.plan, correct))


def _memory_text(found: SplitPlan, tried: SizeNeed, best: ContextSize) -> str:
    """What a split takes in all, and for what, for users: a smaller size or one node alone takes less. `best`: what it
    would serve with more memory."""
    taken, size = sum(share.memory for share in found.shares), tried.size
    requests = "1 request" if size.slots == 1 else f"{size.slots} requests at a time"
    buffers = gigabytes(tried.need.buffers)
    return (
        f"{gigabytes(taken)} in all for {requests} of {size.context_length} tokens, "
        f"with {buffers} of buffers on each node"
        + (f" (with more memory: {best.slots} of {best.context_length})" if size != best else "")
    )


def _waited_for(member: MemberState) -> bool:
    return member.phase in (LeasePhase.ASKED, LeasePhase.PREPARING)


def _waiting_text(member: MemberState) -> str:
    name = member.name or short(member.node)
    return (
        f"{name} to answer" if member.phase is LeasePhase.ASKED else f"{name} ({member.detail or member.phase.value})"
    )


def _reports(member: MemberState) -> bool:
    """Whether the worker must report: until the lease is committed, also while it waits for the other workers."""
    return member.phase in (LeasePhase.ASKED, LeasePhase.PREPARING, LeasePhase.READY)


def _deadline(member: MemberState) -> float:
    return member.reported_at + (ASKED_SECONDS if member.phase is LeasePhase.ASKED else SILENT_SECONDS)
