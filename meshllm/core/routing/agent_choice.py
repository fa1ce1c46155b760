"""Orders models for callers that name none, and chooses that of a coding agent that was started without `--model`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from meshllm.core.snapshot import Purpose

AUTO = "auto"
"""The name by which a caller leaves the choice to the mesh, for each request."""

# Coding agents send 5,000 to 20,000 tokens of tools and instructions before the first word of the user.
LEAST_CONTEXT = 5_000
WANTED_CONTEXT = 32_768
# An answer may take a quarter of the context, and no more than the answers that agents really write.
MAX_OUTPUT = 8192
# Files within such a factor count as of one size: then speed, load and distance decide.
SIZE_STEP = 1.25


@dataclass(frozen=True, slots=True)
class AgentModel:
    """A model that an agent, or a request for `auto` (`auto_choice`), could use.

    `context`: tokens that one request may use (0: unknown). `size`: bytes of its file (0: unknown). `calls_tools`: it
    does when it is asked to, by a test or its owner's word (None: unknown). `tools`: whether its chat template renders
    tools (None: unknown, as for models of other nodes); `chat_template`: whether it has one, as far as is known.
    `speed`: tokens per second of the last answer that this node got (None: none yet). `free_slots`: requests that begin
    at once; None where no host reports it. `rtt_ms`: distance of its nearest host (0: this node, None: unknown).
    `loaded`: some host has it in memory. `purpose` and `vision` (it accepts images): None if unknown. `owned`: some
    host is this node, or another machine of its owner. `trained`: the context that it was
    made for (0: unknown).
    """

    name: str
    context: int = 0
    size: int = 0
    tools: bool | None = None
    free_slots: int | None = None
    rtt_ms: float | None = None
    loaded: bool = True
    calls_tools: bool | None = None
    chat_template: bool = True
    speed: float | None = None
    purpose: Purpose | None = None
    vision: bool | None = None
    owned: bool = True
    trained: int = 0

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

    In this order: a context that holds what agents send at least, if it is known; a model that calls tools, rather than
    one whose chat template renders them, rather than an unknown one, rather than one that calls none; a context of
    WANTED_CONTEXT, else the larger one; the larger file, in steps of SIZE_STEP; a loaded model; the faster one, as far
    as was measured; a free slot; the nearer host; the larger file; the name.
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
        tool_rank(model) if tools else 0,
        -min(model.context, wanted),
        -round(math.log(model.size, SIZE_STEP)) if model.size else 1,
        not model.loaded,
        -(model.speed or 0.0),
        model.free_slots == 0,
        float("inf") if model.rtt_ms is None else model.rtt_ms,
        -model.size,
        model.name,
    )


def tool_rank(model: AgentModel) -> int:
    """How sure it is that `model` calls tools; 0 is the best."""
    if model.calls_tools is not None:
        return 0 if model.calls_tools else 3
    return {True: 1, None: 2, False: 3}[model.tools]


def _reason(model: AgentModel, count: int) -> str:
    context = f"context {model.context:,}" if model.context else "context unknown"
    size = f", {model.size / 1e9:.1f} GB" if model.size else ""
    speed = f", {model.speed:.0f} tokens/s" if model.speed else ""
    busy = ", all its slots are in use" if model.free_slots == 0 else ""
    among = "the only model" if count == 1 else f"the best of {count} models"
    return f"{model.name}: {among} ({_tools_text(model)}, {context}{size}{speed}{busy})."


def _tools_text(model: AgentModel) -> str:
    if model.calls_tools is not None:
        return "it calls tools" if model.calls_tools else "it made no tool call in its test"
    return {
        True: "its chat template renders tools",
        None: "nothing is known about its tools",
        False: "its chat template renders no tools",
    }[model.tools]
