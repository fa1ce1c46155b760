"""Orders models for callers that name none, and chooses that of a coding agent that was started without `--model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshllm.core.snapshot import Purpose

# Coding agents send 5,000 to 20,000 tokens of tools and instructions before the first word of the user.
LEAST_CONTEXT = 5_000
WANTED_CONTEXT = 32_768
# An answer may take a quarter of the context, and no more than the answers that agents really write.
MAX_OUTPUT = 8192


@dataclass(frozen=True, slots=True)
class AgentModel:
    """A model that an agent, or a request for `auto` (`auto_choice`), could use.

    `context`: tokens that one request may use (0: unknown). `size`: bytes of its file (0: unknown). `tools`: whether
    its chat template renders tools (None: unknown, as for models of other nodes). `free_slots`: requests that begin at
    once; None where no host reports it. `rtt_ms`: distance of its nearest host (0: this node, None: unknown).
    `loaded`: some host has it in memory. `purpose` and `vision` (it accepts images): None if unknown.
    """

    name: str
    context: int = 0
    size: int = 0
    tools: bool | None = None
    free_slots: int | None = None
    rtt_ms: float | None = None
    loaded: bool = True
    purpose: Purpose | None = None
    vision: bool | None = None

    @property
    def output(self) -> int:
        """The longest answer that an agent should ask for, in tokens; 0 if the context is unknown."""
        return min(MAX_OUTPUT, self.context // 4)


@dataclass(frozen=True, slots=True)
class AgentChoice:
    """The model, and one line that says why."""

    model: AgentModel
    reason: str


def choose_model(models: Sequence[AgentModel]) -> AgentChoice | None:
    """The best of `models` for an agent, or None if there is none.

    In this order: a context that holds what agents send at least, if it is known; tools rendered by the chat template,
    rather than unknown, rather than not; a context of WANTED_CONTEXT, else the larger one; the larger file; a loaded
    model; a free slot; the nearer host; the name.
    """
    if not models:
        return None
    best = min(models, key=preference)
    return AgentChoice(best, _reason(best, len(models)))


def preference(
    model: AgentModel, *, tools: bool = True, least: int = LEAST_CONTEXT, wanted: int = WANTED_CONTEXT
) -> tuple[int | float | str, ...]:
    """The order of `choose_model`: the smallest is the best. `tools`: whether they count; contexts in tokens."""
    return (
        0 < model.context < least,
        {True: 0, None: 1, False: 2}[model.tools] if tools else 0,
        -min(model.context, wanted),
        -model.size,
        not model.loaded,
        model.free_slots == 0,
        float("inf") if model.rtt_ms is None else model.rtt_ms,
        model.name,
    )


def _reason(model: AgentModel, count: int) -> str:
    tools = {
        True: "its chat template renders tools",
        None: "nothing is known about its tools",
        False: "its chat template renders no tools",
    }[model.tools]
    context = f"context {model.context:,}" if model.context else "context unknown"
    size = f", {model.size / 1e9:.1f} GB" if model.size else ""
    busy = ", all its slots are in use" if model.free_slots == 0 else ""
    among = "the only model" if count == 1 else f"the best of {count} models"
    return f"{model.name}: {among} ({tools}, {context}{size}{busy})."
