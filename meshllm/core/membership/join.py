"""Joining a mesh: from bootstrap addresses to the first link to the first table.

    ALONE -> DIALLING -> SYNCING -> JOINED        FAILED after the deadline; the retries go on, with backoff
                                                  REFUSED if the invite is void: nothing is dialled any more

All invited addresses are dialled at once. A peer that refused this node is dialled again only after minutes: it may be
updated, or admit this node after all.

Invariants: DIALLING and FAILED have a retry ahead, DIALLING and SYNCING a deadline, even if a dial is never answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshllm.core import commands as c
from meshllm.core.membership.links import DIAL_LOST_SECONDS, LinkTable, Rng
from meshllm.core.membership.timers import Timer, Timers
from meshllm.core.membership.views import JoinAttempt, JoinAttemptState, JoinPhase
from meshllm.core.records import PIN_BYTES, BootstrapAddress, NodeId
from meshllm.util.backoff import backoff

JOIN_TIMERS = frozenset({Timer.JOIN_DEADLINE, Timer.JOIN_SYNC, Timer.JOIN_MORE, Timer.JOIN_RETRY})

# After this long without a link the join counts as failed.
JOIN_SECONDS = 20.0
# A peer sends its table within a few round trips of the link. After this long the node counts as joined without it.
SYNC_SECONDS = 5.0
# Remembered peers are many and may be long gone: this many are dialled at first, and as many more at each interval
# without an answer, which is a tenth of what a dead address takes to fail. Invited addresses are few: all at once.
KNOWN_AT_A_TIME = 8
KNOWN_MORE_SECONDS = 0.5
MAX_ADDRESSES = 64
RETRY_BASE_SECONDS = 1.0
RETRY_CAP_SECONDS = 30.0
REFUSED_RETRY_SECONDS = 300.0
# What the owner of an expelled node reads.
DUPLICATE = "another machine runs with the identity of this node, whose home was copied from there"
EXPELLED = "this node was expelled from its mesh"
REPLACED = "this node's key was replaced by a new one"


# How old an attempt in a state must be to be repeated by a retry (seconds).
_RETRY_AFTER = {
    JoinAttemptState.FAILED: 0.0,
    JoinAttemptState.LINKED: 0.0,
    JoinAttemptState.DIALLING: DIAL_LOST_SECONDS,
    JoinAttemptState.REFUSED: REFUSED_RETRY_SECONDS,
}


@dataclass(frozen=True, slots=True)
class _JoinCandidate:
    """A bootstrap address and its state. `invited`: it came from an invite, not from memory; `void`: it refused that
    invite for good."""

    attempt: JoinAttempt
    invited: bool
    void: bool = False


class Joiner:
    """The join of one node or client."""

    def __init__(
        self, links: LinkTable, timers: Timers, rng: Rng, out: list[c.Command], *, rejoins: bool = False
    ) -> None:
        """`out` gets the command that says that the invite is void. `rejoins`: this node was in the mesh before, as it
        is after it has joined. Then the others may be switched off: once every address was tried in vain it does not
        wait for the deadline."""
        self.rejoins = rejoins
        self.phase = JoinPhase.ALONE
        self.reason = ""
        self._links = links
        self._out = out
        self._timers = timers
        self._rng = rng
        self._candidates: dict[bytes, _JoinCandidate] = {}
        self._rounds = 0
        self._at_a_time = KNOWN_AT_A_TIME
        self._backing_off = False  # whether the next retry is one after failures

    @property
    def attempts(self) -> tuple[JoinAttempt, ...]:
        """The state of each bootstrap address, invited ones first, without those that were not tried yet."""
        candidates = sorted(self._candidates.values(), key=lambda candidate: not candidate.invited)
        found = [candidate.attempt for candidate in candidates]
        return tuple([attempt for attempt in found if attempt.state is not JoinAttemptState.WAITING])

    @property
    def only_away(self) -> bool:
        """Whether this node is in a mesh of which no other member answers now, nor refused it."""
        refused = any(known.attempt.state is JoinAttemptState.REFUSED for known in self._candidates.values())
        return self.phase is JoinPhase.JOINED or (self.phase is JoinPhase.FAILED and self.rejoins and not refused)

    def join(self, addresses: tuple[BootstrapAddress, ...], invited: bool, own: NodeId, now: float) -> None:
        """Join the mesh through `addresses`, beside those given before."""
        for address in addresses[:MAX_ADDRESSES]:
            key = address.prefix
            known = self._candidates.get(key)
            # An invite replaces a remembered address; an address that has led to a link keeps its state.
            if len(key) < PIN_BYTES or key == own[:PIN_BYTES] or (known is not None and known.invited and not invited):
                continue
            if known is None and len(self._candidates) >= 2 * MAX_ADDRESSES:
                break
            linked = known is not None and known.attempt.state is JoinAttemptState.LINKED
            state = JoinAttemptState.LINKED if linked else JoinAttemptState.WAITING
            self._candidates[key] = _JoinCandidate(JoinAttempt(address, state, at=now), invited)
        if not self._candidates:
            return
        if self.phase in (JoinPhase.ALONE, JoinPhase.FAILED):
            self.phase, self.reason, self._rounds = JoinPhase.DIALLING, "", 0
            self._timers.set(Timer.JOIN_DEADLINE, now + JOIN_SECONDS)
            for node in self._links.nodes:
                self.linked(node, now)
        self._dial(now)
        self._schedule_retry(now)

    def isolated(self, now: float) -> None:
        """All links are lost and no other node is known: join again through all addresses."""
        if self._candidates and self.phase is JoinPhase.JOINED:
            self.phase, self._rounds = JoinPhase.DIALLING, 0
            self._timers.set(Timer.JOIN_DEADLINE, now + JOIN_SECONDS)
            self._retry(now)

    def linked(self, peer: NodeId, now: float) -> bool:
        """A link to a node came up. Returns whether to request its table now."""
        key = peer[:PIN_BYTES]
        if key in self._candidates:
            self._mark(key, JoinAttemptState.LINKED, "", now)
        if self.phase is JoinPhase.ALONE:
            self.phase = JoinPhase.JOINED
        elif self.phase in (JoinPhase.DIALLING, JoinPhase.FAILED):
            self.phase, self.reason = JoinPhase.SYNCING, ""
            self._cancel_retry()
            self._timers.set(Timer.JOIN_SYNC, now + SYNC_SECONDS)
            return True
        return self.phase is JoinPhase.SYNCING

    def synced(self) -> None:
        """The table of a peer has arrived."""
        if self.phase is JoinPhase.SYNCING:
            self.phase, self.reason, self.rejoins = JoinPhase.JOINED, "", True
            self._timers.cancel(Timer.JOIN_DEADLINE)
            self._timers.cancel(Timer.JOIN_SYNC)
            self._cancel_retry()

    def expelled(self, *, replaced: bool) -> None:
        """This node was expelled, or has another id now (`replaced`): nothing is dialled any more."""
        self._candidates.clear()
        self.phase, self.reason = JoinPhase.EXPELLED, REPLACED if replaced else EXPELLED

    def stepped_back(self) -> None:
        """Another machine goes on with this node's identity: nothing is dialled any more."""
        self._candidates.clear()
        self.phase, self.reason = JoinPhase.DUPLICATE, DUPLICATE

    def unlinked(self, now: float) -> None:
        """A link is gone. Without any link, a sync starts over."""
        if self.phase is JoinPhase.SYNCING and not self._links.nodes:
            self.phase = JoinPhase.DIALLING
            self._timers.cancel(Timer.JOIN_SYNC)
            self._timers.set(Timer.JOIN_DEADLINE, now + JOIN_SECONDS)
            self._retry(now)

    def failed(self, address: BootstrapAddress, reason: str, final: bool, now: float, void: bool = False) -> None:
        """A dial failed; `final`: the peer refused this node; `void`: because of the invite, for good."""
        key = address.prefix
        known = self._candidates.get(key)
        if known is None or known.attempt.state is not JoinAttemptState.DIALLING:
            return
        self._mark(key, JoinAttemptState.REFUSED if final else JoinAttemptState.FAILED, reason, now)
        self._candidates[key] = replace(self._candidates[key], void=void)
        self._dial(now)
        self._schedule_retry(now)

    def due(self, timer: Timer, now: float) -> None:
        """One of `JOIN_TIMERS` is due."""
        if timer is Timer.JOIN_DEADLINE:
            if self.phase is JoinPhase.DIALLING:
                self._give_up(f"no answer within {JOIN_SECONDS:.0f} s")
                self._schedule_retry(now)
        elif timer is Timer.JOIN_SYNC:
            # There is a link, so this node is in the mesh; anti-entropy brings the table later.
            self.synced()
        elif timer is Timer.JOIN_MORE:
            self._at_a_time += KNOWN_AT_A_TIME
            self._dial(now)
        elif self.phase in (JoinPhase.DIALLING, JoinPhase.FAILED):
            self._retry(now)

    # -- inside

    def _mark(self, key: bytes, state: JoinAttemptState, reason: str, now: float) -> None:
        known = self._candidates[key]
        attempt = replace(known.attempt, state=state, reason=reason, at=now)
        self._candidates[key] = replace(known, attempt=attempt)

    def _dial(self, now: float) -> None:
        for invited in (True, False):
            if not invited and self.phase not in (JoinPhase.DIALLING, JoinPhase.FAILED):
                return
            busy = sum(
                not known.invited and known.attempt.state is JoinAttemptState.DIALLING
                for known in self._candidates.values()
            )
            for key, known in list(self._candidates.items()):
                if known.invited is not invited or known.attempt.state is not JoinAttemptState.WAITING:
                    continue
                if not invited and busy >= self._at_a_time:
                    if self._timers.at(Timer.JOIN_MORE) is None:
                        self._timers.set(Timer.JOIN_MORE, now + KNOWN_MORE_SECONDS)
                    return
                busy += 1
                address = known.attempt.address
                if self._links.dial(address, now, respect_backoff=False) or self._links.dialling(key, now):
                    self._mark(key, JoinAttemptState.DIALLING, "", now)
                elif any(node[:PIN_BYTES] == key for node in self._links.nodes):
                    self._mark(key, JoinAttemptState.LINKED, "", now)
                else:
                    self._mark(key, JoinAttemptState.FAILED, "it has no address", now)

    def _schedule_retry(self, now: float) -> None:
        """While this node has not joined: retry after a failure, and where a dial is never answered."""
        if self.phase not in (JoinPhase.DIALLING, JoinPhase.FAILED) or not self._candidates:
            return
        states = {known.attempt.state for known in self._candidates.values()}
        void = next((known.attempt.reason for known in self._candidates.values() if known.void), None)
        if void is not None and (states <= {JoinAttemptState.REFUSED} or self.phase is JoinPhase.FAILED):
            # One member's word is enough if no other answers before the deadline.
            self._refused(void)
        elif states & {JoinAttemptState.DIALLING, JoinAttemptState.WAITING}:
            if self._timers.at(Timer.JOIN_RETRY) is None:
                self._timers.set(Timer.JOIN_RETRY, now + DIAL_LOST_SECONDS)
        elif states <= {JoinAttemptState.REFUSED}:
            self._give_up("every bootstrap address refused this node")
            refused = min(known.attempt.at for known in self._candidates.values())
            self._timers.set(Timer.JOIN_RETRY, max(now, refused + REFUSED_RETRY_SECONDS))
        elif not self._backing_off:
            if self.rejoins and self.phase is JoinPhase.DIALLING:
                self._give_up("no other member answers")
            self._backing_off = True
            delay = backoff(self._rounds, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, rng=self._rng)
            self._rounds += 1
            self._timers.set(Timer.JOIN_RETRY, now + delay)

    def _refused(self, reason: str) -> None:
        self.phase, self.reason = JoinPhase.REFUSED, reason
        for timer in JOIN_TIMERS:
            self._timers.cancel(timer)
        self._out.append(c.InviteRefused(reason))

    def _cancel_retry(self) -> None:
        self._backing_off = False
        self._timers.cancel(Timer.JOIN_RETRY)

    def _retry(self, now: float) -> None:
        self._at_a_time = KNOWN_AT_A_TIME
        self._cancel_retry()
        for key, known in self._candidates.items():
            attempt = known.attempt
            if attempt.state is not JoinAttemptState.WAITING and now - attempt.at >= _RETRY_AFTER[attempt.state]:
                self._mark(key, JoinAttemptState.WAITING, attempt.reason, now)
        self._dial(now)
        self._schedule_retry(now)

    def _give_up(self, message: str) -> None:
        self.phase = JoinPhase.FAILED
        self._timers.cancel(Timer.JOIN_DEADLINE)
        candidates = sorted(self._candidates.values(), key=lambda known: not known.invited)
        reasons = [known.attempt.reason for known in candidates if known.attempt.reason]
        self.reason = f"{message}: {reasons[0]}" if reasons else message
