"""What callers are told about a model that cannot be used now, or not for their request. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from meshllm.core.membership.views import AwayMember, MeshView
from meshllm.core.records import UnservedCause, UnservedModel
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelState, Purpose, Snapshot
from meshllm.util.format import rough_duration

# Members that a message names.
MAX_NAMES = 3
DAMAGED_ADVICE = "Its owner deletes the file and downloads the model again ('mesh-llm models verify' checks files)."


def went_away(member: AwayMember, now: float) -> str:
    """That a member is away, and since when."""
    return f"{member.label} was last seen {rough_duration(max(0.0, now - member.seen))} ago."


def dropped_text(snapshot: Snapshot, model: str, now: float) -> str:
    """That the owner dropped `model` here, and how to get it back, for callers; "" if it was not dropped."""
    for name, until in snapshot.dropped:
        if name.casefold() == model.casefold() and until > now:
            from meshllm.core.serving import demand_text  # for a dropped model alone

            return f"{name} is not served. {demand_text.dropped_text(name, until - now)}"
    return ""


def damaged_text(snapshot: Snapshot, model: str) -> str:
    """That the file of `model` on this node is of no use, and what to do, for callers; "" if it is not known to be."""
    reason = dict(snapshot.damaged).get(model)
    return "" if reason is None else f"{model} cannot be served by this node: {reason} {DAMAGED_ADVICE}"


def unserved_text(model: str, said: Sequence[tuple[str, UnservedModel]]) -> str:
    """Why other nodes do not serve `model`, for callers: what these nodes say of it; "" if none says anything."""
    texts = [_unserved_at(node, each) for node, each in said[:MAX_NAMES]]
    if not texts:
        return ""
    retry = " Retry later." if may_come_back(said) else " Ask its owner, or use another model."
    return f"{model} is not served at the moment. {' '.join(texts)}{retry}"


def may_come_back(said: Sequence[tuple[str, UnservedModel]]) -> bool:
    """Whether a node may serve the model again without a word of its owner."""
    return any(each.cause is UnservedCause.FAILED for _, each in said)


def _unserved_at(node: str, said: UnservedModel) -> str:
    reason = said.reason.rstrip(".")
    match said.cause:
        case UnservedCause.FAILED:
            return f"{node} could not serve it{f': {reason}' if reason else ''}."
        case UnservedCause.DAMAGED:
            return f"{node} has a damaged file of it{f': {reason}' if reason else ''}."
        case UnservedCause.DROPPED:
            return f"The owner of {node} dropped it there."


def away_text(mesh: MeshView | None, now: float) -> str:
    """Who is away and since when, for callers; "" if no member is."""
    away = mesh.away if mesh is not None else ()
    if not away:
        return ""
    names = [f"{one.label} (last seen {rough_duration(max(0.0, now - one.seen))} ago)" for one in away[:MAX_NAMES]]
    more = f" and {len(away) - MAX_NAMES} more" if len(away) > MAX_NAMES else ""
    return f"Away, and may serve more: {', '.join(names)}{more}."


def failure_message(snapshot: Snapshot, model: ModelState) -> str:
    """Why `model` cannot be served and what to do, for its caller."""
    if snapshot.stopping:
        return f"This node is stopping and no longer serves {model.name}. Retry on another node."
    engine = snapshot.engine
    if model.reason or not engine.reason:
        reason, advice = model.reason or "the cause is not known", model.advice
    else:
        reason, advice = engine.reason, f"{engine.advice} This node tries again automatically.".lstrip()
    if model.split is not None and model.split.refused and snapshot.mesh is not None and snapshot.mesh.away:
        away = snapshot.mesh.away[:MAX_NAMES]
        advice = f"Away now: {', '.join(member.label for member in away)}. {advice}"
    stop = "" if reason.endswith((".", "!", "?")) else "."
    what = "is not downloaded yet" if next_step.download_failed(model) else "cannot be served"
    return f"{model.name} {what}: {reason}{stop} {advice}".rstrip()


def purpose_message(model: str, purpose: Purpose) -> str:
    """For a caller of an API that `model` does not support."""
    match purpose:
        case Purpose.GENERATE:
            return f"{model} is a chat model and cannot produce embeddings or rerank. Use an embedding or rerank model."
        case Purpose.EMBED:
            return f"{model} is an embedding model. Use it at /v1/embeddings, and another model for this request."
        case Purpose.RERANK:
            return f"{model} is a rerank model. Use it at /v1/rerank, and another model for this request."


def no_vision_message(model: str) -> str:
    """For a caller who sent an image to `model`, which accepts text only."""
    return f"{model} does not support images. Use a vision model (see mesh.input_modalities in /v1/models)."
