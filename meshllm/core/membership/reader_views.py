"""What readers see of other nodes and clients: the parts of a `MeshView`. Pure."""

from __future__ import annotations

from collections.abc import Collection

from meshllm.core import events as e
from meshllm.core.membership.away import AwayMembers
from meshllm.core.membership.links import LinkTable
from meshllm.core.membership.table import MemberEntry
from meshllm.core.membership.views import ClientView, PeerView
from meshllm.core.records import NodeId, short


def peers(entries: Collection[MemberEntry], links: LinkTable) -> tuple[PeerView, ...]:
    """All other nodes, without one that is linked as a client: what it was before is over."""
    now_clients = {node for node, _ in links.clients()}
    ordered = sorted(entries, key=lambda entry: entry.record.node)
    return tuple([entry.peer_view() for entry in ordered if entry.record.node not in now_clients])


def clients(links: LinkTable) -> tuple[ClientView, ...]:
    """The linked clients, by node id."""
    ordered = sorted(links.clients(), key=lambda found: found[0])
    return tuple([ClientView(node, link.name, link.up_at, link.rtt) for node, link in ordered])


def named_reason(event: e.DialFailed, entry: MemberEntry | None, away: AwayMembers) -> str:
    """The reason of a failed dial, with the name of the peer if it is known. `entry`: the peer's, if there is one."""
    pin = event.target.pin
    name = entry.record.name if entry is not None else away.name_of(pin)
    return event.reason.replace(f"Node {short(NodeId(pin))}", name, 1) if name else event.reason
