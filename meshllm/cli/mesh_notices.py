"""What is new in the mesh, in sentences for people and fields for programs.

Law: what others chose (names, reasons, models) is shown without anything that a terminal would obey. Each thing is
said once; in a large mesh, coming and going is counted instead of told.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.membership.views import JoinAttempt, JoinAttemptState, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import NodeId, short
from meshllm.util.format import printable

# More changes than this at once are summed up in a line.
MOST_AT_ONCE = 8
# Of the ways in, so many are told of one by one; a node may remember hundreds.
MOST_WAYS = 12
MOST_MODELS = 6


class NoticeTone(Enum):
    """How a line is to be taken."""

    GOOD = "good"
    PLAIN = "plain"
    WORRYING = "worrying"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class MeshNotice:
    """One thing that is new. `fields` say the same to programs, under the name `event`."""

    words: str
    tone: NoticeTone
    event: str
    fields: dict[str, object]


def called(peer: PeerView) -> str:
    """A peer as people know it: its name and the beginning of its id."""
    name = printable(peer.record.name)
    return f"{name} ({short(peer.node)})" if name else short(peer.node)


def listed(names: list[str]) -> str:
    """Names of models, the first few of them."""
    shown = ", ".join(printable(name) for name in names[:MOST_MODELS])
    return f"{shown} and {len(names) - MOST_MODELS} more" if len(names) > MOST_MODELS else shown


class MeshNotices:
    """Remembers what was said, and says what is new."""

    def __init__(self) -> None:
        self._phase = JoinPhase.ALONE
        self._steps: dict[tuple[bytes, object], tuple[str, str]] = {}
        self._peers: dict[NodeId, tuple[PeerStatus, tuple[str, ...]]] = {}
        self._seen: object = None

    def news(self, mesh: MeshView) -> list[MeshNotice]:
        """What `mesh` says that the one before did not."""
        found = self._of_steps(mesh)
        if mesh.peers is not self._seen:
            self._seen = mesh.peers
            found += self._of_peers(mesh)
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
                again = " again" if before in (JoinPhase.JOINED, JoinPhase.FAILED) else ""
                words, tone = f"Looking for the mesh{again}: {_ways(len(mesh.join_attempts))}", NoticeTone.PLAIN
            case JoinPhase.SYNCING:
                words, tone = "Connected; learning who is in the mesh", NoticeTone.PLAIN
            case JoinPhase.JOINED:
                alive = [peer for peer in mesh.peers if peer.status is PeerStatus.ALIVE]
                models = sorted({served.name for peer in alive for served in peer.record.serves})
                serving = f", serving {listed(models)}" if models else ""
                others = "1 other node" if len(alive) == 1 else f"{len(alive)} other nodes"
                words, tone = f"Joined the mesh {mesh.mesh[:5].hex()}: {others}{serving}", NoticeTone.GOOD
                fields |= {"nodes": len(alive), "models": models}
            case JoinPhase.FAILED:
                words, tone = f"The mesh cannot be reached yet{reason}. It goes on trying.", NoticeTone.BAD
            case JoinPhase.ALONE:
                words, tone = "This node is alone in its mesh", NoticeTone.PLAIN
        return [MeshNotice(words, tone, "mesh", fields)]

    def _of_steps(self, mesh: MeshView) -> list[MeshNotice]:
        found = []
        for step in mesh.join_attempts[:MOST_WAYS]:
            key, told = (step.address.pin, step.address.addresses), (step.state.value, step.reason)
            # Trying again is not news, and failing again for the same reason is not either.
            if self._steps.get(key) != told and not (step.state is JoinAttemptState.DIALLING and key in self._steps):
                self._steps[key] = told
                found.append(_of_step(step))
        return found

    def _of_peers(self, mesh: MeshView) -> list[MeshNotice]:
        found: list[MeshNotice] = []
        current = {}
        for peer in mesh.peers:
            now = (peer.status, tuple([served.name for served in peer.record.serves]))
            current[peer.node] = now
            before = self._peers.get(peer.node)
            if before != now and (news := _of_peer(peer, before)) is not None:
                found.append(news)
        self._peers = current
        if len(found) <= MOST_AT_ONCE:
            return found
        alive = sum(status is PeerStatus.ALIVE for status, _ in current.values())
        return [
            MeshNotice(f"{len(found)} nodes changed; {alive} are there", NoticeTone.PLAIN, "peers", {"alive": alive})
        ]


def _ways(count: int) -> str:
    return "1 way in" if count == 1 else f"{count} ways in"


def _of_step(step: JoinAttempt) -> MeshNotice:
    where = " or ".join(str(address) for address in step.address.addresses) or step.address.pin[:5].hex()
    reason = f": {printable(step.reason)}" if step.reason else ""
    tone = {"linked": NoticeTone.GOOD, "failed": NoticeTone.WORRYING, "refused": NoticeTone.BAD}.get(
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
    """What to say of a peer whose status or models have changed; None: nothing that matters to a person."""
    models = [served.name for served in peer.record.serves]
    serving = f", serving {listed(models)}" if models else ""
    reason = f": {printable(peer.reason)}" if peer.reason else ""
    was = before[0] if before is not None else PeerStatus.UNVERIFIED
    match peer.status:
        case PeerStatus.ALIVE if was is PeerStatus.ALIVE:
            words, tone = f"{called(peer)} serves {listed(models) or 'nothing now'}", NoticeTone.GOOD
        case PeerStatus.ALIVE:
            back = "is back" if was in (PeerStatus.SUSPECT, PeerStatus.DEAD, PeerStatus.LEFT) else "is in the mesh"
            words, tone = f"{called(peer)} {back}{serving}", NoticeTone.GOOD
        case PeerStatus.SUSPECT if was is not PeerStatus.SUSPECT:
            words, tone = f"{called(peer)} does not answer{reason}", NoticeTone.WORRYING
        case PeerStatus.DEAD if was in (PeerStatus.ALIVE, PeerStatus.SUSPECT):
            words, tone = f"{called(peer)} is gone{reason}", NoticeTone.BAD
        case PeerStatus.LEFT if was in (PeerStatus.ALIVE, PeerStatus.SUSPECT):
            words, tone = f"{called(peer)} has left", NoticeTone.PLAIN
        case _:
            return None
    fields: dict[str, object] = {
        "peer": peer.node.hex(),
        "name": peer.record.name,
        "status": peer.status.value,
        "models": models,
        "reason": peer.reason,
    }
    return MeshNotice(words, tone, "peer", fields)
