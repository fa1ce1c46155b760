"""Orders the hosts of a model by preference, given the load of each. Pure.

Last come hosts that failed recently, then those with a context too small for the prompt, then those without a free
slot. Among hosts with a free slot: the host of the same conversation (prompt cache), this node's engine and backends,
then peers that are the owner's own machines, then others, because a host reads the prompts that it answers; in each
group by load, round trip and context; of equal ones, those first that have answered before. A host that has computed
the same tools and system prompt comes first among the owner's machines, this one included, or among the others, unless
it is busier. Without a free slot the shortest queue wins; the conversation's own host may have a slightly longer one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Round trips are compared in steps of this (seconds): less than that is noise beside the time to a first token.
RTT_STEP_SECONDS = 0.005
# The round trip of a peer that was never measured (seconds).
UNKNOWN_RTT_SECONDS = 0.1
# How much longer (requests per slot) the queue of a conversation's own host may be: its prompt cache saves time.
STICKY_QUEUE_PER_SLOT = 1.0
# How much busier (requests per slot) a host that has computed the prompt's prefix may be than the least busy one: less
# is regained by sharing the load than the prefix costs.
PREFIX_BUSY_PER_SLOT = 0.25
# Upper bound of bytes of text per token for nearly all texts: English has 4.5, Chinese 5 to 6; only long runs of the
# same character have more. If it is wrong, a host with a larger context is asked first: no harm.
BYTES_PER_TOKEN = 8


class RankedHost(NamedTuple):
    """A host and its load. `order`: its position in the route. `busy`: active and waiting requests per slot.

    `free`: a slot is free and no request waits. `context_length`: tokens (0: unknown). `rtt`: seconds. `resting`: the
    host failed recently. `known`: it has answered requests of this node. `owned`: one of the owner's own machines.
    `prefix`: it has computed the tools and the system prompt of this request.
    """

    order: int
    local: bool = False
    free: bool = True
    busy: float = 0.0
    rtt: float | None = None
    context_length: int = 0
    sticky: bool = False
    resting: bool = False
    known: bool = False
    owned: bool = False
    prefix: bool = False


def rank(candidates: Iterable[RankedHost], tokens: int = 0) -> list[RankedHost]:
    """`candidates`, best first, for a prompt of at least `tokens` tokens."""
    pool = list(candidates)
    if len(pool) < 2:
        return pool
    least = min(candidate.busy for candidate in pool)
    near, idle = least + STICKY_QUEUE_PER_SLOT, least + PREFIX_BUSY_PER_SLOT

    def key(candidate: RankedHost) -> tuple[bool, int, bool, bool, bool, bool, int, float, int, int, bool, int]:
        too_small = 0 < candidate.context_length < tokens
        here_at_once = candidate.local and candidate.free
        group = 0 if candidate.local or not candidate.free else 1 if candidate.owned else 2
        rtt = candidate.rtt if candidate.rtt is not None else UNKNOWN_RTT_SECONDS
        return (
            candidate.resting,
            # the largest first, if none is large enough
            (1 << 62) - candidate.context_length if too_small else 0,
            not candidate.free,
            not (candidate.sticky and (candidate.free or candidate.busy <= near)),
            group == 2,
            not (candidate.prefix and candidate.free and candidate.busy <= idle),
            group,
            0.0 if here_at_once else candidate.busy,
            0 if candidate.local else int(rtt / RTT_STEP_SECONDS),
            0 if here_at_once else -candidate.context_length,
            not candidate.local and not candidate.known,
            candidate.order,
        )

    return sorted(pool, key=key)


def least_tokens(text_bytes: int) -> int:
    """A lower bound of the tokens in a text of `text_bytes` bytes."""
    return text_bytes // BYTES_PER_TOKEN
