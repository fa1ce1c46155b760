"""Whether an engine guesses ahead, with what, and how far: tokens that were guessed right cost a fraction of one.

Law: pure; every number says where it comes from (`scripts/bench speculation` measures what they do). Guessing is a
matter of speed alone: it changes no answer beyond rounding, and what hinders it never hinders serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DraftSource(Enum):
    """Where guesses come from."""

    NONE = "none"
    NGRAMS = "n-grams"
    """The text so far: what followed the last time that its last tokens stood in it."""
    DRAFT = "draft"
    """The text so far, and a smaller model of the same vocabulary where the text has nothing to say."""


# A match this long is hardly ever a coincidence where four tokens more are known to follow.
MATCH_TOKENS = 12
LEAST_COPIED_TOKENS = 4
# A copy is no longer than this, nor than its request can afford: a request has a credit of one token that grows by a
# fiftieth with each step (a patch of ours in the engine), pays the price for each token that is guessed, and gets one
# for each that is right. It begins with two tokens and never loses more than it was given: 2.6 % of 160 tokens.
# Replayed with the tokens of 36 texts that are no repetition (greedy, twice at 0.8) the worst comes 2.6 % later, and 11
# edited files and tables come 1.18 times as fast greedily, 1.03 times at 0.8. With 20 and 9 others, which only spoke
# against a match of 10: 2.8 %, 1.20 and 1.06. Copies of 6 without a credit are as fast, and 12 % and 4.8 % later.
COPIED_TOKENS = 12
# What each token more in a step costs beside a step of one, with two cores and a model of 135 M: 0.62 where it is one
# of two, 0.48 where it is one of twelve (more with one core; less where reading the weights is what takes the time).
PRICE = 0.5
# Where each step waits for a round trip to other nodes, a guess costs less beside it (20 ms: 0.24 to 0.30).
FAR_COPIED_TOKENS = 16
FAR_PRICE = 0.25
# What the engine keeps of what followed what: 4 million tokens' numbers, of all requests together.
TABLE_BYTES = 4 << 22
# A draft goes on while it is this sure of each token (the engine's default was that for long), and at most this far:
# nine of ten guesses are then right. That is no gain everywhere: on two cores, where the draft takes a tenth of the
# model's time, a guess costs 0.8 to 1.3 of a token, and prose comes up to a fifth later even if all guesses are right.
SURE = 0.75
DRAFTED_TOKENS = 8
# Of the model's parameters; a draft that is larger takes more time than its guesses save.
MOST_OF_TARGET = 0.1


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an engine guesses ahead. `draft`: the smaller model's name; `reason`: why there is no more than that."""

    source: DraftSource = DraftSource.NONE
    draft: str = ""
    reason: str = ""

    @property
    def max_draft_tokens(self) -> int:
        """The most tokens that are guessed at a time; the engine keeps scores for each of them, and for one more."""
        match self.source:
            case DraftSource.NONE:
                return 0
            case DraftSource.NGRAMS:
                return COPIED_TOKENS
            case DraftSource.DRAFT:
                return max(COPIED_TOKENS, DRAFTED_TOKENS)


PLAIN = Speculation()
"""An engine that computes one token after the other."""


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """What an engine has written since it was first started: tokens guessed, and of those the right ones; tokens
    `written` in all, and the `seconds` that took."""

    drafted: int = 0
    accepted: int = 0
    written: int = 0
    seconds: float = 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """How long a token has taken; None before the first."""
        return self.seconds / self.written if self.written else None

    @property
    def acceptance(self) -> float | None:
        """The share that was right, 0 to 1; None while nothing was guessed."""
        return self.accepted / self.drafted if self.drafted else None

    def __add__(self, other: DraftCounts) -> DraftCounts:
        return DraftCounts(
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.written + other.written,
            self.seconds + other.seconds,
        )


def obstacle(*, writes: bool, causal: bool, recurrent: bool) -> str:
    """Why a model of that kind cannot guess ahead at all; empty where it can."""
    if not writes:
        return "it writes no text"
    if not causal:
        return "it does not write one token after the other"
    if recurrent:
        # The engine would save and restore all of a request's state at each guess.
        return "its layers keep a state that cannot be taken back"
    return ""


def decide(*, wanted: bool, obstacle: str, draft: str, why_no_draft: str) -> Speculation:
    """How to guess: `wanted` by the user at all; with `draft` (its name, "" for none, and then why there is none)."""
    if not wanted:
        return Speculation(reason="it was switched off")
    if obstacle:
        return Speculation(reason=obstacle)
    if draft:
        return Speculation(DraftSource.DRAFT, draft)
    return Speculation(DraftSource.NGRAMS, reason=why_no_draft)
