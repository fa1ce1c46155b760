"""Encodes and decodes the messages about leases (`codec.py` assigns their kinds).

Fields have fixed places, new ones come at the end, every number and text is bounded. A file name with a slash or a
leading dot is refused: it must not become a path.
"""

from __future__ import annotations

import re
from typing import Any

from meshllm.core.membership.messages import Message
from meshllm.core.records import MAX_DEVICES, MAX_NAME_BYTES, NODE_ID_BYTES, NodeId
from meshllm.core.split import lease as n
from meshllm.core.split.lease import Lease, LeasedFile, LeasePhase
from meshllm.core.split.planner import WorkerShare
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f

SHA256_BYTES = 32
PHASES = {
    LeasePhase.PREPARING: 1,
    LeasePhase.READY: 2,
    LeasePhase.ENDED: 3,
}
PHASE_OF = {number: phase for phase, number in PHASES.items()}
_FILE_NAME = re.compile(r"[^/\\.][^/\\]*\.gguf", re.IGNORECASE)


def write_propose(message: n.Propose) -> tuple[Any, ...]:
    """The fields after the kind."""
    lease = message.lease
    files = [(file.name, file.size, bytes.fromhex(file.sha256)) for file in lease.files]
    shares = [(share.node, share.first, share.layers, share.memory, share.devices) for share in lease.shares]
    return (lease.session, lease.generation, lease.model, files, shares)


def read_propose(found: tuple[Any, ...]) -> Message:
    """A proposal. Raises BadMessage unless the shares are of different nodes and follow one another without a gap."""
    _, session, generation, model, files, shares, *_ = f.fields(found, 6, "proposal")
    lease = Lease(
        session=f.exactly(session, n.SESSION_BYTES, "session"),
        generation=f.number(generation, "generation"),
        model=f.name(model, "leased model"),
        files=tuple([_file(item) for item in f.items(files, n.MAX_FILES, "leased files")]),
        shares=tuple([_share(item) for item in f.items(shares, n.MAX_SHARES, "shares")]),
    )
    if not lease.files or len({file.name for file in lease.files}) != len(lease.files):
        raise BadMessage("leased files: none, or one twice")
    if len(lease.shares) < 2 or len({share.node for share in lease.shares}) != len(lease.shares):
        raise BadMessage("shares: not of several nodes")
    at = 0
    for share in lease.shares:
        if share.first != at:
            raise BadMessage("shares: they do not follow one another")
        at += share.layers
    return n.Propose(lease)


def _file(value: Any) -> LeasedFile:
    name, size, sha256, *_ = f.fields(value, 3, "leased file")
    name = f.name(name, "leased file's name")
    if not _FILE_NAME.fullmatch(name):
        raise BadMessage("leased file's name: not the name of a GGUF file")
    digest = f.exactly(sha256, SHA256_BYTES, "leased file's digest")
    return LeasedFile(name, f.number(size, "leased file's size", 1), digest.hex())


def _share(value: Any) -> WorkerShare:
    node, first, layers, memory, *later = f.fields(value, 4, "share")
    share = WorkerShare(
        NodeId(f.exactly(node, NODE_ID_BYTES, "share's node id")),
        f.number(first, "share's first layer", 0, n.MAX_LAYERS),
        f.number(layers, "share's layers", 1, n.MAX_LAYERS),
        f.number(memory, "share's memory"),
        _devices(later[0]) if later else (),
    )
    if share.devices and sum(share.devices) != share.layers:
        raise BadMessage("share's devices: not its layers")
    return share


def _devices(value: Any) -> tuple[int, ...]:
    counts = f.items(value, MAX_DEVICES, "share's devices")
    return tuple([f.number(count, "device's layers", 0, n.MAX_LAYERS) for count in counts])


def write_report(message: n.WorkerReport) -> tuple[Any, ...]:
    """The fields after the kind. Unprintable characters of the detail become spaces, and a long detail is cut."""
    detail = _printable(message.detail)
    return (message.session, message.generation, PHASES[message.phase], detail, message.leaving)


def read_report(found: tuple[Any, ...]) -> Message:
    """A worker's report. Raises BadMessage."""
    _, session, generation, phase, detail, *later = f.fields(found, 5, "worker report")
    session, generation = _lease_id(session, generation)
    number = f.number(phase, "lease's phase", 1, len(PHASES))
    leaving = bool(later) and f.flag(later[0], "whether the worker leaves")
    return n.WorkerReport(session, generation, PHASE_OF[number], f.text(detail, "lease's detail"), leaving)


def write_commit(message: n.Commit) -> tuple[Any, ...]:
    """The fields after the kind."""
    return (message.session, message.generation)


def read_commit(found: tuple[Any, ...]) -> Message:
    """A commit. Raises BadMessage."""
    return n.Commit(*_lease_id(*f.fields(found, 3, "commit")[1:3]))


def write_release(message: n.Release) -> tuple[Any, ...]:
    """The fields after the kind."""
    return (message.session, message.generation, _printable(message.reason))


def read_release(found: tuple[Any, ...]) -> Message:
    """A release. Raises BadMessage."""
    _, session, generation, reason, *_ = f.fields(found, 4, "release")
    return n.Release(*_lease_id(session, generation), f.text(reason, "release's reason"))


def write_renew(message: n.Renew) -> tuple[Any, ...]:
    """The fields after the kind."""
    return (message.session, message.generation, message.committed)


def read_renew(found: tuple[Any, ...]) -> Message:
    """A renewal. Raises BadMessage."""
    _, session, generation, committed, *_ = f.fields(found, 4, "renewal")
    return n.Renew(*_lease_id(session, generation), f.flag(committed, "committed"))


def _printable(text: str) -> str:
    return f.UNPRINTABLE.sub(" ", text).encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def _lease_id(session: Any, generation: Any) -> tuple[bytes, int]:
    return f.exactly(session, n.SESSION_BYTES, "session"), f.number(generation, "generation")
