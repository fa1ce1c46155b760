"""Splits as `mesh-llm status` and the running node's lines tell of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshllm.util.format import gigabytes, printable

if TYPE_CHECKING:
    from meshllm.core.snapshot import ModelState, Snapshot


def hosted(split: dict[str, Any]) -> list[str]:
    """A split that this node hosts, as the status has it: how it stands, and a line for each share."""
    model, reason = printable(split["model"]), printable(split["reason"])
    if not split["shares"]:
        return [f"{model}: {reason}"]
    lines = [f"{model} split over {len(split['shares'])} nodes ({_speed(split)}): {reason}"]
    for share in split["shares"]:
        last = share["first"] + share["layers"] - 1
        who = "this node" if share["phase"] == "host" else printable(share["name"]) or share["node"][:10]
        told = f"  layers {share['first']} to {last} on {who}: {gigabytes(share['memory'])}"
        if share["phase"] != "host":
            told += f", {printable(share['detail'] or share['phase'])}"
            told += "" if share["rtt"] is None else f", {share['rtt'] * 1000:.1f} ms away"
            told += f", by {share['via']}" if share["via"] else ""
            told += f", {share['sent'] / 1e6:,.1f} MB sent and {share['received'] / 1e6:,.1f} MB received"
            told += f", {share['rate'] / 1e3:,.1f} kB/s now" if share["rate"] else ""
        lines.append(told)
    return lines


def _speed(split: dict[str, Any]) -> str:
    words = []
    for key, told in (("forecast", "forecast"), ("measured", "measured")):
        if split[key] is not None:
            words.append(f"{told} {split[key] * 1000:.0f} ms per token")
    return ", ".join(words) or "no forecast"


def carried(lent: dict[str, Any]) -> str:
    """What this node carries for another, as the status has it."""
    last = lent["first"] + lent["layers"] - 1
    detail = f", {printable(lent['detail'])}" if lent["detail"] else ""
    what = f"layers {lent['first']} to {last} of {printable(lent['model'])} for {lent['host'][:10]}"
    return f"carries {what}: {gigabytes(lent['memory'])}, {lent['phase']}{detail}"


def lent_news(snapshot: Snapshot) -> str:
    """What a running node says of that; empty while there is nothing to say."""
    state, mesh = snapshot.worker_lease, snapshot.mesh
    share = state.lease.share(mesh.node) if state is not None and mesh is not None else None
    if state is None or share is None:
        return ""
    last = share.first + share.layers - 1
    return f"carries layers {share.first} to {last} of {printable(state.lease.model)}: {state.phase.value}"


def waiting(model: ModelState) -> str:
    """What a split of `model` waits for; empty if nothing, or where it is the reason that the model has failed."""
    split = model.split
    return split.status_text() if split is not None and not (split.committed or split.refused) else ""
