"""A node as the host of splits: it plans, proposes, waits until all are ready, and begins.

Law: one lease for each model that is split, and nothing waits for one that is broken: whoever refuses, falls silent or
is lost is left out for a while, everybody else is released, and the next generation is planned without it. A better
member that turns up disturbs nothing that is agreed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from meshllm.core.membership.links import Rng
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.records import NodeId, short
from meshllm.core.split.lease import (
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
    WorkerReport,
)
from meshllm.core.split.planner import NoPlan, SplitNeed, SplitPlan, WorkerOffer, plan, seconds_per_token

# Until its first word about a proposal: a dial (5 s at most) and a round trip.
ASKED_SECONDS = 8.0
# A worker that prepares says so every two seconds (`working.TELL_SECONDS`).
SILENT_SECONDS = 10.0
# How long it is left out: whoever was lost may be back in a moment, whoever refused is busy for longer.
LOST_SECONDS = 5.0
# But where nobody else will do, it is asked again after this much: often only its rpc-server has died.
AGAIN_SECONDS = 1.0
REFUSED_SECONDS = 30.0
# While there is no plan, memory may turn up at any time.
PLAN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SizeNeed:
    """What it takes to serve with that size."""

    size: ContextSize
    need: SplitNeed


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """Memory that a model needs on this node, by the engine's arithmetic.

    `fits_locally`: the model fits on this node in some size. `disk_paging`: it does not fit, but this node can serve it
    slowly with weights read from the disk. `free_bytes`: memory of this node for the model. `sizes`: sizes to try in a
    split, best first. `files`: the files that workers need."""

    fits_locally: bool
    free_bytes: int
    sizes: tuple[SizeNeed, ...] = ()
    files: tuple[LeasedFile, ...] = ()
    disk_paging: bool = False


@dataclass(frozen=True, slots=True)
class SplitState:
    """How a split stands, and the `reason`. `plan` and `lease` are None while none was made; `refused`: none can be,
    with the nodes that there are; `disk_paging`: so that the model is served from the disk, as best it can."""

    reason: str = ""
    refused: bool = False
    disk_paging: bool = False
    plan: SplitPlan | None = None
    size: ContextSize | None = None
    lease: Lease | None = None
    members: tuple[MemberState, ...] = ()
    committed: bool = False

    def status_text(self) -> str:
        """What is waited for, for people."""
        if self.lease is None:
            return self.reason
        waiting = [m for m in self.members if m.phase in (LeasePhase.ASKED, LeasePhase.PREPARING)]
        told = ", ".join(f"{m.name or short(m.node)} ({m.detail or m.phase.value})" for m in waiting)
        return f"waiting for {told}" if told else self.reason


class SplitHost:
    """The splits of this node, by model."""

    def __init__(
        self,
        own: NodeId,
        rng: Rng,
        send: Callable[[NodeId, LeaseMessage], None],
        linked: Callable[[NodeId], bool],
        dial: Callable[[NodeId, float], bool],
    ) -> None:
        """`linked`: whether there is a link to somebody; `dial`: have one made, False if that cannot be."""
        self._own = own
        self._rng = rng
        self._send = send
        self._linked = linked
        self._dial = dial
        self._splits: dict[str, SplitState] = {}
        self._sessions: dict[str, bytes] = {}
        self._generations: dict[str, int] = {}
        self._shunned: dict[NodeId, float] = {}
        self._returning: dict[NodeId, float] = {}  # of these, who may be back in a moment
        self._plan_at: dict[str, float] = {}

    def state(self, model: str) -> SplitState | None:
        """How the split of `model` stands; None if there is none."""
        return self._splits.get(model)

    def states(self) -> Iterable[tuple[str, SplitState]]:
        """All of them."""
        return self._splits.items()

    def next_deadline(self) -> float | None:
        """When to look at the clock again."""
        times = list(self._plan_at.values())
        for split in self._splits.values():
            if split.lease is not None and not split.committed:
                times += [_deadline(member) for member in split.members if _waited_for(member)]
        return min(times, default=None)

    # -- what the core calls

    def advance_lease(
        self,
        model: str,
        measured: MeasuredModel,
        host: WorkerOffer,
        lenders: Sequence[WorkerOffer],
        now: float,
        *,
        force: bool,
    ) -> SplitState:
        """Come nearer to a committed lease for `model`: plan and propose, or look at how those asked are doing.

        `host` is this node. A state with a plan but without a lease means that the model is to be served here alone.
        """
        split = self._splits.get(model)
        if split is not None and split.committed:
            return split
        if split is not None and split.lease is not None:
            if all(member.phase is LeasePhase.READY for member in split.members):
                split = self._commit(model, _foreseen(split, measured, (host, *lenders)), split.lease)
            return split
        if split is not None and model in self._plan_at:
            return split
        return self._propose(model, measured, host, lenders, now, force=force)

    def release(self, model: str, reason: str) -> None:
        """The lease of `model` is over, if there is one."""
        split = self._splits.pop(model, None)
        self._plan_at.pop(model, None)
        if split is not None and split.lease is not None:
            self._release(split, reason)

    def on_worker_status(self, peer: NodeId, message: WorkerReport, now: float) -> None:
        """A worker says how far it is."""
        for model, split in self._splits.items():
            lease = split.lease
            if lease is None or (lease.session, lease.generation) != (message.session, message.generation):
                continue
            member = next((m for m in split.members if m.node == peer), None)
            if (
                member is None
                or message.phase not in TRANSITIONS[member.phase]
                or message.phase is LeasePhase.COMMITTED
            ):
                return
            if message.phase is LeasePhase.ENDED:
                refused = member.phase is LeasePhase.ASKED
                self.drop_member(peer, message.detail, now, REFUSED_SECONDS if refused else LOST_SECONDS)
                return
            told = replace(member, phase=message.phase, detail=message.detail, heard=now)
            members = tuple(told if m.node == peer else m for m in split.members)
            self._splits[model] = replace(split, members=members)
            return

    def link_up(self, peer: NodeId, now: float) -> None:
        """There is a link: what was to be proposed goes out."""
        for split in self._splits.values():
            if split.lease is not None and any(m.node == peer and m.phase is LeasePhase.ASKED for m in split.members):
                self._send(peer, Propose(split.lease))

    def tunnel_broken(self, peer: NodeId, session: bytes, generation: int, now: float) -> None:
        """The engine cannot reach `peer` any more. It never tries again, so that this lease is worth nothing."""
        for split in self._splits.values():
            lease = split.lease
            if split.committed and lease is not None and (lease.session, lease.generation) == (session, generation):
                self.drop_member(peer, "the tunnel to it broke", now)
                return

    def drop_member(self, peer: NodeId, reason: str, now: float, shunned: float = LOST_SECONDS) -> None:
        """`peer` carries nothing any more: no lease that it was part of holds."""
        for model, split in list(self._splits.items()):
            if split.lease is None or split.lease.share(peer) is None:
                continue
            self._shunned[peer] = now + shunned
            if shunned <= LOST_SECONDS:
                self._returning[peer] = now + shunned
            others = tuple(member for member in split.members if member.node != peer)
            name = next((m.name for m in split.members if m.node == peer and m.name), short(peer))
            self._release(replace(split, members=others), "a member was lost")
            self._splits[model] = SplitState(f"{name} is lost to the split: {reason}")

    def tick(self, now: float) -> None:
        """Time has passed: whoever should have spoken by now is lost, and what had no plan may be tried again."""
        for split in list(self._splits.values()):
            for member in split.members:
                if not split.committed and _waited_for(member) and now >= _deadline(member):
                    self.drop_member(member.node, "it says nothing", now)
        for model in [model for model, at in self._plan_at.items() if at <= now]:
            del self._plan_at[model]

    # -- inside

    def _propose(
        self,
        model: str,
        measured: MeasuredModel,
        host: WorkerOffer,
        lenders: Sequence[WorkerOffer],
        now: float,
        *,
        force: bool,
    ) -> SplitState:
        for left_out in (self._shunned, self._returning):
            for node in [node for node, until in left_out.items() if until <= now]:
                del left_out[node]
        willing = [lender for lender in lenders if lender.node not in self._shunned]
        again = now + LOST_SECONDS - AGAIN_SECONDS
        more = [lender for lender in lenders if self._returning.get(lender.node, again + 1.0) <= again]
        refusal = ""
        for tried, asked in [(tried, asked) for asked in (willing, [*willing, *more]) for tried in measured.sizes]:
            found = plan(tried.need, host, asked, model, force=force)
            if isinstance(found, NoPlan):
                refusal = found.reason  # of the smallest size, in the end
                continue
            split = SplitState(found.reason, plan=found, size=tried.size)
            if found.members:
                names = {lender.node: lender.name for lender in lenders}
                split = self._ask(model, split, found, measured.files, names, now)
            self._splits[model] = split
            return split
        self._plan_at[model] = now + PLAN_SECONDS
        back = [lender.called for lender in lenders if lender.node in self._returning]
        if back:
            # Callers wait for it: to be told that there is nobody would be too early by seconds.
            self._splits[model] = SplitState(f"{', '.join(back)} was lost a moment ago, and may be back in another")
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
                self._dial(node, now)  # the proposal follows when there is a link
        return replace(
            split, lease=lease, members=tuple(MemberState(node, heard=now, name=names[node]) for node in lease.members)
        )

    def _commit(self, model: str, split: SplitState, lease: Lease) -> SplitState:
        for node in lease.members:
            self._send(node, Commit(lease.session, lease.generation))
        members = tuple(replace(member, phase=LeasePhase.COMMITTED, detail="") for member in split.members)
        self._splits[model] = replace(split, members=members, committed=True)
        return self._splits[model]

    def _release(self, split: SplitState, reason: str) -> None:
        assert split.lease is not None
        for member in split.members:
            self._send(member.node, Release(split.lease.session, split.lease.generation, reason))


def _foreseen(split: SplitState, measured: MeasuredModel, known: Sequence[WorkerOffer]) -> SplitState:
    """With a forecast by what is known now: there may have been no link to measure when it was planned."""
    lenders = {lender.node: lender for lender in known}
    need = next((tried.need for tried in measured.sizes if tried.size == split.size), None)
    if need is None or split.plan is None or any(share.node not in lenders for share in split.plan.shares):
        return split
    team = [lenders[share.node] for share in split.plan.shares]
    seconds = seconds_per_token(need, team, split.plan.shares)
    return replace(split, plan=replace(split.plan, seconds=seconds))


def _waited_for(member: MemberState) -> bool:
    return member.phase in (LeasePhase.ASKED, LeasePhase.PREPARING)


def _deadline(member: MemberState) -> float:
    return member.heard + (ASKED_SECONDS if member.phase is LeasePhase.ASKED else SILENT_SECONDS)
