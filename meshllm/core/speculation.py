"""Whether an engine guesses ahead, with what, and how far: tokens that were guessed right cost a fraction of one.

Law: pure; every number says where it comes from (`scripts/bench speculation` measures what they do). Guessing is a
matter of speed alone: it changes no answer beyond rounding, and what hinders it never hinders serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Guessing(Enum):
    """Where guesses come from."""

    NONE = "none"
    NGRAMS = "n-grams"
    """The text so far: what followed the last time that its last tokens stood in it."""
    DRAFT = "draft"
    """The text so far, and a smaller model of the same vocabulary where the text has nothing to say."""


# A match this long is hardly ever a coincidence, and a copy this short costs little when it is one. Replayed with the
# tokens of 32 texts that are no repetition (prose, chat, documents, new code), on two cores where each token more costs
# half of the first, the worst comes 0.8 % later, and ten edited files and tables 1.1 to 1.6 times as fast; where it
# costs a quarter, none is later and they are 1.5 to 2.5 times as fast. Copies of 8 gain a little more and lose up to
# 1.4 %; a match of 10 loses up to 6 %.
MATCH_TOKENS = 12
LEAST_COPIED_TOKENS = 4
COPIED_TOKENS = 6
# Where each step waits for a round trip to other nodes anyway, a wrong guess costs little beside it, and a right one
# saves one round trip more.
FAR_COPIED_TOKENS = 16
# What the engine keeps of what followed what: 4 million tokens' numbers, of all requests together.
TABLE_BYTES = 4 << 22
# A draft goes on while it is this sure of each token (the engine's default was that for long), and at most this far.
# Right guesses are then three of four at least, where even two slow cores need one of three to gain.
SURE = 0.75
DRAFTED_TOKENS = 8
# Of the model's parameters; a draft that is larger takes more time than its guesses save.
MOST_OF_TARGET = 0.1


@dataclass(frozen=True, slots=True)
class Speculation:
    """How an engine guesses ahead. `draft`: the smaller model's name; `reason`: why there is no more than that."""

    guessing: Guessing = Guessing.NONE
    draft: str = ""
    reason: str = ""

    @property
    def longest(self) -> int:
        """The most tokens that are guessed at a time; the engine keeps scores for each of them, and for one more."""
        match self.guessing:
            case Guessing.NONE:
                return 0
            case Guessing.NGRAMS:
                return COPIED_TOKENS
            case Guessing.DRAFT:
                return max(COPIED_TOKENS, DRAFTED_TOKENS)


PLAIN = Speculation()
"""An engine that computes one token after the other."""


@dataclass(frozen=True, slots=True)
class Guesses:
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

    def __add__(self, other: Guesses) -> Guesses:
        return Guesses(
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
        return Speculation(Guessing.DRAFT, draft)
    return Speculation(Guessing.NGRAMS, reason=why_no_draft)
