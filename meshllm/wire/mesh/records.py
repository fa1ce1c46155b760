"""Encodes and decodes node records.

Invariants: a record is forwarded as the bytes that were signed. The body is an array with fixed places. Compatible
changes: a new field at the end, of the body or of an entry in it, which older nodes skip. A place is never reused or
left out and a bound never raised, because older nodes could not read the record. The signed bytes begin with the
format's name, so a signature is valid for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack

from meshllm.core import records as r
from meshllm.core.demand.levels import KEY_BYTES, MAX_LEVEL
from meshllm.core.records import MAX_NUMBER, NodeRecord, SignedRecord
from meshllm.core.snapshot import Purpose
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES

SIGNED_PREFIX = b"mesh-llm/1 record\0"
SIGNATURE_BYTES = 64
# Models of the node and of its backends.
MAX_MODELS = r.MAX_SERVED + r.MAX_BACKEND_MODELS
# Tokens; a hundred times the largest known model.
MAX_CONTEXT = 1 << 30
# Active requests, waiting requests or slots; more than a machine can hold sockets for.
MAX_REQUESTS = 1 << 20
MAX_PROTOCOL = 65535
# Above every array in a body, with room for new fields.
MAX_ITEMS = 512
PURPOSES: dict[Purpose | None, int] = {None: 0, Purpose.GENERATE: 1, Purpose.EMBED: 2, Purpose.RERANK: 3}
PURPOSE_OF = {number: purpose for purpose, number in PURPOSES.items()}
CAUSES = {r.UnservedCause.FAILED: 1, r.UnservedCause.DROPPED: 2, r.UnservedCause.DAMAGED: 3}
CAUSE_OF = {number: cause for cause, number in CAUSES.items()}
# Input kinds of a model, one bit each; newer versions may know more. 0: unknown.
TEXT, IMAGES = 1, 2
INPUTS: dict[bool | None, int] = {None: 0, False: TEXT, True: TEXT | IMAGES}
MAX_INPUTS = 0xFFFF
# Flags of a served model; newer versions may know more.
ON_DEMAND, MOVABLE, PRESSED, CALLS_TOOLS, NO_TOOL_CALLS, NO_CHAT_TEMPLATE = 1, 2, 4, 8, 16, 32
# A demanded model in a record: its key and its level.
ENTRY_BYTES = KEY_BYTES + 1
MAX_FLAGS = 0xFFFF
# Fields of the first version of the record; later ones may be missing.
FIELDS = 15


def signed_bytes(body: bytes) -> bytes:
    """The bytes that a record's signature covers."""
    return SIGNED_PREFIX + body


def signer(sign: Callable[[bytes], bytes]) -> r.Signer:
    """A `Signer` from the node key's signing function. It first removes what peers would refuse (`fit`)."""

    def make(record: NodeRecord) -> SignedRecord:
        fitting = fit(record)
        body = encode_record(fitting)
        return SignedRecord(fitting, body, sign(signed_bytes(body)))

    return make


def encode_record(record: NodeRecord) -> bytes:
    """The body. Raises ValueError for a record that `decode_record` would refuse; `fit` prevents that."""
    places = {name: place for place, name in enumerate(record.on_disk)}
    hosts = [(f.pack_host(address.host), address.port) for address in record.addresses]
    body: bytes = msgpack.packb(
        (
            record.node,
            record.version.incarnation,
            record.version.version,
            record.mesh,
            record.name,
            record.software,
            record.protocol,
            hosts,
            [
                (m.name, PURPOSES[m.purpose], m.context_length, m.slots, m.size, INPUTS[m.vision], _flags(m), m.trained)
                for m in record.serves
            ],
            [(load.name, load.active, load.waiting) for load in record.loads],
            record.wants,
            record.on_disk,
            record.memory,
            [(report.node, report.incarnation) for report in record.failure_reports],
            record.leaving,
            [(candidate.model, candidate.free_bytes, candidate.force_split) for candidate in record.splits],
            record.speed,
            record.devices,
            record.idle,
            [(places.get(alias, -1), places.get(name, -1)) for alias, name in record.aliases],
            record.certificate,
            record.machine,
            record.machine_memory,
            record.planned,
            record.used,
            b"".join([entry.key.to_bytes(KEY_BYTES) + bytes((entry.level,)) for entry in record.demand]),
            record.disk_sizes,
            record.loading,
            record.room,
            record.download_room,
            [(model.name, CAUSES[model.cause], model.reason) for model in record.unserved],
        )
    )
    try:
        decode_record(body)
    except BadMessage as error:
        raise ValueError(f"this record would be refused: {error}") from error
    return body


def decode_record(body: bytes) -> NodeRecord:
    """The record of a body. Raises BadMessage. Does not check the signature.

    A served model of an unknown purpose is left out.
    """
    return _read(open_body(body))


def open_body(body: bytes) -> tuple[Any, ...]:
    """The fields of a body; only the node id is checked."""
    if len(body) > r.MAX_RECORD_BYTES:
        raise BadMessage(f"record: more than {r.MAX_RECORD_BYTES} bytes")
    found = f.unpack(body, max_text=r.MAX_NAME_BYTES, max_bytes=CERTIFICATE_BYTES, max_items=MAX_ITEMS)
    f.exactly(f.fields(found, 1, "record")[0], r.NODE_ID_BYTES, "record's node id")
    return found


def peek_version(body: bytes) -> tuple[r.NodeId, r.RecordVersion]:
    """Whose record it is and its version, before any signature is checked. Raises BadMessage."""
    _, incarnation, version, *_ = found = f.fields(open_body(body), 3, "record")
    return r.NodeId(found[0]), r.RecordVersion(f.number(incarnation, "incarnation"), f.number(version, "version"))


def read_signed(body: bytes, signature: bytes, verify: Callable[[r.NodeId, bytes, bytes], bool]) -> SignedRecord | None:
    """A peer's record. Raises BadMessage for what no correct node forwards: no record, or an invalid signature.

    None for a signed record that this version cannot read: a newer node may forward it, and must not lose its link or
    the other records of the message.
    """
    found = open_body(body)
    if len(signature) != SIGNATURE_BYTES or not verify(r.NodeId(found[0]), signed_bytes(body), signature):
        raise BadMessage("record: invalid signature")
    try:
        return SignedRecord(_read(found), body, signature)
    except BadMessage:
        return None


def _read(found: tuple[Any, ...]) -> NodeRecord:
    (
        node,
        incarnation,
        version,
        mesh,
        name,
        software,
        protocol,
        addresses,
        serves,
        loads,
        wants,
        on_disk,
        memory,
        failure_reports,
        leaving,
        *later,
    ) = f.fields(found, FIELDS, "record")
    disk = f.names(on_disk, r.MAX_ON_DISK, "models on disk")
    return NodeRecord(
        node=r.NodeId(node),
        version=r.RecordVersion(f.number(incarnation, "incarnation"), f.number(version, "version")),
        mesh=r.MeshId(f.exactly(mesh, r.MESH_ID_BYTES, "mesh id")),
        name=f.text(name, "node's name"),
        software=f.text(software, "software"),
        protocol=_window(protocol),
        addresses=tuple([f.address(item, "address") for item in f.items(addresses, r.MAX_ADDRESSES, "addresses")]),
        serves=tuple([model for item in f.items(serves, MAX_MODELS, "models") if (model := _model(item)) is not None]),
        loads=read_loads(loads),
        wants=f.names(wants, r.MAX_WANTED, "wanted models"),
        on_disk=disk,
        memory=f.number(memory, "memory"),
        failure_reports=tuple(
            [_failure_report(item) for item in f.items(failure_reports, r.MAX_FAILURE_REPORTS, "failure reports")]
        ),
        leaving=f.flag(leaving, "leaving"),
        splits=_candidates(later[0]) if later else (),
        speed=f.number(later[1], "speed") if len(later) > 1 else 0,
        devices=_devices(later[2]) if len(later) > 2 else (),
        idle=f.flag(later[3], "idle") if len(later) > 3 else False,
        aliases=_aliases(later[4], disk) if len(later) > 4 else (),
        certificate=_certificate(later[5]) if len(later) > 5 else b"",
        machine=_machine(later[6]) if len(later) > 6 else b"",
        machine_memory=f.number(later[7], "machine's memory") if len(later) > 7 else 0,
        planned=f.number(later[8], "planned memory") if len(later) > 8 else 0,
        used=f.number(later[9], "used memory") if len(later) > 9 else 0,
        demand=_keyed_demand(later[10]) if len(later) > 10 else (),
        disk_sizes=_sizes(later[11]) if len(later) > 11 else (),
        loading=f.names(later[12], r.MAX_LOADING, "models being loaded") if len(later) > 12 else (),
        room=f.number(later[13], "room") if len(later) > 13 else 0,
        download_room=f.number(later[14], "room for downloads") if len(later) > 14 else 0,
        unserved=_unserved(later[15]) if len(later) > 15 else (),
    )


def _window(value: Any) -> tuple[int, int]:
    lowest, highest, *_ = f.fields(value, 2, "protocol window")
    low = f.number(lowest, "lowest protocol", 0, MAX_PROTOCOL)
    return low, f.number(highest, "highest protocol", low, MAX_PROTOCOL)


def _model(value: Any) -> r.ServedModel | None:
    name, purpose, context, slots, size, *later = f.fields(value, 5, "model")
    inputs = f.number(later[0], "model's inputs", 0, MAX_INPUTS) if later else 0
    flags = f.number(later[1], "model's flags", 0, MAX_FLAGS) if len(later) > 1 else 0
    model = r.ServedModel(
        name=f.name(name, "model's name"),
        purpose=PURPOSE_OF.get(f.number(purpose, "model's purpose")),
        context_length=f.number(context, "model's context", 0, MAX_CONTEXT),
        slots=f.number(slots, "model's slots", 0, MAX_REQUESTS),
        size=f.number(size, "model's size"),
        vision=bool(inputs & IMAGES) if inputs else None,
        on_demand=bool(flags & ON_DEMAND),
        movable=bool(flags & MOVABLE),
        pressed=bool(flags & PRESSED),
        calls_tools=bool(flags & CALLS_TOOLS) if flags & (CALLS_TOOLS | NO_TOOL_CALLS) else None,
        chat_template=not flags & NO_CHAT_TEMPLATE,
        trained=f.number(later[2], "context that the model was made for", 0, MAX_CONTEXT) if len(later) > 2 else 0,
    )
    return model if purpose in PURPOSE_OF else None


def _flags(model: r.ServedModel) -> int:
    tools = {True: CALLS_TOOLS, False: NO_TOOL_CALLS, None: 0}[model.calls_tools]
    others = tools | NO_CHAT_TEMPLATE * (not model.chat_template)
    return ON_DEMAND * model.on_demand | MOVABLE * model.movable | PRESSED * model.pressed | others


def _unserved(value: Any) -> tuple[r.UnservedModel, ...]:
    """Models that the node does not serve; those with a cause that only newer versions know are left out."""
    found = []
    for item in f.items(value, r.MAX_UNSERVED, "models not served"):
        model, cause, reason, *_ = f.fields(item, 3, "model not served")
        name, number = f.name(model, "name of a model not served"), f.number(cause, "cause of not serving")
        said = f.text(reason, "reason of not serving")
        if (known := CAUSE_OF.get(number)) is not None:
            found.append(r.UnservedModel(name, known, said))
    return tuple(found)


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple([f.number(size, "model's size on disk") for size in f.items(value, r.MAX_ON_DISK, "sizes on disk")])


def _failure_report(value: Any) -> r.FailureReport:
    node, incarnation, *_ = f.fields(value, 2, "failure report")
    subject = r.NodeId(f.exactly(node, r.NODE_ID_BYTES, "failure report's node id"))
    return r.FailureReport(subject, f.number(incarnation, "failure report's incarnation"))


def _candidates(value: Any) -> tuple[r.SplitCandidate, ...]:
    return tuple([_candidate(item) for item in f.items(value, r.MAX_SPLITS, "candidates")])


def _candidate(value: Any) -> r.SplitCandidate:
    model, free_bytes, force_split, *_ = f.fields(value, 3, "candidate")
    return r.SplitCandidate(
        f.name(model, "candidate's model"), f.number(free_bytes, "free bytes"), f.flag(force_split, "force split")
    )


def _devices(value: Any) -> tuple[int, ...]:
    return tuple([f.number(size, "device's memory") for size in f.items(value, r.MAX_DEVICES, "devices")])


def _aliases(value: Any, disk: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of names, as places in `disk`."""
    found = []
    for item in f.items(value, r.MAX_ON_DISK, "aliases"):
        alias, name, *_ = f.fields(item, 2, "alias")
        last = len(disk) - 1
        found.append((disk[f.number(alias, "alias", 0, last)], disk[f.number(name, "aliased name", 0, last)]))
    return tuple(found)


def _certificate(value: Any) -> bytes:
    """The bytes of a certificate, or none; who signed it is looked at elsewhere."""
    return value if value == b"" and type(value) is bytes else f.exactly(value, CERTIFICATE_BYTES, "certificate")


def _machine(value: Any) -> bytes:
    """The name of the machine in this mesh, or none."""
    return value if value == b"" and type(value) is bytes else f.exactly(value, r.MACHINE_BYTES, "machine")


def read_loads(value: Any) -> tuple[r.ModelLoad, ...]:
    """Loads, as in a record and in a pong."""
    return tuple([_load(item) for item in f.items(value, MAX_MODELS, "loads")])


def _keyed_demand(value: Any) -> tuple[r.KeyedLevel, ...]:
    """Demand, as in a record: keys in ascending order, each with a byte for its level."""
    if type(value) is not bytes or len(value) % ENTRY_BYTES or len(value) > r.MAX_DEMANDED * ENTRY_BYTES:
        raise BadMessage(f"demand: not at most {r.MAX_DEMANDED} entries of {ENTRY_BYTES} bytes")
    found, last = [], -1
    for start in range(0, len(value), ENTRY_BYTES):
        key, level = int.from_bytes(value[start : start + KEY_BYTES]), value[start + KEY_BYTES]
        if key <= last or not level:
            raise BadMessage("demand: a key is out of order, or a level is 0")
        found.append(r.KeyedLevel(key, min(level, MAX_LEVEL)))
        last = key
    return tuple(found)


def read_demand(value: Any) -> tuple[r.DemandLevel, ...]:
    """Demand, as in a report; levels that only newer versions know count as the highest known one."""
    found = []
    for item in f.items(value, r.MAX_DEMANDED, "demand"):
        model, level, *_ = f.fields(item, 2, "demanded model")
        wanted = f.number(level, "level of demand", 1)
        found.append(r.DemandLevel(f.name(model, "demanded model"), min(wanted, MAX_LEVEL)))
    if len({entry.model for entry in found}) != len(found):
        raise BadMessage("demand: a model is repeated")
    return tuple(found)


def fit_demand(demand: tuple[r.DemandLevel, ...]) -> tuple[r.DemandLevel, ...]:
    """Demand within the bounds."""
    good = {entry.model: min(entry.level, MAX_LEVEL) for entry in demand if entry.level > 0 and _good(entry.model)}
    return tuple([r.DemandLevel(model, level) for model, level in good.items()][: r.MAX_DEMANDED])


def _load(value: Any) -> r.ModelLoad:
    name, active, waiting, *_ = f.fields(value, 3, "load")
    return r.ModelLoad(
        f.name(name, "load's model"),
        f.number(active, "active requests", 0, MAX_REQUESTS),
        f.number(waiting, "waiting requests", 0, MAX_REQUESTS),
    )


# -- a record of this node that every peer can read


def fit(record: NodeRecord) -> NodeRecord:
    """`record` without what peers would refuse: unprintable names, addresses that cannot be dialled, and the ends of
    lists beyond their bounds. Names come from files and backends; one bad name would otherwise shut the node out.
    Served models are dropped last."""
    sizes = (*record.disk_sizes, *[0] * len(record.on_disk))
    named = zip(record.on_disk, sizes, strict=False)
    disk = [(name, _within(size, MAX_NUMBER)) for name, size in named if _good(name)][: r.MAX_ON_DISK]
    cut = replace(
        record,
        name=_shown(record.name),
        software=_shown(record.software),
        addresses=tuple([a for a in map(_plain, record.addresses) if a is not None][: r.MAX_ADDRESSES]),
        serves=tuple([_bounded(model) for model in record.serves if _good(model.name)][:MAX_MODELS]),
        loads=fit_loads(record.loads),
        wants=tuple([name for name in record.wants if _good(name)][: r.MAX_WANTED]),
        on_disk=tuple([name for name, _ in disk]),
        disk_sizes=tuple([size for _, size in disk]) if record.disk_sizes else (),
        loading=tuple([name for name in record.loading if _good(name)][: r.MAX_LOADING]),
        memory=_within(record.memory, MAX_NUMBER),
        speed=_within(record.speed, MAX_NUMBER),
        machine_memory=_within(record.machine_memory, MAX_NUMBER),
        planned=_within(record.planned, MAX_NUMBER),
        used=_within(record.used, MAX_NUMBER),
        room=_within(record.room, MAX_NUMBER),
        download_room=_within(record.download_room, MAX_NUMBER),
        devices=tuple([_within(size, MAX_NUMBER) for size in record.devices][: r.MAX_DEVICES]),
        failure_reports=record.failure_reports[: r.MAX_FAILURE_REPORTS],
        splits=tuple(
            [replace(c, free_bytes=_within(c.free_bytes, MAX_NUMBER)) for c in record.splits if _good(c.model)][
                : r.MAX_SPLITS
            ]
        ),
        demand=record.demand[: r.MAX_DEMANDED],
        unserved=tuple(
            [replace(m, reason=_shown(m.reason)) for m in record.unserved if _good(m.name)][: r.MAX_UNSERVED]
        ),
    )
    return _shrunk(cut)


def fit_loads(loads: tuple[r.ModelLoad, ...]) -> tuple[r.ModelLoad, ...]:
    """Loads within the bounds."""
    return tuple(
        [
            r.ModelLoad(load.name, _within(load.active, MAX_REQUESTS), _within(load.waiting, MAX_REQUESTS))
            for load in loads
            if _good(load.name)
        ][:MAX_MODELS]
    )


def _good(name: str) -> bool:
    return bool(name) and f.is_text(name)


def _within(value: int, most: int) -> int:
    return max(0, min(value, most))


def _bounded(model: r.ServedModel) -> r.ServedModel:
    return replace(
        model,
        context_length=_within(model.context_length, MAX_CONTEXT),
        slots=_within(model.slots, MAX_REQUESTS),
        size=_within(model.size, MAX_NUMBER),
        trained=_within(model.trained, MAX_CONTEXT),
    )


def _shown(text: str) -> str:
    """`text` without unprintable characters, cut to the bound at a whole character."""
    return f.UNPRINTABLE.sub("", text).encode()[: r.MAX_NAME_BYTES].decode(errors="ignore")


def _plain(address: r.PeerAddress) -> r.PeerAddress | None:
    """The address in its wire form, or None."""
    packed = f.pack_host(address.host)
    host = f.unpack_host(packed) if packed is not None else None
    return r.PeerAddress(host, address.port) if host is not None and 1 <= address.port <= f.MAX_PORT else None


# Upper bound of a body without its names: numbers (9 bytes each) and fixed texts.
_FIXED_BYTES = 512 + 2 * r.MAX_NAME_BYTES + r.MAX_ADDRESSES * 24 + r.MAX_DEVICES * 9 + r.MAX_ON_DISK * 3
_FIXED_BYTES += CERTIFICATE_BYTES + 3 + r.MACHINE_BYTES + 2 + 5 * 9
_FIXED_BYTES += r.MAX_DEMANDED * ENTRY_BYTES + 3
_FIXED_BYTES += r.MAX_SPLITS * (r.MAX_NAME_BYTES + 16)
_MODEL_BYTES, _LOAD_BYTES, _NAME_BYTES, _REPORT_BYTES = 44, 16, 3, 48


def _shrunk(record: NodeRecord) -> NodeRecord:
    """`record` cut to MAX_RECORD_BYTES; lists are filled in the order of their importance."""
    left = r.MAX_RECORD_BYTES - _FIXED_BYTES - len(record.failure_reports) * _REPORT_BYTES
    left -= sum([len(name.encode()) + _NAME_BYTES for name in record.loading]) + 3
    left -= sum([len(m.name.encode()) + len(m.reason.encode()) + 2 * _NAME_BYTES + 2 for m in record.unserved]) + 3
    serves, left = _as_many([(m, len(m.name.encode()) + _MODEL_BYTES) for m in record.serves], left)
    wants, left = _as_many([(n, len(n.encode()) + _NAME_BYTES) for n in record.wants], left)
    loads, left = _as_many([(load, len(load.name.encode()) + _LOAD_BYTES) for load in record.loads], left)
    size_bytes = 9 if record.disk_sizes else 0
    on_disk, left = _as_many([(n, len(n.encode()) + _NAME_BYTES + size_bytes) for n in record.on_disk], left)
    aliases = [pair for pair in record.aliases if pair[0] in on_disk and pair[1] in on_disk][: r.MAX_ON_DISK]
    return replace(
        record,
        serves=tuple(serves),
        wants=tuple(wants),
        loads=tuple(loads),
        on_disk=tuple(on_disk),
        disk_sizes=record.disk_sizes[: len(on_disk)],
        aliases=tuple(aliases),
    )


def _as_many(sized: list[tuple[Any, int]], left: int) -> tuple[list[Any], int]:
    """The first of `sized` (value, bytes) that fit into `left` bytes, and the bytes that are left."""
    taken = []
    for value, size in sized:
        if size > left:
            break
        taken.append(value)
        left -= size
    return taken, left
