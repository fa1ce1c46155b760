"""Finding the mesh: from ways in to the first link to the first table.

    ALONE -> DIALLING -> SYNCING -> JOINED        and FAILED after the deadline, from where it goes on trying, slowly

Law: everything invited is dialled at once and nothing waits for a dead address; each way in has a step with a reason
that people see; a peer that refuses us for good is not asked again until somebody gives its invite anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshllm.core.membership.links import PIN_BYTES, LinkTable, Rng
from meshllm.core.membership.timers import Timers
from meshllm.core.membership.views import JoinAttempt, JoinAttemptState, JoinPhase
from meshllm.core.records import BootstrapAddress, NodeId
from meshllm.util.backoff import backoff

# Nobody waits for an answer to "did it work?" longer than this.
JOIN_SECONDS = 20.0
# A peer that has let us in sends its table within a few round trips; without it we are in the mesh all the same.
SYNC_SECONDS = 5.0
# Remembered peers are many and maybe long gone: so many at first, and as many more while none of them has answered,
# which a dead one takes ten times longer to show. Invited ways are few, and a person waits: all at once.
KNOWN_AT_A_TIME = 8
KNOWN_MORE_SECONDS = 0.5
MAX_WAYS = 64
RETRY_BASE_SECONDS = 1.0
RETRY_CAP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _JoinCandidate:
    """A way in, and what became of it. `invited`: a person gave it."""

    step: JoinAttempt
    invited: bool


class Joiner:
    """The state of one node's search for its mesh."""

    def __init__(self, links: LinkTable, timers: Timers, rng: Rng) -> None:
        self.phase = JoinPhase.ALONE
        self.reason = ""
        self._links = links
        self._timers = timers
        self._rng = rng
        self._ways: dict[bytes, _JoinCandidate] = {}
        self._rounds = 0
        self._at_a_time = KNOWN_AT_A_TIME

    @property
    def steps(self) -> tuple[JoinAttempt, ...]:
        """What became of each way in, invited ones first; remembered ones that nobody tried yet are left out."""
        ways = sorted(self._ways.values(), key=lambda way: not way.invited)
        return tuple([way.step for way in ways if way.step.state is not JoinAttemptState.WAITING])

    def want(self, ways: tuple[BootstrapAddress, ...], invited: bool, own: NodeId, now: float) -> None:
        """Find the mesh by these `ways` as well."""
        for way in ways[:MAX_WAYS]:
            key = way.pin[:PIN_BYTES]
            known = self._ways.get(key)
            # An invite stands above what is remembered; a step that has led to a link stands.
            if len(key) < PIN_BYTES or key == own[:PIN_BYTES] or (known is not None and known.invited and not invited):
                continue
            if known is None and len(self._ways) >= 2 * MAX_WAYS:
                break
            state = (
                JoinAttemptState.LINKED
                if known is not None and known.step.state is JoinAttemptState.LINKED
                else JoinAttemptState.WAITING
            )
            self._ways[key] = _JoinCandidate(JoinAttempt(way, state, at=now), invited)
        if not self._ways:
            return
        if self.phase in (JoinPhase.ALONE, JoinPhase.FAILED):
            self.phase, self.reason, self._rounds = JoinPhase.DIALLING, "", 0
            self._timers.set("join deadline", now + JOIN_SECONDS)
            for node in self._links.nodes:
                self.linked(node, now)
        self._dial(now)

    def isolated(self, now: float) -> None:
        """Every link is lost and there is nobody else to ask: begin again with what was ever given."""
        if self._ways and self.phase is JoinPhase.JOINED:
            self.phase, self._rounds = JoinPhase.DIALLING, 0
            self._timers.set("join deadline", now + JOIN_SECONDS)
            self._again(now)

    def linked(self, peer: NodeId, now: float) -> bool:
        """A link to a node is there. True if its table is to be asked for now."""
        key = peer[:PIN_BYTES]
        if key in self._ways:
            self._mark(key, JoinAttemptState.LINKED, "", now)
        if self.phase is JoinPhase.ALONE:
            self.phase = JoinPhase.JOINED
        elif self.phase in (JoinPhase.DIALLING, JoinPhase.FAILED):
            self.phase, self.reason = JoinPhase.SYNCING, ""
            self._timers.cancel("join retry")
            self._timers.set("join sync", now + SYNC_SECONDS)
            return True
        return self.phase is JoinPhase.SYNCING

    def synced(self) -> None:
        """The table is there."""
        if self.phase is JoinPhase.SYNCING:
            self.phase, self.reason = JoinPhase.JOINED, ""
            for what in ("join deadline", "join sync", "join retry"):
                self._timers.cancel(what)

    def unlinked(self, now: float) -> None:
        """A link is gone: without any, what was being synced has to begin anew."""
        if self.phase is JoinPhase.SYNCING and not self._links.nodes:
            self.phase = JoinPhase.DIALLING
            self._timers.cancel("join sync")
            self._again(now)

    def failed(self, way: BootstrapAddress, reason: str, final: bool, now: float) -> None:
        """A dial led nowhere."""
        key = way.pin[:PIN_BYTES]
        known = self._ways.get(key)
        if known is None or known.step.state is not JoinAttemptState.DIALLING:
            return
        self._mark(key, JoinAttemptState.REFUSED if final else JoinAttemptState.FAILED, reason, now)
        if self.phase in (JoinPhase.DIALLING, JoinPhase.FAILED):
            self._dial(now)
            self._look(now)

    def due(self, what: str, now: float) -> None:
        """A deadline of this class ("join ...") has come."""
        if what == "join deadline" and self.phase in (JoinPhase.DIALLING, JoinPhase.SYNCING):
            if self.phase is JoinPhase.DIALLING:
                self._give_up(f"nobody answered within {JOIN_SECONDS:.0f} s")
        elif what == "join sync" and self.phase is JoinPhase.SYNCING:
            # There is a link, so this node is in the mesh; the rounds of gossip bring the table sooner or later.
            self.synced()
        elif what == "join more":
            self._at_a_time += KNOWN_AT_A_TIME
            self._dial(now)
        elif what == "join retry" and self.phase in (JoinPhase.DIALLING, JoinPhase.FAILED):
            self._again(now)

    # -- inside

    def _mark(self, key: bytes, state: JoinAttemptState, reason: str, now: float) -> None:
        way = self._ways[key]
        self._ways[key] = replace(way, step=replace(way.step, state=state, reason=reason, at=now))

    def _dial(self, now: float) -> None:
        for invited in (True, False):
            if not invited and self.phase not in (JoinPhase.DIALLING, JoinPhase.FAILED):
                return
            busy = sum(not way.invited and way.step.state is JoinAttemptState.DIALLING for way in self._ways.values())
            for key, way in list(self._ways.items()):
                if way.invited is not invited or way.step.state is not JoinAttemptState.WAITING:
                    continue
                if not invited and busy >= self._at_a_time:
                    if self._timers.at("join more") is None:
                        self._timers.set("join more", now + KNOWN_MORE_SECONDS)
                    return
                busy += 1
                if not self._links.dial(way.step.address, now, patient=False) and not self._links.dialling(key, now):
                    linked = any(node[:PIN_BYTES] == key for node in self._links.nodes)
                    self._mark(
                        key,
                        *((JoinAttemptState.LINKED, "") if linked else (JoinAttemptState.FAILED, "it has no address")),
                        now,
                    )
                    continue
                self._mark(key, JoinAttemptState.DIALLING, "", now)

    def _look(self, now: float) -> None:
        """After a failure: is there anything left to try?"""
        states = {way.step.state for way in self._ways.values()}
        if states & {JoinAttemptState.DIALLING, JoinAttemptState.WAITING}:
            return
        if states <= {JoinAttemptState.REFUSED}:
            self._give_up("every way in was refused")
        elif self._timers.at("join retry") is None:
            delay = backoff(self._rounds, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, rng=self._rng)
            self._rounds += 1
            self._timers.set("join retry", now + delay)

    def _again(self, now: float) -> None:
        self._at_a_time = KNOWN_AT_A_TIME
        for key, way in self._ways.items():
            if way.step.state in (JoinAttemptState.FAILED, JoinAttemptState.LINKED):
                self._mark(key, JoinAttemptState.WAITING, way.step.reason, now)
        self._dial(now)
        self._look(now)

    def _give_up(self, words: str) -> None:
        self.phase = JoinPhase.FAILED
        self._timers.cancel("join deadline")
        reasons = [way.step.reason for way in self._ways.values() if way.step.reason and way.invited]
        reasons += [way.step.reason for way in self._ways.values() if way.step.reason and not way.invited]
        self.reason = f"{words}: {reasons[0]}" if reasons else words
