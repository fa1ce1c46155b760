"""What a node says of itself, and the words for it.

Law: a record is written by its subject alone and signed by it; whoever holds a `SignedRecord` has verified the
signature (or made it), so the core never sees a forged one. Numbers are ordered by `Stamp`; only a higher one is news.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from meshllm.core.snapshot import Purpose

# An Ed25519 public key, 32 bytes.
NodeId = NewType("NodeId", bytes)
NODE_ID_BYTES = 32
# A mesh's id: 16 bytes, made at random by the node that founded it.
MeshId = NewType("MeshId", bytes)
MESH_ID_BYTES = 16

# Bounds of a record, enforced by the codec; each far above what an honest node needs.
MAX_ADDRESSES = 8
MAX_SERVED = 32
MAX_BACKEND_MODELS = 256
MAX_WANTED = 32
MAX_ON_DISK = 64
MAX_COMPLAINTS = 64
MAX_SPLITS = 8
MAX_DEVICES = 16
MAX_NAME_BYTES = 256
MAX_RECORD_BYTES = 32 << 10
# The largest number anywhere: what JSON consumers, JavaScript above all, still read exactly.
MAX_NUMBER = (1 << 53) - 1


def short(node: NodeId) -> str:
    """The first 10 hexadecimal digits: what people see."""
    return node[:5].hex()


class Role(Enum):
    """What a node is in the mesh. A client serves nothing, has no record and counts for nothing."""

    NODE = "node"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, order=True)
class RecordVersion:
    """`incarnation` grows at each start and refutation (persisted), `version` with each change of the record."""

    incarnation: int
    version: int


@dataclass(frozen=True, slots=True, order=True)
class PeerAddress:
    """Where a node listens: an IP literal (v4 or v6, no name) and a UDP port (the TCP port of lanes is the same)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model a node answers for now. `context_length` tokens per request (0: unknown), `size` bytes of the file.

    `slots` requests are worked on at a time (0: unknown, a backend). `vision`: it takes pictures (None: unknown).
    """

    name: str
    purpose: Purpose | None = None
    context_length: int = 0
    slots: int = 0
    size: int = 0
    vision: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy a model is at its host: requests at work, and waiting."""

    name: str
    active: int
    waiting: int


@dataclass(frozen=True, slots=True, order=True)
class FailureReport:
    """The writer of the record got no answer from `node` when it was at `incarnation`."""

    node: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class SplitCandidate:
    """A model that the writer of the record would host as a split. `free_bytes`: the writer's own free memory.
    `force_split`: split the model even if it fits on one node (`--split`)."""

    model: str
    free_bytes: int
    force_split: bool = False


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """All that a node says of itself. `memory` is what it offers in bytes; `protocol` the lowest and highest it speaks;
    `splits` the models that it would host a split of; `speed` how many bytes of weights it reads in a second (0: not
    known); `devices` how `memory` is divided between its accelerators, in the order of its engine (none: it is in one
    piece); `idle`: it serves no model that it was not asked for itself; `aliases` which names in `on_disk` stand for a
    file that has another name there, each with that one.

    `loads` are as of the time of writing: a change of load alone is not worth a new record.
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


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record with the very bytes that were signed, so that it can be handed on as it came."""

    record: NodeRecord
    body: bytes
    signature: bytes


# Signing is a pure function of key and record (Ed25519 is deterministic): the core is given one.
Signer = Callable[[NodeRecord], SignedRecord]


@dataclass(frozen=True, slots=True)
class BootstrapAddress:
    """Somewhere a node may be: `pin` is its id or the first 16 bytes of it; `addresses` in the order to be tried."""

    pin: bytes
    addresses: tuple[PeerAddress, ...]
