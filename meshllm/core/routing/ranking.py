"""In which order the hosts of a model are to be asked, given how busy each is.

Law: a pure function of figures that the gateway has at hand; equal figures give an equal order. A host that failed a
moment ago comes last, then one whose context is too small for the prompt, then one without a free slot. Among those
with a free slot: the one that answered for the same conversation before (it still has the prompt's beginning in its
cache), then this node's own engine and backends, then peers by load, distance and context. Where nobody has a free slot
only the length of the queue counts, and the conversation's own host is allowed a slightly longer one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Round trips are compared in steps of this (seconds): less than that is noise beside the time to a first token.
RTT_STEP_SECONDS = 0.005
# What a peer whose distance was never measured is taken to be at.
UNKNOWN_RTT_SECONDS = 0.1
# How much longer (requests per slot) the queue of a conversation's own host may be: it saves reading the prompt anew.
STICKY_QUEUE_PER_SLOT = 1.0
# Bytes of text to a token, at least, for a bound that holds for nearly all texts: English has 4.5, Chinese 5 to 6, and
# only long runs of the same character have more. If it errs, a host with a larger context is asked first: no harm.
BYTES_PER_TOKEN = 8


class RankedHost(NamedTuple):
    """A host as it is now. `order` is its place in the route; `busy` is requests at work and waiting, per slot.

    `free`: a slot is free and nobody waits for it, as far as is known. `context_length` in tokens, 0 if unknown; `rtt`
    in seconds. `resting`: it failed a moment ago.
    """

    order: int
    local: bool = False
    free: bool = True
    busy: float = 0.0
    rtt: float | None = None
    context_length: int = 0
    sticky: bool = False
    resting: bool = False


def rank(candidates: Iterable[RankedHost], tokens: int = 0) -> list[RankedHost]:
    """`candidates`, best first, for a prompt of at least `tokens` tokens."""
    pool = list(candidates)
    if len(pool) < 2:
        return pool
    near = min(candidate.busy for candidate in pool) + STICKY_QUEUE_PER_SLOT

    def key(candidate: RankedHost) -> tuple[bool, int, bool, bool, bool, float, int, int, int]:
        too_small = 0 < candidate.context_length < tokens
        here_at_once = candidate.local and candidate.free
        rtt = candidate.rtt if candidate.rtt is not None else UNKNOWN_RTT_SECONDS
        return (
            candidate.resting,
            # the largest first, if none is large enough
            (1 << 62) - candidate.context_length if too_small else 0,
            not candidate.free,
            not (candidate.sticky and (candidate.free or candidate.busy <= near)),
            candidate.free and not candidate.local,
            0.0 if here_at_once else candidate.busy,
            0 if candidate.local else int(rtt / RTT_STEP_SECONDS),
            0 if here_at_once else -candidate.context_length,
            candidate.order,
        )

    return sorted(pool, key=key)


def least_tokens(text_bytes: int) -> int:
    """The number of tokens that a text of so many bytes has, at the very least."""
    return text_bytes // BYTES_PER_TOKEN
