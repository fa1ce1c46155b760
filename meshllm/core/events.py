"""Everything that can happen to a node. The daemon's mailbox carries these and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshllm.core.membership.messages import Message
from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeId, PeerAddress, Role
from meshllm.core.snapshot import ModelFacts, ServerFacts
from meshllm.util.progress import Progress

if TYPE_CHECKING:
    from meshllm.core.split.host import MeasuredModel


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class ModelWanted(Event):
    """Somebody asked this node to serve a model; `split`: over several nodes even if it fits on this one."""

    model: str
    split: bool = False


@dataclass(frozen=True, slots=True)
class MeshModelRequested(Event):
    """Somebody asked for a model that another node of the mesh is to serve."""

    model: str


@dataclass(frozen=True, slots=True)
class BackendAdded(Event):
    """Somebody named an OpenAI-compatible server whose models belong in the pool."""

    url: str


@dataclass(frozen=True, slots=True)
class StopWanted(Event):
    """The daemon shall end: everything stops, in order."""


@dataclass(frozen=True, slots=True)
class TimePassed(Event):
    """A deadline the core named (`next_deadline`) has come."""


@dataclass(frozen=True, slots=True)
class EngineProgress(Event):
    """The engine is being fetched or built."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class EngineReady(Event):
    """The engine is there."""

    version: str


@dataclass(frozen=True, slots=True)
class EngineFailed(Event):
    """The engine cannot be had; `advice` says what to do."""

    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class FileProgress(Event):
    """A model's file is on its way."""

    model: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class FileReady(Event):
    """A model's file is there, verified and read."""

    model: str
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class FileFailed(Event):
    """A model's file cannot be had or is no good. `final`: trying again will not help."""

    model: str
    reason: str
    advice: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class ModelMeasured(Event):
    """What a model takes here is known."""

    model: str
    measured: MeasuredModel


@dataclass(frozen=True, slots=True)
class MeasureFailed(Event):
    """It could not be found out; `advice` says what to do."""

    model: str
    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class WorkerProgress(Event):
    """What a lease needs on this node is on its way."""

    session: bytes
    generation: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    """The rpc-server of a lease runs, and tunnels for it are let in."""

    session: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class WorkerGone(Event):
    """It has ended, by itself or because we stopped it, or could not be started at all."""

    session: bytes
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class TunnelBroken(Event):
    """The tunnel of a lease from this host to a worker has ended, and not because our engine hung up."""

    session: bytes
    generation: int
    worker: NodeId


@dataclass(frozen=True, slots=True)
class ServerProgress(Event):
    """An engine process is loading its model."""

    model: str
    generation: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class ServerReady(Event):
    """An engine process answers."""

    model: str
    generation: int
    facts: ServerFacts


@dataclass(frozen=True, slots=True)
class ServerGone(Event):
    """An engine process has ended, by itself or because we stopped it, or could not be started at all. `hopeless`: it
    was not even tried, and trying again soon would not help."""

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
    """Somebody gave this node an invite, or it remembers peers: find the mesh. `invited`: a person waits for it."""

    addresses: tuple[BootstrapAddress, ...]
    invited: bool = True


@dataclass(frozen=True, slots=True)
class AddressesFound(Event):
    """Where this node can be reached, best first; sent again when that changes (a peer saw another address)."""

    addresses: tuple[PeerAddress, ...]


@dataclass(frozen=True, slots=True)
class MachineObserved(Event):
    """The machine now; None where a fact could not be read, so that the last one stays.

    `memory`: bytes that this node offers for models; `devices`: the same for each accelerator, if there are several;
    `disk_free`: bytes for model files. `models` and `aliases`: the models on the disk (see `MachineFacts`).
    """

    memory: int | None = None
    devices: tuple[int, ...] = ()
    disk_free: int | None = None
    models: tuple[str, ...] | None = None
    aliases: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SpeedMeasured(Event):
    """How many bytes of weights this node reads in a second when it computes a token."""

    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class ModelRequested(Event):
    """A caller asks for a model that nobody known to live serves: peers that were only heard of are worth a try."""

    model: str


@dataclass(frozen=True, slots=True)
class LoadsChanged(Event):
    """How busy the models served here are now."""

    loads: tuple[ModelLoad, ...]


@dataclass(frozen=True, slots=True)
class LinkUp(Event):
    """An authenticated connection to a peer is there: it proved its key and the mesh secret. `rtt` in seconds."""

    peer: NodeId
    role: Role
    mesh: MeshId
    address: PeerAddress
    rtt: float
    dialled: bool


@dataclass(frozen=True, slots=True)
class LinkDown(Event):
    """The connection to a peer is gone."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class DialFailed(Event):
    """A dial failed. `final`: the peer refused this node (wrong secret, say). `local`: a limit of this node prevented
    the dial, so that nothing is known about the peer."""

    target: BootstrapAddress
    reason: str
    advice: str = ""
    final: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class MessageReceived(Event):
    """A peer said something on its link. The records in it have been verified."""

    peer: NodeId
    message: Message
