"""Sentences for users about what is to come (`demand_outlook`): what a node does next, why a model is not served."""

from __future__ import annotations

from meshllm.core.serving.demand_outlook import (
    DemandOutlook,
    ModelOutlook,
    NextAct,
    NodeOutlook,
    Obstacle,
    ObstacleFacts,
)
from meshllm.util.format import gigabytes, rough_duration, shell_word


def node_text(step: NodeOutlook, view: DemandOutlook) -> str:
    """What a node does next, as a predicate: "takes Qwen3-8B in 15 s if cellar does not"."""
    model = step.model
    when = "" if step.seconds is None else f" in {rough_duration(step.seconds)}" if step.seconds >= 1 else " now"
    match step.act:
        case NextAct.TAKES:
            return f"{'downloads' if step.download else 'takes'} {model}{when}"
        case NextAct.FOLLOWS:
            other = view.label(step.other) if step.other is not None else "another node"
            return f"takes {model}{when} if {other} does not"
        case NextAct.LOADS:
            return f"loads {model}"
        case NextAct.MOVES:
            return f"moves to {model}{when}"
        case NextAct.LAST_HOST:
            return f"stays: the last host of {model}, which is wanted"
        case NextAct.STAYS:
            return f"stays with {model}"
        case NextAct.SERVES:
            return f"keeps {model}: its owner asked for it"
        case NextAct.ASKS:
            return f"was started with {model}, and does not serve it yet"
        case NextAct.WORKS:
            return f"computes layers of {model} for another node"
        case NextAct.FREE:
            return "is free: takes the next wanted model on its disk"
        case NextAct.IDLE:
            return "takes no model by itself"
        case NextAct.LEAVES:
            return "leaves"


def model_text(model: ModelOutlook, view: DemandOutlook) -> str:
    """Who loads or takes a model, or why no node serves it; empty if there is nothing to say."""
    texts = [f"{', '.join(view.label(node) for node in model.loading[:3])} loads it."] if model.loading else []
    if model.taker is not None:
        texts.append(f"{view.label(model.taker.node)} {node_text(model.taker, view)}.")
    texts += [obstacle_text(facts, model.model, view) for facts in model.obstacles]
    return " ".join(text[:1].upper() + text[1:] for text in texts)


def obstacle_text(facts: ObstacleFacts, model: str, view: DemandOutlook) -> str:
    """Why a model is not served, and what to do."""
    nodes = ", ".join(view.label(node) for node in facts.nodes)
    match facts.kind:
        case Obstacle.SPLIT:
            return "It was requested with --split, and its host waits for enough nodes."
        case Obstacle.DROPPED:
            return dropped_text(model, facts.seconds) if facts.seconds else f"The owner of {nodes} dropped it there."
        case Obstacle.FAILED:
            cause = f": {facts.cause.rstrip('.')}" if facts.cause else ""
            again = f" It tries again in {rough_duration(facts.seconds)}." if facts.seconds else ""
            return f"{nodes[:1].upper()}{nodes[1:]} could not serve it{cause}.{again}"
        case Obstacle.NO_FILE:
            return f"No node offers it from its disk. 'mesh-llm download {shell_word(model)}' gets it."
        case Obstacle.NO_MEMORY:
            return _memory_text(facts, nodes)
        case Obstacle.BUSY:
            return f"{nodes} has it, and serves other models."
        case Obstacle.NOT_ALLOWED:
            return (
                f"{nodes} has it, and takes no model by itself. Load it there with 'mesh-llm load {shell_word(model)}'."
            )
        case Obstacle.MORE_URGENT:
            return f"{nodes} has it, and takes {facts.model} first, which is wanted more."


def _memory_text(facts: ObstacleFacts, nodes: str) -> str:
    """What is counted: memory that is free, and idle models of the mesh's demand, which only a request unloads."""
    needs = f"It needs at least {gigabytes(facts.needed)}"
    has = f"of the nodes that have it, {nodes} has the most memory: {gigabytes(facts.free)} free"
    if facts.room <= facts.free:
        return f"{needs}; {has}."
    unloads = f"{gigabytes(facts.room)} with the idle models that it unloads for a request"
    if facts.needed <= facts.room:
        return f"{needs}; {has}, {unloads}: a request for it makes {nodes} load it."
    return f"{needs}; {has}, {unloads}."


def dropped_text(model: str, seconds: float) -> str:
    """That the owner of this node dropped `model`, for how long that counts, and how to get it back."""
    return (
        f"The owner of this node dropped it: for {rough_duration(seconds)} this node does not load it for the mesh. "
        f"'mesh-llm load {shell_word(model)}' brings it back."
    )
