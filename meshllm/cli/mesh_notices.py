"""Changes of the mesh as lines for the terminal and as fields for programs.

Invariants: names, reasons and models chosen by peers are shown without control characters. A change is shown once; more
than 8 changes at once become one line with their number.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from meshllm.cli.last_seen import away_text
from meshllm.core.membership.views import (
    ClientView,
    JoinAttempt,
    JoinAttemptState,
    JoinPhase,
    MeshView,
    PeerStatus,
    PeerView,
)
from meshllm.core.records import NodeId, short
from meshllm.util.format import counted, printable

# More changes than this at once become one line.
MAX_CHANGES = 8
# Bootstrap addresses with a line of their own; a node may remember hundreds.
MAX_BOOTSTRAP_LINES = 12
MAX_MODELS = 6


class NoticeTone(Enum):
    """Selects the colour of a line."""

    GOOD = "good"
    PLAIN = "plain"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class MeshNotice:
    """One change: `text` for people; `event` and `fields` for programs."""

    text: str
    tone: NoticeTone
    event: str
    fields: dict[str, object]


def peer_label(peer: PeerView) -> str:
    """The peer's name and the beginning of its id."""
    name = printable(peer.record.name)
    return f"{name} ({short(peer.node)})" if name else short(peer.node)


def join_names(names: list[str]) -> str:
    """The first 6 names of models, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:MAX_MODELS])
    return f"{shown} and {len(names) - MAX_MODELS} more" if len(names) > MAX_MODELS else shown


class MeshNotices:
    """Remembers the last view of the mesh and returns the changes of the next one."""

    def __init__(self) -> None:
        self._phase = JoinPhase.ALONE
        self._steps: dict[tuple[bytes, object], tuple[str, str]] = {}
        self._peers: dict[NodeId, tuple[PeerStatus, tuple[str, ...]]] = {}
        self._seen: object = None
        self._clients: dict[NodeId, ClientView] = {}

    def changes(self, mesh: MeshView) -> list[MeshNotice]:
        """The changes since the view before."""
        found = self._of_steps(mesh)
        if mesh.peers is not self._seen:
            self._seen = mesh.peers
            found += self._of_peers(mesh)
        found += self._of_clients(mesh)
        phase = self._of_phase(mesh)
        return phase + found if mesh.phase is JoinPhase.DIALLING else found + phase

    def _of_phase(self, mesh: MeshView) -> list[MeshNotice]:
        if mesh.phase is self._phase:
            return []
        before, self._phase = self._phase, mesh.phase
        fields: dict[str, object] = {"phase": mesh.phase.value, "mesh": mesh.mesh.hex(), "reason": mesh.reason}
        reason = f": {printable(mesh.reason).rstrip('.')}" if mesh.reason else ""
        match mesh.phase:
            case JoinPhase.DIALLING:
                again = " again" if before not in (JoinPhase.ALONE, JoinPhase.DIALLING, JoinPhase.SYNCING) else ""
                text, tone = f"Connecting to the mesh{again}: {_addresses(len(mesh.join_attempts))}", NoticeTone.PLAIN
            case JoinPhase.SYNCING:
                text, tone = "Connected; loading the list of nodes", NoticeTone.PLAIN
            case JoinPhase.JOINED:
                alive = [peer for peer in mesh.peers if peer.status is PeerStatus.ALIVE]
                models = sorted({served.name for peer in alive for served in peer.record.serves})
                serving = f", serving {join_names(models)}" if models else ""
                others = "1 other node" if len(alive) == 1 else f"{len(alive)} other nodes"
                # Who dialled this node has a link before it is known: the line about it follows.
                text = f"Joined the mesh {mesh.mesh[:5].hex()}: {others}{serving}"
                if not alive:
                    text = f"Another member of the mesh {mesh.mesh[:5].hex()} is connected"
                tone = NoticeTone.GOOD
                fields |= {"nodes": len(alive), "models": models}
            case JoinPhase.FAILED:
                text, tone = f"Cannot reach the mesh{reason}. Retrying.", NoticeTone.BAD
            case JoinPhase.ALONE_FOR_NOW:
                now = time.monotonic()
                away = [(printable(member.label), now - member.seen) for member in mesh.away]
                text, tone = f"Alone for now: {away_text(away)}" if away else "Alone for now", NoticeTone.PLAIN
                fields |= {"away": [member.name for member in mesh.away]}
            case JoinPhase.REFUSED:
                text, tone = f"The mesh refused the invite{reason}. It is not dialled any more.", NoticeTone.BAD
            case JoinPhase.EXPELLED:
                text, tone = f"No member of the mesh any more{reason}. It does not retry.", NoticeTone.BAD
            case JoinPhase.DUPLICATE:
                text, tone = f"Left the mesh{reason}. 'mesh-llm status' says what to do.", NoticeTone.BAD
            case JoinPhase.ALONE:
                text, tone = "This node is the only one of its mesh", NoticeTone.PLAIN
        return [MeshNotice(text, tone, "mesh", fields)]

    def _of_steps(self, mesh: MeshView) -> list[MeshNotice]:
        found = []
        for step in mesh.join_attempts[:MAX_BOOTSTRAP_LINES]:
            key, result = (step.address.pin, step.address.addresses), (step.state.value, step.reason)
            # A retry is no change, nor is a failure for the same reason.
            if self._steps.get(key) != result and not (step.state is JoinAttemptState.DIALLING and key in self._steps):
                self._steps[key] = result
                found.append(_of_step(step))
        return found

    def _of_clients(self, mesh: MeshView) -> list[MeshNotice]:
        """Clients that came or went. A client says its name a moment after its link is up: it is shown then."""
        named = {client.node: client for client in mesh.clients if client.name}
        before, self._clients = self._clients, named
        came = [client for node, client in named.items() if node not in before]
        went = [client for node, client in before.items() if node not in named]
        if len(came) + len(went) > MAX_CHANGES:
            text = f"{counted(len(mesh.clients), 'client')} connected"
            return [MeshNotice(text, NoticeTone.PLAIN, "clients", {"clients": len(mesh.clients)})]
        return [
            *[_of_client(client, linked=True) for client in came],
            *[_of_client(client, linked=False) for client in went],
        ]

    def _of_peers(self, mesh: MeshView) -> list[MeshNotice]:
        found: list[MeshNotice] = []
        current = {}
        for peer in mesh.peers:
            now = (peer.status, tuple([served.name for served in peer.record.serves]))
            current[peer.node] = now
            before = self._peers.get(peer.node)
            if before != now and (notice := _of_peer(peer, before)) is not None:
                found.append(notice)
        self._peers = current
        if len(found) <= MAX_CHANGES:
            return found
        alive = sum(status is PeerStatus.ALIVE for status, _ in current.values())
        return [
            MeshNotice(f"{len(found)} nodes changed; {alive} are online", NoticeTone.PLAIN, "peers", {"alive": alive})
        ]


def _of_client(client: ClientView, *, linked: bool) -> MeshNotice:
    name = printable(client.name)
    label = f"{name} ({short(client.node)})" if name else short(client.node)
    text = f"Client {label} {'is connected' if linked else 'has disconnected'}"
    fields: dict[str, object] = {"peer": client.node.hex(), "name": client.name, "linked": linked}
    return MeshNotice(text, NoticeTone.GOOD if linked else NoticeTone.PLAIN, "client", fields)


def _addresses(count: int) -> str:
    return "1 bootstrap address" if count == 1 else f"{count} bootstrap addresses"


def _of_step(step: JoinAttempt) -> MeshNotice:
    where = " or ".join(str(address) for address in step.address.addresses) or step.address.pin[:5].hex()
    reason = f": {printable(step.reason)}" if step.reason else ""
    tone = {"linked": NoticeTone.GOOD, "failed": NoticeTone.WARNING, "refused": NoticeTone.BAD}.get(
        step.state.value, NoticeTone.PLAIN
    )
    fields: dict[str, object] = {
        "peer": step.address.pin.hex(),
        "addresses": [str(address) for address in step.address.addresses],
        "state": step.state.value,
        "reason": step.reason,
    }
    return MeshNotice(f"  {where}: {step.state.value}{reason}", tone, "join", fields)


def _of_peer(peer: PeerView, before: tuple[PeerStatus, tuple[str, ...]] | None) -> MeshNotice | None:
    """The notice for a peer whose status or models changed; None if the change is not worth a line."""
    models = [served.name for served in peer.record.serves]
    serving = f", serving {join_names(models)}" if models else ""
    reason = f": {printable(peer.reason)}" if peer.reason else ""
    was = before[0] if before is not None else PeerStatus.UNVERIFIED
    match peer.status:
        case PeerStatus.ALIVE if was is PeerStatus.ALIVE:
            text, tone = f"{peer_label(peer)} serves {join_names(models) or 'no model now'}", NoticeTone.GOOD
        case PeerStatus.ALIVE:
            back = (
                "is online again"
                if was in (PeerStatus.SUSPECT, PeerStatus.DEAD, PeerStatus.LEFT)
                else "joined the mesh"
            )
            text, tone = f"{peer_label(peer)} {back}{serving}", NoticeTone.GOOD
        case PeerStatus.SUSPECT if was is not PeerStatus.SUSPECT:
            text, tone = f"{peer_label(peer)} does not answer{reason}", NoticeTone.WARNING
        case PeerStatus.DEAD if was in (PeerStatus.ALIVE, PeerStatus.SUSPECT):
            text, tone = f"{peer_label(peer)} is offline{reason}", NoticeTone.BAD
        case PeerStatus.LEFT if was in (PeerStatus.ALIVE, PeerStatus.SUSPECT):
            text, tone = f"{peer_label(peer)} left the mesh", NoticeTone.PLAIN
        case _:
            return None
    fields: dict[str, object] = {
        "peer": peer.node.hex(),
        "name": peer.record.name,
        "status": peer.status.value,
        "models": models,
        "reason": peer.reason,
    }
    return MeshNotice(text, tone, "peer", fields)
