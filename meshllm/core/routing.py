"""Which targets can answer for a model, best first.

On one node: the engine process here, then the backends in the order they were named. A target is named by what the
gateway needs to reach it; whether it has room is the gateway's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core import serving
from meshllm.core.types import ModelPhase, ModelState, Purpose, Snapshot

# So many unanswered probes in a row, and callers of a backend's models get an error instead of waiting for it.
BACKEND_PATIENCE_FAILURES = 4


class TargetKind(Enum):
    """What stands behind a target."""

    ENGINE = "engine"
    BACKEND = "backend"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Target:
    """Somewhere a request can be answered.

    `address` is a Unix socket path for an engine, a base URL (without `/v1`) for a backend, a node id in hexadecimal
    for a peer. `generation` (of a peer: its incarnation) tells two engine processes apart that follow one another;
    `slots` is how many requests are worked on at a time (0: unknown).
    """

    kind: TargetKind
    address: str
    generation: int = 0
    slots: int = 0


class Standing(Enum):
    """How a model stands with this node, when no target can answer for it at the moment."""

    UNKNOWN = "unknown"
    COMING = "coming"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Route:
    """The answer to "who serves this model?": `targets`, best first, or why there are none.

    `purpose` is what the model is for, where this node has its file; a backend does not say.
    """

    targets: tuple[Target, ...]
    standing: Standing
    words: str = ""
    purpose: Purpose | None = None


def route(snapshot: Snapshot, model: str) -> Route:
    """Who can answer for `model` now. Exactly that name: an unknown model is never another model's answer."""
    targets: list[Target] = []
    here = snapshot.model(model)
    if here is not None and here.server_facts is not None and here.wanted:
        facts = here.server_facts
        targets.append(Target(TargetKind.ENGINE, facts.endpoint, here.generation, facts.slots))
    targets += [Target(TargetKind.BACKEND, b.url) for b in snapshot.backends if b.healthy and model in b.models]
    purpose = here.facts.purpose if here is not None and here.facts is not None else None
    if targets:
        return Route(tuple(targets), Standing.COMING, purpose=purpose)
    if here is None:
        return _away(snapshot, model)
    if serving.phase(snapshot.engine, here) in (ModelPhase.FAILED, ModelPhase.STOPPING, ModelPhase.STOPPED):
        return Route((), Standing.FAILED, failure_words(snapshot, here), purpose)
    return Route((), Standing.COMING, serving.progress_words(snapshot.engine, here), purpose)


def _away(snapshot: Snapshot, model: str) -> Route:
    silent = [b for b in snapshot.backends if not b.healthy]
    had = [b for b in silent if model in b.models]
    # One that was never asked may have it; one that had it may be back in a moment.
    if any(b.failures == 0 for b in silent) or any(b.failures <= BACKEND_PATIENCE_FAILURES for b in had):
        return Route((), Standing.COMING, "asking the backends")
    if had:
        return Route((), Standing.FAILED, f"the backend that serves {model} does not answer: {had[0].reason}")
    return Route((), Standing.UNKNOWN)


def failure_words(snapshot: Snapshot, model: ModelState) -> str:
    """Why `model` cannot be served, in words for its caller."""
    if snapshot.stopping:
        return f"this node is stopping; {model.name} is no longer served here"
    reason = model.reason or snapshot.engine.reason or "no reason is known"
    advice = model.advice or snapshot.engine.advice
    return f"{model.name} cannot be served: {reason} {advice}".rstrip()


def purpose_words(model: str, purpose: Purpose) -> str:
    """What to tell a caller who asked `model` for something that it is not for."""
    match purpose:
        case Purpose.GENERATE:
            return f"{model} writes text and gives neither embeddings nor rankings: choose a model made for that."
        case Purpose.EMBED:
            return f"{model} only turns texts into vectors: ask it at /v1/embeddings, and another model for the rest."
        case Purpose.RERANK:
            return f"{model} only ranks documents: ask it at /v1/rerank, and another model for the rest."


def all_targets(snapshot: Snapshot) -> dict[str, list[Target]]:
    """Every model's targets, best first: what `route` says of each, in one pass over what the backends list."""
    found = {model.name: list(route(snapshot, model.name).targets) for model in snapshot.models}
    local = frozenset(found)
    for backend in snapshot.backends:
        if backend.healthy:
            target = Target(TargetKind.BACKEND, backend.url)
            for name in backend.models:
                if name not in local:
                    found.setdefault(name, []).append(target)
    return found


def models(snapshot: Snapshot) -> tuple[str, ...]:
    """Every model that can be asked for, in the order it became known, without repeats."""
    names = [m.name for m in snapshot.models]
    names += [name for b in snapshot.backends if b.healthy for name in b.models]
    return tuple(dict.fromkeys(names))
