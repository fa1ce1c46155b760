"""The events of a node: what the daemon posts to the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshllm.core.board.entries import EntryDraft, SignedEntry
from meshllm.core.membership.certificates import Certificate, SignedCertificate
from meshllm.core.membership.messages import AskInvite, Message, ReplaceKey
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeId, PeerAddress, Role
from meshllm.core.snapshot import ModelFacts, ModelOrigin, ServerFacts
from meshllm.util.progress import Progress

if TYPE_CHECKING:
    from meshllm.core.membership.views import AwayMember
    from meshllm.core.split.host import MeasuredModel


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class ModelWanted(Event):
    """This node must serve a model; `split`: as a split even if it fits on this node; `origin`: on whose word;
    `unknown`: neither the disk nor the catalogue has that name, only the mesh can know it."""

    model: str
    split: bool = False
    origin: ModelOrigin = ModelOrigin.STARTED
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class MeshModelRequested(Event):
    """A model is requested that another node of the mesh may serve; if none does, this node serves it beside its first
    model, if it fits. `unknown`: see `ModelWanted`."""

    model: str
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class LoadWanted(Event):
    """The owner wants this node to serve a model, or to try again at once."""

    model: str


@dataclass(frozen=True, slots=True)
class DropWanted(Event):
    """The owner wants this node to stop serving a model, once its answers have ended, and not to take it again for the
    mesh for a day."""

    model: str


@dataclass(frozen=True, slots=True)
class BackendAdded(Event):
    """An OpenAI-compatible server whose models belong to the pool."""

    url: str


@dataclass(frozen=True, slots=True)
class StopAnnounced(Event):
    """The daemon will stop as soon as answers in progress have ended, or soon."""


@dataclass(frozen=True, slots=True)
class StopWanted(Event):
    """The daemon must stop, in order."""


@dataclass(frozen=True, slots=True)
class TimePassed(Event):
    """The deadline that the core named (`next_deadline`) has come."""


@dataclass(frozen=True, slots=True)
class EngineProgress(Event):
    """Progress of the engine's download or build."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class EngineReady(Event):
    """The engine is ready."""

    version: str


@dataclass(frozen=True, slots=True)
class EngineFailed(Event):
    """The engine could not be built; `advice`: what to do. The core tries again."""

    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class FileProgress(Event):
    """Progress of a model's download."""

    model: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class FileReady(Event):
    """A model's file is on the disk, verified and read."""

    model: str
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class FileFailed(Event):
    """A model's file could not be downloaded, or is invalid. `final`: a retry cannot help."""

    model: str
    reason: str
    advice: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class ModelMeasured(Event):
    """The memory that a model needs on this node."""

    model: str
    measured: MeasuredModel


@dataclass(frozen=True, slots=True)
class MeasureFailed(Event):
    """The memory could not be measured; `advice`: what to do. `hopeless`: the engine rejects the file."""

    model: str
    reason: str
    advice: str = ""
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class WorkerProgress(Event):
    """Progress of what a lease needs on this node."""

    session: bytes
    generation: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    """The rpc-server of a lease runs and accepts tunnels."""

    session: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class WorkerGone(Event):
    """The worker of a lease has ended: stopped, crashed, or not started at all."""

    session: bytes
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class TunnelBroken(Event):
    """The tunnel of a lease from this host to a worker broke; the engine here did not close it."""

    session: bytes
    generation: int
    worker: NodeId


@dataclass(frozen=True, slots=True)
class ServerProgress(Event):
    """Progress of loading a model."""

    model: str
    generation: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class ServerReady(Event):
    """An engine process is ready."""

    model: str
    generation: int
    facts: ServerFacts


@dataclass(frozen=True, slots=True)
class ToolCallsTested(Event):
    """The model of an engine process that is ready calls tools, or does not."""

    model: str
    generation: int
    calls_tools: bool


@dataclass(frozen=True, slots=True)
class ServerGone(Event):
    """An engine process has ended: stopped, crashed, or not started at all. `hopeless`: the model does not fit, or its
    chat template does not work, and a quick retry cannot help."""

    model: str
    generation: int
    reason: str
    advice: str = ""
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class BackendAnswered(Event):
    """A backend listed its models."""

    url: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackendSilent(Event):
    """A backend did not answer, or not as an OpenAI-compatible server does."""

    url: str
    reason: str


# -- the mesh


@dataclass(frozen=True, slots=True)
class JoinWanted(Event):
    """Join a mesh at these addresses, from an invite (`invited`: a user waits) or from an earlier run."""

    addresses: tuple[BootstrapAddress, ...]
    invited: bool = True


@dataclass(frozen=True, slots=True)
class MembersRemembered(Event):
    """Members that this node met in earlier runs."""

    members: tuple[AwayMember, ...]


@dataclass(frozen=True, slots=True)
class AddressesFound(Event):
    """Where this node can be reached, best first; sent again when that changes (a peer saw another address)."""

    addresses: tuple[PeerAddress, ...]


@dataclass(frozen=True, slots=True)
class MachineObserved(Event):
    """The machine now; None where a fact could not be read, so that the last one stays.

    `memory`: bytes that this node offers for models; `devices`: the same for each accelerator, if there are several;
    `disk_free`: bytes for model files. `models`, `aliases`, `model_sizes` (bytes) and `damaged`: the models on the
    disk (see `MachineFacts`). `machine_memory`: see `NodeRecord`. `used`: bytes that the engine process of each model
    takes, and of the worker process under the name "". `download_room`: see `NodeRecord`.
    """

    memory: int | None = None
    devices: tuple[int, ...] = ()
    disk_free: int | None = None
    models: tuple[str, ...] | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    machine_memory: int | None = None
    used: tuple[tuple[str, int], ...] | None = None
    model_sizes: tuple[int, ...] = ()
    download_room: int | None = None
    damaged: tuple[tuple[str, str, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class SpeedMeasured(Event):
    """The speed of this node: bytes of weights read per second while it computes a token."""

    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class DecodeMeasured(Event):
    """What the engine of a split at `endpoint` has written since its start. `others`: the part of this machine's
    processors that other programs used meanwhile (None: unknown)."""

    model: str
    endpoint: str
    counts: DraftCounts
    others: float | None = None


@dataclass(frozen=True, slots=True)
class ModelRequested(Event):
    """A caller requests a model that no live peer serves: load it if it is unloaded here, and dial the unverified peers
    that serve it."""

    model: str


@dataclass(frozen=True, slots=True)
class ModelsAsked(Event):
    """Callers of this node's API asked for these models, each so many times. Requests of peers are not among them."""

    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LoadsChanged(Event):
    """The load of the models served here."""

    loads: tuple[ModelLoad, ...]


@dataclass(frozen=True, slots=True)
class LinkUp(Event):
    """An authenticated connection to a peer is there: it proved its key and its membership. `rtt` in seconds.

    `member`: its certificate; None in a mesh without a mesh key."""

    peer: NodeId
    role: Role
    mesh: MeshId
    address: PeerAddress
    rtt: float
    dialled: bool
    member: Certificate | None = None


@dataclass(frozen=True, slots=True)
class LinkDown(Event):
    """The connection to a peer is gone."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class DialFailed(Event):
    """A dial failed. `final`: the peer refused this node (wrong secret, say). `local`: a limit of this node prevented
    the dial, so that nothing is known about the peer. `invite_void`: the peer refused the invite with which it was
    dialled, for good."""

    target: BootstrapAddress
    reason: str
    advice: str = ""
    final: bool = False
    local: bool = False
    invite_void: bool = False


@dataclass(frozen=True, slots=True)
class MessageReceived(Event):
    """A peer said something on its link. The records in it have been verified."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class StatementsMade(Event):
    """Statements that this node signed with the mesh key, or read from a file of its owner: an expulsion, say."""

    statements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CertificateRenewed(Event):
    """This node has a new certificate; it is published."""

    certificate: SignedCertificate


@dataclass(frozen=True, slots=True)
class RenewalDue(Event):
    """Half of the lifetime of this node's certificate is over: ask a member that may admit for a new one."""


@dataclass(frozen=True, slots=True)
class ReplacementWanted(Event):
    """The owner wants a new key for this node, which cannot sign that itself: ask a member that can. Answered by
    `Expelled` with the new id, or by `ReplacementRefused`."""

    request: ReplaceKey


@dataclass(frozen=True, slots=True)
class InviteWanted(Event):
    """The owner wants an invite and this node cannot make one: ask a member that can. Answered by `TakeInvite`."""

    ask: AskInvite


@dataclass(frozen=True, slots=True)
class BoardOpened(Event):
    """The blackboard's store was read. Answered by `BoardChanged` with all that counts.

    `epoch` (unix ms) of this node's own numbering, the last `seq` and `time` that it used, the `entries` and the
    certificates of their authors. `unix`: the wall clock now (seconds).
    """

    epoch: int
    last_seq: int
    last_time: int
    entries: tuple[SignedEntry, ...]
    certificates: tuple[bytes, ...]
    unix: float


@dataclass(frozen=True, slots=True)
class ClockRead(Event):
    """The wall clock of this machine (unix seconds): posted every minute, and when it was set."""

    unix: float


@dataclass(frozen=True, slots=True)
class PostWanted(Event):
    """A person or an agent on this node writes on the blackboard. Answered by `SavePost` or `RefusePost` with
    `number`."""

    number: int
    draft: EntryDraft


@dataclass(frozen=True, slots=True)
class PostSaved(Event):
    """The entry of a `SavePost` is on the disk. It is sent to the mesh now; answered by `BoardChanged`."""

    number: int


@dataclass(frozen=True, slots=True)
class PostFailed(Event):
    """The entry of a `SavePost` could not be saved: it does not count. Answered by `RefusePost`."""

    number: int
    reason: str
