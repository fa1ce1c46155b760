"""Speculative decoding: whether an engine drafts tokens, from which source, and how many. Pure.

Accepted draft tokens cost a fraction of a normal token; they change no answer beyond rounding. Each number names its
source (`scripts/bench speculation` measures the effect).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DraftSource(Enum):
    """The source of draft tokens."""

    NONE = "none"
    NGRAMS = "n-grams"
    """N-grams: what followed the last tokens when they occurred in the text before."""
    DRAFT = "draft"
    """N-grams, and a draft model of the same vocabulary where no n-gram matches."""


# N-gram drafts. A match of this length is hardly ever a coincidence if four more tokens are known to follow.
MATCH_TOKENS = 12
LEAST_COPIED_TOKENS = 4
# The longest draft copied from the text, limited further by the request's credit (a patch of ours in the engine): the
# credit starts at two tokens and grows by a fiftieth of a token with each step, to at most one; each draft token costs
# PRICE and each accepted one pays one token back. So a request never loses more than it was given: 2.6 % of 160 tokens.
# Replayed with the tokens of 36 texts without repetition (greedy, and twice at temperature 0.8) the worst takes 2.6 %
# longer, and 11 edited files and tables are 1.18 times as fast greedily, 1.03 times at 0.8. With 20 and 9 other texts,
# which only ruled out a match of 10: 2.8 %, 1.20 and 1.06. Drafts of 6 tokens without a credit are as fast, and take
# 12 % and 4.8 % longer in the worst case.
COPIED_TOKENS = 12
# What each further token in a step costs, relative to a step of one: on two cores with a model of 135 M, 0.62 as one of
# two tokens, 0.48 as one of twelve (more on one core; less where reading the weights dominates).
PRICE = 0.5
# In a split each step waits for a round trip, so a draft token costs less beside it (20 ms: 0.24 to 0.30).
FAR_COPIED_TOKENS = 16
FAR_PRICE = 0.25
# The engine's n-gram table: 4 million token ids, for all requests together.
TABLE_BYTES = 4 << 22
# A draft model continues while it is this sure of each token (an earlier default of the engine), up to DRAFTED_TOKENS:
# nine of ten draft tokens are then accepted. It is no gain everywhere: on two cores, where the draft model takes a
# tenth of the model's time, a draft token costs 0.8 to 1.3 of a token, and prose takes up to a fifth longer even if all
# draft tokens are accepted.
SURE = 0.75
DRAFTED_TOKENS = 8
# A draft model with more than this part of the model's parameters takes more time than it saves.
MOST_OF_TARGET = 0.1


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an engine drafts. `draft`: name of the draft model. `reason`: why no better source is used."""

    source: DraftSource = DraftSource.NONE
    draft: str = ""
    reason: str = ""

    @property
    def max_draft_tokens(self) -> int:
        """The longest draft in tokens; the engine keeps logits for each of them and for one more."""
        match self.source:
            case DraftSource.NONE:
                return 0
            case DraftSource.NGRAMS:
                return COPIED_TOKENS
            case DraftSource.DRAFT:
                return max(COPIED_TOKENS, DRAFTED_TOKENS)


PLAIN = Speculation()
"""No speculative decoding."""


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """Counts since the first start of an engine: draft tokens (`drafted`), `accepted` ones, all tokens `written`, and
    the `seconds` for those; tokens of prompts that were `read`, not found in the cache, and the `read_seconds`."""

    drafted: int = 0
    accepted: int = 0
    written: int = 0
    seconds: float = 0.0
    read: int = 0
    read_seconds: float = 0.0

    @property
    def acceptance(self) -> float | None:
        """Accepted draft tokens, 0 to 1; None before the first draft."""
        return self.accepted / self.drafted if self.drafted else None

    def __add__(self, other: DraftCounts) -> DraftCounts:
        return DraftCounts(
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.written + other.written,
            self.seconds + other.seconds,
            self.read + other.read,
            self.read_seconds + other.read_seconds,
        )


def obstacle(*, writes: bool, causal: bool, recurrent: bool) -> str:
    """Why a model of that kind cannot use speculative decoding; "" if it can."""
    if not writes:
        return "not a text generation model"
    if not causal:
        return "not an autoregressive model"
    if recurrent:
        # The engine would save and restore the whole state of a request for each draft.
        return "recurrent layers cannot take back tokens"
    return ""


def decide(*, wanted: bool, obstacle: str, draft: str, why_no_draft: str) -> Speculation:
    """The source of draft tokens. `wanted`: not switched off. `draft`: name of the draft model, "" for none, with the
    reason in `why_no_draft`."""
    if not wanted:
        return Speculation(reason="option --no-speculation")
    if obstacle:
        return Speculation(reason=obstacle)
    if draft:
        return Speculation(DraftSource.DRAFT, draft)
    return Speculation(DraftSource.NGRAMS, reason=why_no_draft)
