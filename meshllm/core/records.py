"""Node records: what a node publishes about itself, signed and versioned.

Invariants: every `SignedRecord` in the core has a verified signature; of two records of a node the one with the higher
`RecordVersion` counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b

from meshllm.core.demand.levels import MAX_DEMANDED, DemandLevel, KeyedLevel
from meshllm.core.ids import MESH_ID_BYTES, NODE_ID_BYTES, MeshId, NodeId
from meshllm.core.membership.certificates import Certificate
from meshllm.core.snapshot import Purpose

__all__ = [
    "MACHINE_BYTES",
    "MAX_ADDRESSES",
    "MAX_BACKEND_MODELS",
    "MAX_DEMANDED",
    "MAX_DEVICES",
    "MAX_FAILURE_REPORTS",
    "MAX_LOADING",
    "MAX_NAME_BYTES",
    "MAX_NUMBER",
    "MAX_ON_DISK",
    "MAX_RECORD_BYTES",
    "MAX_SERVED",
    "MAX_SPLITS",
    "MAX_WANTED",
    "MESH_ID_BYTES",
    "NODE_ID_BYTES",
    "PIN_BYTES",
    "BootstrapAddress",
    "DemandLevel",
    "FailureReport",
    "KeyedLevel",
    "MeshId",
    "ModelLoad",
    "NodeId",
    "NodeRecord",
    "OwnFacts",
    "PeerAddress",
    "RecordVersion",
    "Role",
    "ServedModel",
    "SignedRecord",
    "Signer",
    "SplitCandidate",
    "machine_in",
    "short",
]

# Bounds of a record, enforced by the codec; each far above what an honest node needs.
MAX_ADDRESSES = 8
MAX_SERVED = 32
MAX_BACKEND_MODELS = 256
MAX_WANTED = 32
MAX_ON_DISK = 64
MAX_FAILURE_REPORTS = 64
MAX_SPLITS = 8
MAX_DEVICES = 16
MAX_LOADING = 8
MAX_UNSERVED = 8
MAX_NAME_BYTES = 256
# Enough to tell the machines of a mesh apart.
MACHINE_BYTES = 8
MAX_RECORD_BYTES = 32 << 10
# The largest integer in a record or message: JavaScript reads larger JSON numbers inexactly.
MAX_NUMBER = (1 << 53) - 1


def short(node: NodeId) -> str:
    """The first 10 hexadecimal digits of a node id, for display."""
    return node[:5].hex()


def machine_in(mesh: MeshId, machine: bytes) -> bytes:
    """How a record names the machine with the secret id `machine`: the same for all nodes of that machine in `mesh`,
    another one in each mesh. Empty if the machine is not known."""
    return blake2b(machine, key=bytes(mesh), digest_size=MACHINE_BYTES, person=b"machine").digest() if machine else b""


class Role(Enum):
    """What a participant is in the mesh. A client serves nothing and has no record."""

    NODE = "node"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, order=True)
class RecordVersion:
    """`incarnation` grows at each start and refutation (it is saved), `version` with each new record."""

    incarnation: int
    version: int


@dataclass(frozen=True, slots=True, order=True)
class PeerAddress:
    """Where a node listens: an IP literal (v4 or v6, not a name) and a UDP port; lanes use the same TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a node serves. `context_length` in tokens per request (0: unknown), `size` of the file in bytes.

    `slots`: parallel requests (0: unknown, a backend; or, of a model with a size, none until a request has loaded it).
    `vision`: the model accepts images (None: unknown). `on_demand`: it is served because the mesh wants it, `movable`:
    for so long that the node may leave it for another. `pressed`: its slots have been taken for long
    (`serving/pressure.py`). `calls_tools`: it does when it is asked to (None: unknown); `chat_template`: it has one, as
    far as is known. `trained`: the context that it was made for, in tokens (0: unknown).
    """

    name: str
    purpose: Purpose | None = None
    context_length: int = 0
    slots: int = 0
    size: int = 0
    vision: bool | None = None
    on_demand: bool = False
    movable: bool = False
    pressed: bool = False
    calls_tools: bool | None = None
    chat_template: bool = True
    trained: int = 0

    @property
    def loaded(self) -> bool:
        """Whether it is in memory: another host is better than one that must load it."""
        return self.slots > 0 or not self.size


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """The load of a model at its host: running and queued requests."""

    name: str
    active: int
    waiting: int


@dataclass(frozen=True, slots=True, order=True)
class FailureReport:
    """The writer of the record gets no answer from `node` at `incarnation`."""

    node: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class SplitCandidate:
    """A model that the writer of the record would host as a split. `free_bytes`: the writer's own free memory.
    `force_split`: split the model even if it fits on one node (`--split`)."""

    model: str
    free_bytes: int
    force_split: bool = False


class UnservedCause(Enum):
    """Why a node does not serve a model. FAILED: it tries again; DROPPED: its owner dropped it; DAMAGED: its file is
    damaged."""

    FAILED = "failed"
    DROPPED = "dropped"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class UnservedModel:
    """A model that a node does not serve although it was to, or has its file. `reason`: for users, without paths."""

    name: str
    cause: UnservedCause
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OwnFacts:
    """What this node publishes about its models and its machine, as far as the rest of the core knows it.

    The fields have the meaning of those of `NodeRecord`. A change of `loads` alone never causes a new record; changes
    of `memory`, `devices`, `splits`, `speed`, `machine_memory`, `room`, `download_room` and flags of `serves` cause a
    limited number per hour. A change of `demand` waits for the next heartbeat, unless `demand_is_news`.
    """

    serves: tuple[ServedModel, ...] = ()
    wants: tuple[str, ...] = ()
    on_disk: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    loads: tuple[ModelLoad, ...] = ()
    splits: tuple[SplitCandidate, ...] = ()
    memory: int = 0
    devices: tuple[int, ...] = ()
    speed: int = 0
    machine_memory: int = 0
    planned: int = 0
    used: int = 0
    demand: tuple[DemandLevel, ...] = ()
    disk_sizes: tuple[int, ...] = ()
    loading: tuple[str, ...] = ()
    room: int = 0
    download_room: int = 0
    unserved: tuple[UnservedModel, ...] = ()
    demand_is_news: bool = False


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """All that a node publishes about itself.

    `protocol`: lowest and highest version it speaks. `loads`: as of the time of writing. `wants`: models requested from
    the mesh. `memory`: bytes it offers for models; `devices`: how they are divided between its accelerators, in the
    order of its engine (empty: not divided). `splits`: models it would host as a split. `speed`: bytes of weights it
    reads per second (0: unknown). `idle`: it serves only models that were requested on it. `aliases`: (name, other
    name of the same file), both in `on_disk`. `certificate`: its membership certificate, as signed by the mesh key.
    `machine`: see `machine_in`; `machine_memory`: bytes of the machine's RAM that all nodes on it have together for
    models (0: unknown, or the node offers accelerators with memory of their own). `planned`: bytes that the engine
    processes of the node may come to; `used`: bytes that they take (0: unknown).
    `demand`: what callers of its API and its clients ask for, each model once, by key.
    `disk_sizes`: MiB of the models in `on_disk`, in its order (0: unknown). `loading`: models that it loads now.
    `room`: bytes that it gives to a model of its disk for which a request comes: free, or taken by models that it would
    unload for that (0: its owner lets it load none). `download_room`: bytes of model files that it may still download
    for the mesh's demand (0: its owner does not let it). `unserved`: models that it was to serve, or has on its disk,
    and does not serve.
    """

    node: NodeId
    version: RecordVersion
    mesh: MeshId
    name: str = ""
    software: str = ""
    protocol: tuple[int, int] = (1, 1)
    addresses: tuple[PeerAddress, ...] = ()
    serves: tuple[ServedModel, ...] = ()
    loads: tuple[ModelLoad, ...] = ()
    wants: tuple[str, ...] = ()
    on_disk: tuple[str, ...] = ()
    memory: int = 0
    failure_reports: tuple[FailureReport, ...] = ()
    leaving: bool = False
    splits: tuple[SplitCandidate, ...] = ()
    speed: int = 0
    devices: tuple[int, ...] = ()
    idle: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    certificate: bytes = b""
    machine: bytes = b""
    machine_memory: int = 0
    planned: int = 0
    used: int = 0
    demand: tuple[KeyedLevel, ...] = ()
    disk_sizes: tuple[int, ...] = ()
    loading: tuple[str, ...] = ()
    room: int = 0
    download_room: int = 0
    unserved: tuple[UnservedModel, ...] = ()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SignedRecord:
    """A record with the signed bytes, so that it is passed on unchanged.

    `member`: its verified certificate, None in a mesh without a mesh key; `record` has only what that allows.
    """

    record: NodeRecord
    body: bytes
    signature: bytes
    member: Certificate | None = None


# Signing is a pure function of key and record (Ed25519 is deterministic): the core is given one.
Signer = Callable[[NodeRecord], SignedRecord]


# How many bytes of a node id identify a node in an invite.
PIN_BYTES = 16


@dataclass(frozen=True, slots=True)
class BootstrapAddress:
    """Where to find a node. `pin`: its id, or the first 16 bytes of it; `addresses` in the order to try."""

    pin: bytes
    addresses: tuple[PeerAddress, ...]

    @property
    def node(self) -> NodeId | None:
        """The node id, None if only its first bytes are known."""
        return NodeId(self.pin) if len(self.pin) == NODE_ID_BYTES else None

    @property
    def prefix(self) -> bytes:
        """The first 16 bytes of the node id."""
        return self.pin[:PIN_BYTES]
