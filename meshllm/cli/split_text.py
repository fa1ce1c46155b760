"""Text about splits, for `mesh-llm status` and for the lines of a running node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshllm.core.records import short
from meshllm.util.format import gigabytes, printable

if TYPE_CHECKING:
    from meshllm.core.snapshot import ModelState, Snapshot


def split_lines(split: dict[str, Any]) -> list[str]:
    """A split that this node hosts, from the status: a headline, and one line for each share."""
    model, reason = printable(split["model"]), printable(split["reason"])
    if not split["shares"]:
        return [f"{model}: {reason}"]
    headline = f"{model} split over {len(split['shares'])} nodes ({_speed(split)}): {reason}"
    deviation = [f"  {printable(split['deviation'])}"] if split.get("deviation") else []
    return [headline, *deviation, *(_share_line(share) for share in split["shares"])]


def worker_lease_line(lease: dict[str, Any]) -> str:
    """This node's part in the split of another host, from the status."""
    last = lease["first"] + lease["layers"] - 1
    detail = f", {printable(lease['detail'])}" if lease["detail"] else ""
    host = printable(lease["host_name"]) or lease["host"][:10]
    share = f"layers {lease['first']} to {last} of {printable(lease['model'])} for {host}"
    return f"worker for {share}: {memory_text(lease)}, {_phase_text(lease['phase'])}{detail}"


def memory_text(part: dict[str, Any]) -> str:
    """The memory of an engine process, from the status: what it may come to, and what it takes now."""
    used = part.get("memory_used")
    return f"at most {gigabytes(part['memory'])}" + (f", {gigabytes(used)} now" if used else "")


def worker_news(snapshot: Snapshot) -> str:
    """This node's part in the split of another host, for a running node's lines; empty if it has none."""
    state, mesh = snapshot.worker_lease, snapshot.mesh
    share = state.lease.share(mesh.node) if state is not None and mesh is not None else None
    if state is None or share is None:
        return ""
    last, host = share.first + share.layers - 1, state.lease.host
    names = [peer.record.name for peer in mesh.peers if peer.node == host] if mesh is not None else []
    what = f"layers {share.first} to {last} of {printable(state.lease.model)}"
    return f"worker for {what} for {printable(''.join(names)) or short(host)}: {_phase_text(state.phase.value)}"


def waiting(model: ModelState) -> str:
    """What a split of `model` waits for; empty if it does not wait, or if the model has failed for that reason."""
    split = model.split
    return split.status_text() if split is not None and not (split.committed or split.refused) else ""


def _share_line(share: dict[str, Any]) -> str:
    first, last = share["first"], share["first"] + share["layers"] - 1
    memory = memory_text(share)
    if share["phase"] is None:
        return f"  layers {first} to {last} on this node: {memory}"
    name = printable(share["name"]) or share["node"][:10]
    parts = [
        f"  layers {first} to {last} on {name}: {memory}",
        printable(share["detail"] or _phase_text(share["phase"])),
    ]
    if share["rtt"] is not None:
        parts.append(f"rtt {share['rtt'] * 1000:.1f} ms")
    if share["transport"] is not None:
        parts.append(f"by {share['transport']}")
    parts.append(f"{share['sent'] / 1e6:,.1f} MB sent, {share['received'] / 1e6:,.1f} MB received")
    if share["rate"]:
        parts.append(f"{share['rate'] / 1e3:,.1f} kB/s now")
    return ", ".join(parts)


def _phase_text(phase: str) -> str:
    """The phase of a lease for people: a committed one is in use."""
    return "serving" if phase == "committed" else phase


def _speed(split: dict[str, Any]) -> str:
    texts = [
        f"{text} {split[key] * 1000:.0f} ms per token"
        for key, text in (
            ("forecast", "corrected forecast" if split.get("corrected") else "forecast"),
            ("measured",) * 2,
        )
        if split[key] is not None
    ]
    return ", ".join(texts) or "no forecast"
