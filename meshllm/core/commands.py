"""The commands of the core: what the daemon carries out, and answers with events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshllm.core.board.entries import EntryId, SignedEntry
from meshllm.core.membership.certificates import Certificate, CertificateTerms, MeshKey
from meshllm.core.membership.messages import AskInvite, GrantedInvite, Message, RenewedCertificate, ReplaceKey
from meshllm.core.records import BootstrapAddress, MeshId, NodeId

if TYPE_CHECKING:
    from meshllm.core.memory.context_size import ContextSize
    from meshllm.core.split.corrections import Correction
    from meshllm.core.split.lease import Lease


@dataclass(frozen=True, slots=True)
class Command:
    """Base of all commands."""


@dataclass(frozen=True, slots=True)
class PrepareEngine(Command):
    """Find or build the engine. Answered by EngineProgress..., then EngineReady or EngineFailed."""


@dataclass(frozen=True, slots=True)
class FetchModel(Command):
    """Download the model's file if it is missing. Answered by FileProgress..., then FileReady or FileFailed."""

    model: str


@dataclass(frozen=True, slots=True)
class AllowDownload(Command):
    """`FetchModel` of that model, which is not on this disk, may download it because the mesh asks for it; its files,
    without a vision projector, have at most `most` bytes. Counts until `ForgetModel`."""

    model: str
    most: int


@dataclass(frozen=True, slots=True)
class MeasureModel(Command):
    """Measure the memory that the model needs here, by the engine. Answered by ModelMeasured or MeasureFailed.

    `split`: the model will be split, so measure it by layer, too. `beside`: further models that this node is to serve:
    memory is kept for them, if the model fits in the rest.
    """

    model: str
    split: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartServer(Command):
    """Start an engine process for the model. Answered by ServerProgress..., ServerReady, and at its end ServerGone.

    With a `lease` the engine reaches its workers through tunnels, and serves with `size`; `names`: of the workers, for
    users, in the order of the lease. `sharers`: how many nodes of the lease share this machine's processor.
    """

    model: str
    generation: int
    lease: Lease | None = None
    size: ContextSize | None = None
    names: tuple[str, ...] = ()
    sharers: int = 1


@dataclass(frozen=True, slots=True)
class StopServer(Command):
    """Stop that engine process; `at_once`: without time to finish its answers; `drain`: only when they have ended.
    Answered by ServerGone."""

    model: str
    generation: int
    at_once: bool = False
    drain: bool = False


@dataclass(frozen=True, slots=True)
class TakeFromMesh(Command):
    """The owner asked for a model as `asked`, which is `model` in the mesh: it may be downloaded from there."""

    model: str
    asked: str


@dataclass(frozen=True, slots=True)
class ForgetModel(Command):
    """The owner dropped the model and it has no engine process: stop its download and its measurement, and forget what
    was planned for it. Nothing answers."""

    model: str


@dataclass(frozen=True, slots=True)
class SaveDropped(Command):
    """Keep over a restart which models the owner dropped, and until when (on the core's clock). Nothing answers."""

    dropped: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class StartWorker(Command):
    """Serve this node's share of `lease`: get the model's files if possible, and run an rpc-server.

    Answered by WorkerProgress..., WorkerReady, and at its end WorkerGone. `sharers`: as in `StartServer`.
    """

    lease: Lease
    sharers: int = 1


@dataclass(frozen=True, slots=True)
class StopWorker(Command):
    """Stop the worker process of that lease, or its preparation, and close its tunnels. Answered by WorkerGone."""

    session: bytes
    generation: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OpenAhead(Command):
    """Have a tunnel to `peer` made: it is being asked for a lease, which will need one. Nothing answers."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class ProbeBackend(Command):
    """List a backend's models. Answered by BackendAnswered or BackendSilent."""

    url: str


@dataclass(frozen=True, slots=True)
class Finish(Command):
    """Everything has stopped: the daemon may end."""


# -- the mesh


@dataclass(frozen=True, slots=True)
class DialPeer(Command):
    """Connect to a peer, all its addresses nearly at once. Answered by LinkUp or DialFailed, within a deadline."""

    target: BootstrapAddress


@dataclass(frozen=True, slots=True)
class HangUp(Command):
    """The core needs this link no longer: close it once no tunnel uses it, or `at_once`, with all tunnels, if the peer
    is no member any more. Answered by LinkDown when it closes."""

    peer: NodeId
    reason: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Send(Command):
    """Say something to a peer. Lost silently if the link is gone."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class SaveIncarnation(Command):
    """Keep this number over a restart; the next start uses a higher one."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class SaveCorrections(Command):
    """What forecasts of splits learned: keep it over a restart. Times are those of the core's clock."""

    corrections: tuple[Correction, ...]


@dataclass(frozen=True, slots=True)
class SaveMesh(Command):
    """This node now belongs to the mesh of that id (same secret)."""

    mesh: MeshId


@dataclass(frozen=True, slots=True)
class SavePeers(Command):
    """Who to look for after a restart, best first."""

    peers: tuple[BootstrapAddress, ...]


@dataclass(frozen=True, slots=True)
class SaveStatements(Command):
    """The mesh key and the statements that count now: keep them over a restart."""

    key: MeshKey
    statements: tuple[bytes, ...]
    previous: MeshKey | None = None


@dataclass(frozen=True, slots=True)
class SaveGrace(Command):
    """The terms of certificates of the previous mesh key that count for a while; none: that time is over. Keep them
    over a restart."""

    terms: frozenset[CertificateTerms]


@dataclass(frozen=True, slots=True)
class IssueCertificate(Command):
    """Renew the certificate of `peer`, a member, and send it `RenewedCertificate`; same rights."""

    peer: NodeId
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class TakeCertificate(Command):
    """A peer answered with this certificate for this node: verify it, keep it, and answer with CertificateRenewed."""

    peer: NodeId
    answer: RenewedCertificate


@dataclass(frozen=True, slots=True)
class CertifyReplacement(Command):
    """`peer`, a member, asks for a new id: check both signatures, and sign the statement or send `ReplaceRefused`."""

    peer: NodeId
    request: ReplaceKey


@dataclass(frozen=True, slots=True)
class ReplacementRefused(Command):
    """The `ReplacementWanted` of this node's owner cannot be carried out, for this reason; nothing has changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class NodeReplaced(Command):
    """A member has the id `new` from now on, in place of `old`."""

    old: NodeId
    new: NodeId


@dataclass(frozen=True, slots=True)
class MemberExpelled(Command):
    """A member was expelled, by whichever member: what this node granted it is void."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class MakeInvite(Command):
    """`peer`, a member that may invite, asks for an invite: make it, with itself as the inviter, and send it
    `GrantedInvite`. The rights of `ask` are within those of `peer`."""

    peer: NodeId
    ask: AskInvite


@dataclass(frozen=True, slots=True)
class TakeInvite(Command):
    """The answer to an `InviteWanted` of this node's owner: of `maker`, which was asked, or a refusal by this node."""

    maker: NodeId
    answer: GrantedInvite


@dataclass(frozen=True, slots=True)
class InviteRefused(Command):
    """The mesh of the invite refused it for good: tell the owner. This node is in no mesh with others, and dials no
    more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expelled(Command):
    """This node is no member any more: tell its owner. It has left the mesh and serves its own models only.

    `successor`: the id that it has from now on, if it replaced its key; it then joins again with that.
    """

    successor: NodeId | None = None


@dataclass(frozen=True, slots=True)
class SavePost(Command):
    """Save this node's own `entry`, with its number and time, so that a crash uses neither again. Answered by
    `PostSaved` or `PostFailed`."""

    number: int
    entry: SignedEntry


@dataclass(frozen=True, slots=True)
class RefusePost(Command):
    """The answer to a `PostWanted` that was not done. `reason`: one sentence for the writer. `rate`: this node has
    posted too much; the same message may be posted later."""

    number: int
    reason: str
    rate: bool = False


@dataclass(frozen=True, slots=True)
class BoardChanged(Command):
    """The blackboard changed: save it, and tell its readers.

    `added`: new entries, own ones included. `erased`: entries that lost their text. `removed`: entries that expired or
    had no room. `certificates` of authors that were not known. `waiting`: entries that wait because their time is ahead
    of this machine's clock. `flagged`: authors that broke the rules of the log. `numbers`: the `PostSaved` that this
    answers.
    """

    added: tuple[SignedEntry, ...] = ()
    erased: tuple[EntryId, ...] = ()
    removed: tuple[EntryId, ...] = ()
    certificates: tuple[bytes, ...] = ()
    waiting: int = 0
    flagged: tuple[NodeId, ...] = ()
    numbers: tuple[int, ...] = ()
