"""What the owner of a node is told of its part in its mesh, and why the owner lets it take no leases."""

from __future__ import annotations

from meshllm.daemon.settings import Settings

EXPELLED = (
    "This node was expelled from its mesh. It does not retry, and goes on alone with its own models. "
    "To join again: ask the owner of the mesh for a fresh invite, and start a node with a new MESH_LLM_HOME and that."
)
LEFT_MESH = (
    "This node left the mesh %s for the mesh %s. What it knew of the old one is in mesh.previous.json of its home; "
    "to be in both, start a second node with a home of its own (MESH_LLM_HOME)."
)
NOT_SERVED_TO_OTHERS = (
    "The membership of this node does not let it serve others: only this machine uses its models. "
    "For more, ask the owner of the mesh for another invite: 'mesh-llm invite --rights use,serve' makes one."
)


def owner_refusal(settings: Settings, *, founded: bool) -> str:
    """Why the owner does not let this node work for splits of other nodes; "": it may."""
    if settings.worker is False:
        return "This node's owner does not let it work for splits (--no-worker)"
    if settings.worker is None and founded and not (settings.models or settings.backends):
        return "This node is idle: it began its mesh without a model (its owner can start it with --worker)"
    return ""
