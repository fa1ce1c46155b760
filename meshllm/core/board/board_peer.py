"""What a node remembers of a peer while the two exchange entries of the blackboard."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshllm.core.board.chain import ChainId
from meshllm.core.board.messages import ChainRange, ChainState
from meshllm.util.rate_limiter import TokenBucket

# Pause before a peer is compared with again though nothing has changed here or there: it has what is not taken here.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
# How long a peer is not asked that did not answer, or had nothing of what it listed: it would keep others from being
# asked. The pause doubles each time.
FIRST_USELESS_SECONDS, LONGEST_USELESS_SECONDS = 1.0, 60.0


@dataclass(slots=True)
class BoardPeer:
    """`compared`: the two hashes when this peer was last compared with; `pause` until the same pair is compared again
    (`not_before`). `targets`: what the peer lists and this node lacks. `asked`: what it was asked for, and until when
    an answer is waited for; `brought`: new entries in it. `useless`: for how long it is not asked after the next answer
    that brings nothing."""

    budget: TokenBucket
    compared: tuple[bytes, bytes] = (b"", b"")
    pause: float = FIRST_PAUSE_SECONDS
    not_before: float = 0.0
    targets: dict[ChainId, ChainState] = field(default_factory=dict)
    asked_until: float = 0.0
    asked: tuple[ChainRange, ...] = ()
    brought: int = 0
    useless: float = FIRST_USELESS_SECONDS
    useless_until: float = 0.0

    def may_ask(self, now: float) -> bool:
        """Whether the peer may be asked: it answers, and what it answers is of use."""
        if self.asked and now >= self.asked_until:
            self.was_useless(now)
        return not self.asked and now >= self.useless_until

    def was_useless(self, now: float) -> None:
        """It did not answer, or had nothing of what it listed."""
        self.asked, self.useless_until = (), now + self.useless
        self.useless = min(2 * self.useless, LONGEST_USELESS_SECONDS)
