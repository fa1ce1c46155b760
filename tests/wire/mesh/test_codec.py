"""Messages and records round-trip; any other bytes raise `BadMessage`."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core import records as r
from meshllm.core.membership import messages as m
from meshllm.core.membership.certificates import Right
from meshllm.core.records import MAX_NUMBER
from meshllm.core.snapshot import Purpose
from meshllm.core.split import lease as n
from meshllm.core.split.planner import WorkerShare
from meshllm.errors import BadMessage
from meshllm.net.base import MAX_MESSAGE_BYTES
from meshllm.wire.mesh import codec
from meshllm.wire.mesh.codec import (
    decode_message,
    decode_record,
    encode_message,
    encode_record,
    fit,
    signed_bytes,
    signer,
)
from meshllm.wire.mesh.fields import pack_host, unpack_host
from meshllm.wire.mesh.records import FIELDS, MAX_MODELS
from tests.wire.mesh.mesh_strategies import messages, node_ids, records, sign, signed, verify

NODE, OTHER = r.NodeId(bytes(range(32))), r.NodeId(bytes(range(1, 33)))
MESH = r.MeshId(b"m" * 16)
RECORD = r.NodeRecord(
    node=NODE,
    version=r.RecordVersion(3, 4),
    mesh=MESH,
    name="bench",
    software="mesh-llm 0.1.0",
    addresses=(r.PeerAddress("192.0.2.1", 9337), r.PeerAddress("2001:db8::1", 9337)),
    serves=(r.ServedModel("SmolLM2", Purpose.GENERATE, 8192, 4, 1 << 27, vision=False),),
    loads=(r.ModelLoad("SmolLM2", 1, 2),),
    wants=("Qwen3-8B",),
    on_disk=("SmolLM2", "SmolLM2.Q4_1"),
    memory=16 << 30,
    failure_reports=(r.FailureReport(OTHER, 7),),
    splits=(r.SplitCandidate("Qwen3-8B", 16 << 30, force_split=True),),
    speed=20 << 30,
    devices=(10 << 30, 6 << 30),
    idle=True,
    aliases=(("SmolLM2.Q4_1", "SmolLM2"),),
)
SESSION = b"s" * n.SESSION_BYTES
LEASE = n.Lease(
    SESSION,
    3,
    "Qwen3-8B",
    (n.LeasedFile("Qwen3-8B-Q4_K_M.gguf", 5 << 30, "ab" * 32),),
    (WorkerShare(NODE, 0, 20, 3 << 30), WorkerShare(OTHER, 20, 16, 2 << 30, (10, 6))),
)
ONE_OF_EACH = (
    m.Ping(1),
    m.Pong(1, RECORD.loads),
    m.Digest(2, b"h" * 16),
    m.Difference(3, (0, 7), ((NODE, r.RecordVersion(1, 2)), (OTHER, r.RecordVersion(3, 4)))),
    m.Wanted((NODE, OTHER)),
    m.Records((signed(RECORD), signed(replace(RECORD, node=OTHER))), push=True),
    m.Subscribe(b"", "laptop"),
    m.TableUpdate((signed(RECORD),), (OTHER,), first=True, more=True),
    m.Adopted(MESH),
    n.Propose(LEASE),
    n.WorkerReport(SESSION, 3, n.LeasePhase.PREPARING, "downloading 12%"),
    n.WorkerReport(SESSION, 3, n.LeasePhase.READY, "the worker stops", leaving=True),
    n.Commit(SESSION, 3),
    n.Release(SESSION, 3, "the host stops"),
    n.Renew(SESSION, 3, committed=True),
    m.Statements((b"s" * 138, b"t" * 138), b"h" * 8),
    m.RenewCertificate(b"c" * 158),
    m.RenewedCertificate(b"c" * 158, b"k" * 32),
    m.AskInvite(Right.USE | Right.SERVE, 1_800_000_000, 86_400, 1),
    m.GrantedInvite(b"s" * 8, Right.USE, 1_800_000_000, 86_400, b"k" * 16),
    m.ReplaceKey(NODE, b"o" * 64, b"n" * 64),
    m.ReplaceRefused("the asked member may not admit others"),
    m.ReportDemand((r.DemandLevel("Qwen3-8B", 3),)),
)
each_message = pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: type(message).__name__)


def decoded(payload: bytes) -> m.Message | str | None:
    """The decoded message; "bad" for BadMessage. Other exceptions fail the test."""
    try:
        return decode_message(payload, verify)
    except BadMessage:
        return "bad"


def altered(place: int, value: Any) -> bytes:
    """The body of RECORD with another value in one place."""
    fields = msgpack.unpackb(encode_record(RECORD))
    fields[place] = value
    return bytes(msgpack.packb(fields))


def raw(*fields: Any) -> bytes:
    return bytes(msgpack.packb(fields))


# -- round trip


@given(messages)
def test_message_round_trips(message: m.Message) -> None:
    assert decode_message(encode_message(message), verify) == message


@given(records)
def test_record_round_trips(record: r.NodeRecord) -> None:
    assert decode_record(encode_record(record)) == record
    assert fit(record) == record


def test_codec_tests_cover_every_kind() -> None:
    known = [*vars(m).values(), *vars(n).values()]
    bases = (m.Message, n.LeaseMessage)
    kinds = {kind for kind in known if isinstance(kind, type) and kind.__base__ in bases} - {n.LeaseMessage}
    assert kinds == {type(message) for message in ONE_OF_EACH}


def test_codec_bytes_are_stable() -> None:
    """The format of `mesh-llm/1`: nodes of other versions read these bytes."""
    assert encode_message(m.Ping(5)).hex() == "920105"
    assert encode_message(m.Adopted(MESH)).hex() == "9209c410" + MESH.hex()
    assert encode_message(m.Wanted((NODE,))).hex() == "9205c420" + NODE.hex()
    assert encode_message(m.Difference(1, (1,), ((NODE, r.RecordVersion(1, 2)),))).hex() == (
        "940401c40101c430" + NODE.hex() + "0000000000000001" + "0000000000000002"
    )
    assert encode_record(r.NodeRecord(NODE, r.RecordVersion(1, 2), MESH, name="a")).hex() == (
        "dc001fc420"
        + NODE.hex()
        + "0102c410"
        + MESH.hex()
        + "a161a092010190909090900090c2900090c290c400c400000000c4009090000090"
    )
    assert signed_bytes(b"body") == b"mesh-llm/1 record\0body"
    assert codec.MAX_PAYLOAD_BYTES == MAX_MESSAGE_BYTES


# -- compatibility


@each_message
def test_decode_skips_fields_of_newer_versions(message: m.Message) -> None:
    longer = [*msgpack.unpackb(encode_message(message)), "more", [1, [2]], None]
    assert decode_message(msgpack.packb(longer), verify) == message


def test_newer_record_is_read_and_forwarded_unchanged() -> None:
    fields = msgpack.unpackb(encode_record(RECORD))
    for place in (6, 7, 8, 9, 13, 15, 19):  # the protocol range, and entries of lists
        where = fields[place] if place == 6 else fields[place][0]
        where.append("more")
    body = msgpack.packb([*fields, "more", b"x" * 32, 1.5])
    assert decode_record(body) == RECORD
    newer = r.SignedRecord(RECORD, body, sign(NODE, signed_bytes(body)))
    again = decode_message(encode_message(m.Records((newer,))), verify)
    assert again == m.Records((newer,))


def test_record_without_splits_is_read() -> None:
    whole = msgpack.unpackb(encode_record(RECORD))
    before = replace(RECORD, aliases=())
    assert decode_record(msgpack.packb(whole[: FIELDS + 4])) == before, "or from before aliases"
    before = replace(before, idle=False)
    assert decode_record(msgpack.packb(whole[: FIELDS + 3])) == before, "or from before idle ones"
    before = replace(before, devices=())
    assert decode_record(msgpack.packb(whole[: FIELDS + 2])) == before, "or from before several devices"
    assert decode_record(msgpack.packb(whole[:FIELDS])) == replace(before, splits=(), speed=0)


def test_fit_drops_aliases_with_their_names() -> None:
    many = tuple(f"m{number}" for number in range(r.MAX_ON_DISK))
    record = replace(RECORD, on_disk=("a", "a\0", *many), aliases=(("m0", "a"), ("a\0", "a"), (many[-1], "a")))
    assert fit(record).aliases == (("m0", "a"),)
    assert decode_record(encode_record(fit(record))) == fit(record)
    with pytest.raises(ValueError, match="refused"):
        encode_record(replace(RECORD, aliases=(("not here", "SmolLM2"),)))


def test_proposal_without_devices_is_read() -> None:
    shares = [[NODE, 0, 2, 0], [OTHER, 2, 5, 0]]
    found = decode_message(raw(10, SESSION, 1, "m", [["m.gguf", 1, b"d" * 32]], shares), verify)
    assert isinstance(found, n.Propose)
    assert [(share.devices, share.runs) for share in found.lease.shares] == [((), (2,)), ((), (5,))]


def test_model_of_unknown_purpose_is_left_out() -> None:
    models = [["speech", 9, 1, 1, 1], ["chat", 1, 1, 1, 1]]
    assert [model.name for model in decode_record(altered(8, models)).serves] == ["chat"]
    with pytest.raises(BadMessage):
        decode_record(altered(8, [["", 9, 1, 1, 1]]))


@pytest.mark.parametrize(
    ("inputs", "sees"),
    [([], None), ([0], None), ([1], False), ([3], True), ([2], True), ([5], False), ([0xFFFF], True)],
)
def test_model_inputs_may_be_missing_or_unknown(inputs: list[int], sees: bool | None) -> None:
    (model,) = decode_record(altered(8, [["chat", 1, 1, 1, 1, *inputs]])).serves
    assert model.vision is sees


def test_message_of_unknown_kind_is_ignored() -> None:
    assert decode_message(raw(99, "what", [1, 2]), verify) is None
    assert decode_message(raw(MAX_NUMBER), verify) is None


def test_unreadable_signed_record_costs_only_itself() -> None:
    body = altered(7, [[b"\x01\x02\x03\x04", 1, "new"]] * (r.MAX_ADDRESSES + 1))
    newer = (body, sign(NODE, signed_bytes(body)))
    other = signed(replace(RECORD, node=OTHER))
    payload = raw(6, [newer, (other.body, other.signature)], False)
    assert decode_message(payload, verify) == m.Records((other,))


# -- signatures


@given(records, node_ids)
def test_record_needs_its_nodes_signature(record: r.NodeRecord, other: r.NodeId) -> None:
    body = encode_record(record)
    if other != record.node:
        assert decoded(raw(6, [(body, sign(other, signed_bytes(body)))], False)) == "bad"
    assert decoded(raw(6, [(body, sign(record.node, body))], False)) == "bad"  # signed for another purpose
    assert decoded(raw(6, [(body, bytes(64))], False)) == "bad"


def test_signature_covers_every_bit_of_a_record() -> None:
    good = signed(RECORD)
    for place in range(len(good.body) * 8):
        body = bytearray(good.body)
        body[place // 8] ^= 1 << place % 8
        assert decoded(raw(6, [(bytes(body), good.signature)], False)) == "bad"


def test_lengths_are_checked_before_signatures() -> None:
    def never(node: r.NodeId, data: bytes, signature: bytes) -> bool:
        raise AssertionError("verified")

    good = signed(RECORD)
    for bad in ((good.body, good.signature[1:]), (bytes(r.MAX_RECORD_BYTES + 1), good.signature), (good.body,)):
        with pytest.raises(BadMessage):
            decode_message(raw(6, [(good.body, good.signature), bad], False), never)


# -- any other bytes


@given(st.binary(max_size=600))
def test_decode_accepts_or_refuses_any_bytes(data: bytes) -> None:
    decoded(data)
    with pytest.raises(BadMessage):
        decode_record(data)


objects = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=70)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(st.integers(0, 11), st.lists(objects, max_size=6))
def test_decode_accepts_or_refuses_any_fields(kind: int, fields: list[Any]) -> None:
    decoded(msgpack.packb([kind, *fields]))


@given(st.integers(0, FIELDS - 1), objects)
def test_decode_accepts_or_refuses_any_value_in_a_record(place: int, value: Any) -> None:
    try:
        found = decode_record(altered(place, value))
    except BadMessage:
        return
    # A decoded record can be encoded again, except for a model of unknown purpose.
    assert decode_record(encode_record(found)) == found


@each_message
def test_decode_refuses_truncation_at_every_byte(message: m.Message) -> None:
    payload = encode_message(message)
    assert [length for length in range(len(payload)) if decoded(payload[:length]) != "bad"] == []
    assert decoded(payload + b"\0") == "bad"


@each_message
def test_decode_accepts_or_refuses_every_flipped_bit(message: m.Message) -> None:
    payload = encode_message(message)
    for place in range(len(payload) * 8):
        flipped = bytearray(payload)
        flipped[place // 8] ^= 1 << place % 8
        assert decoded(bytes(flipped)) != message


HUGE = {
    "array": b"\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "text": b"\xdb\xff\xff\xff\xff",
    "bytes": b"\xc6\xff\xff\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
}


@pytest.mark.parametrize("header", HUGE.values(), ids=HUGE.keys())
def test_huge_declared_length_allocates_nothing(header: bytes) -> None:
    tracemalloc.start()
    try:
        assert decoded(header) == "bad"
        assert decoded(b"\x92\x06" + header) == "bad"
        with pytest.raises(BadMessage):
            decode_record(b"\x9f" + header)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("header", [b"\x91", b"\x92\x06", b"\xdc\x04\x00", b"\xdc\xff\xff", b"\x81\x01"])
def test_deep_nesting_is_refused(header: bytes) -> None:
    tracemalloc.start()
    try:
        for depth in (100, 511, 512, 2000, codec.MAX_PAYLOAD_BYTES // len(header)):
            assert decoded(header * depth) == "bad"
            assert decoded(header * depth + b"\xc0") == "bad"
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_oversized_input_is_refused_unread() -> None:
    assert decoded(raw(1, 1, bytes(codec.MAX_PAYLOAD_BYTES))) == "bad"
    with pytest.raises(BadMessage, match="more than"):
        decode_record(encode_record(RECORD) + bytes(r.MAX_RECORD_BYTES))


# -- each bound of a record


TEXT_FAULTS = [
    "a\x00",
    "a\nb",
    "\x1b[31m",
    "\x9b",
    "a\u202eb",
    "\u200b",
    "\ufeff",
    "a\u2028",
    "x" * 257,
    "é" * 129,
    b"a",
    1,
]
NUMBER_FAULTS = [-1, MAX_NUMBER + 1, 1 << 64 - 1, 1.0, "1", None, True]
ID_FAULTS = [b"", b"x" * 31, b"x" * 33, "x" * 32, None]
ADDRESS_FAULTS: list[Any] = [
    [], [b"\x01\x02\x03\x04"], [b"", 1], [b"\x01" * 5, 1], ["1.2.3.4", 1], ["localhost", 1], [b"\x01\x02\x03\x04", 0],
    [b"\x01\x02\x03\x04", 65536], [b"\x01\x02\x03\x04", True], [bytes(4), 1], [bytes(16), 1], [b"\xff" * 4, 1],
    [b"\xe0\x00\x00\x01", 1], [b"\xff\x02" + bytes(13) + b"\x01", 1], [bytes(10) + b"\xff\xff\x01\x02\x03\x04", 1],
]  # fmt: skip
MODEL: list[Any] = ["m", 1, 1, 1, 1]
FAULTS: list[tuple[int, Any]] = [
    *((0, value) for value in ID_FAULTS),
    *((place, value) for place in (1, 2, 12, 16) for value in NUMBER_FAULTS),
    *((3, value) for value in (b"x" * 15, b"x" * 17, "x" * 16)),
    *((place, value) for place in (4, 5) for value in TEXT_FAULTS),
    *((6, value) for value in ([1], [2, 1], [-1, 1], [1, 65536], 1, [1, True])),
    *((7, [value]) for value in ADDRESS_FAULTS),
    (7, [[b"\x01\x02\x03\x04", 1]] * (r.MAX_ADDRESSES + 1)),
    *((8, [[value, *MODEL[1:]]]) for value in [*TEXT_FAULTS, ""]),
    *((8, [[*MODEL[:at], value, *MODEL[at + 1 :]]]) for at in range(1, 5) for value in NUMBER_FAULTS),
    *((8, [[*MODEL, value]]) for value in (*NUMBER_FAULTS, 0x10000)),
    (8, [MODEL[:4]]),
    (8, [["m", 1, (1 << 30) + 1, 1, 1]]),
    (8, [["m", 1, 1, (1 << 20) + 1, 1]]),
    (8, [MODEL] * (MAX_MODELS + 1)),
    *((9, [["m", value, 0]]) for value in (*NUMBER_FAULTS, (1 << 20) + 1)),
    *((9, [["m", 0, value]]) for value in (*NUMBER_FAULTS, (1 << 20) + 1)),
    (9, [["m", 0]]),
    (9, [["m", 0, 0]] * (MAX_MODELS + 1)),
    *((place, [value]) for place in (10, 11) for value in [*TEXT_FAULTS, ""]),
    (10, ["m"] * (r.MAX_WANTED + 1)),
    (11, ["m"] * (r.MAX_ON_DISK + 1)),
    *((13, [[value, 1]]) for value in ID_FAULTS),
    *((13, [[OTHER, value]]) for value in NUMBER_FAULTS),
    (13, [[OTHER, 1]] * (r.MAX_FAILURE_REPORTS + 1)),
    *((14, value) for value in (0, 1, None, "no")),
    *((15, [[value, 1, False]]) for value in [*TEXT_FAULTS, ""]),
    *((15, [["m", value, False]]) for value in NUMBER_FAULTS),
    *((15, [["m", 1, value]]) for value in (0, 1, None, "no")),
    (15, [["m", 1]]),
    (15, [["m", 1, False]] * (r.MAX_SPLITS + 1)),
    *((17, [value]) for value in NUMBER_FAULTS),
    (17, [1] * (r.MAX_DEVICES + 1)),
    *((19, [pair]) for value in (*NUMBER_FAULTS, 2) for pair in ([0, value], [value, 0], [0])),
    (19, [[1, 0]] * (r.MAX_ON_DISK + 1)),
    *(
        (place, value)
        for place in (7, 8, 9, 10, 11, 13, 15, 17, 19)
        for value in (None, 1, "text", b"bytes", {}, [None])
    ),
]


@pytest.mark.parametrize(("place", "value"), FAULTS)
def test_record_bounds_are_enforced(place: int, value: Any) -> None:
    with pytest.raises(BadMessage) as caught:
        decode_record(altered(place, value))
    assert len(str(caught.value)) < 200  # never the value, which may be anything


def test_record_bounds_are_inclusive() -> None:
    name = "x" * r.MAX_NAME_BYTES
    full = replace(
        RECORD,
        name=name,
        software=name,
        protocol=(0, 65535),
        version=r.RecordVersion(MAX_NUMBER, MAX_NUMBER),
        addresses=(r.PeerAddress("2001:db8::1", 65535),) * r.MAX_ADDRESSES,
        serves=(r.ServedModel("m", Purpose.EMBED, 1 << 30, 1 << 20, MAX_NUMBER, vision=True),) * MAX_MODELS,
        loads=(r.ModelLoad("m", 1 << 20, 1 << 20),) * MAX_MODELS,
        wants=(name,) * r.MAX_WANTED,
        on_disk=("m",) * r.MAX_ON_DISK,
        memory=MAX_NUMBER,
        failure_reports=(r.FailureReport(OTHER, MAX_NUMBER),) * r.MAX_FAILURE_REPORTS,
        splits=(r.SplitCandidate("m", MAX_NUMBER),) * r.MAX_SPLITS,
        speed=MAX_NUMBER,
        devices=(MAX_NUMBER,) * r.MAX_DEVICES,
        aliases=(("m", "m"),) * r.MAX_ON_DISK,
    )
    assert decode_record(encode_record(full)) == full


FILE: list[Any] = ["m.gguf", 1, b"d" * 32]
SHARES: list[Any] = [[NODE, 0, 1, 0], [OTHER, 1, 1, 0]]
PROPOSAL_FAULTS = [
    raw(10, SESSION[1:], 1, "m", [FILE], SHARES),
    raw(10, SESSION, -1, "m", [FILE], SHARES),
    raw(10, SESSION, 1, "", [FILE], SHARES),
    raw(10, SESSION, 1, "m", [], SHARES),
    raw(10, SESSION, 1, "m", [FILE, FILE], SHARES),
    raw(10, SESSION, 1, "m", [FILE] * (n.MAX_FILES + 1), SHARES),
    *(
        raw(10, SESSION, 1, "m", [[name, 1, b"d" * 32]], SHARES)
        for name in ("../m.gguf", "a/m.gguf", "a\\m.gguf", ".m.gguf", "/m.gguf", "m.bin", "", ".gguf", "a\nb.gguf", 1)
    ),
    raw(10, SESSION, 1, "m", [["m.gguf", 0, b"d" * 32]], SHARES),
    raw(10, SESSION, 1, "m", [["m.gguf", 1, b"d" * 31]], SHARES),
    raw(10, SESSION, 1, "m", [FILE], SHARES[:1]),
    raw(10, SESSION, 1, "m", [FILE], [SHARES[0], [NODE, 1, 1, 0]]),
    raw(10, SESSION, 1, "m", [FILE], [[NODE, 1, 1, 0], SHARES[1]]),
    raw(10, SESSION, 1, "m", [FILE], [SHARES[0], [OTHER, 2, 1, 0]]),
    raw(10, SESSION, 1, "m", [FILE], [SHARES[0], [OTHER, 1, 0, 0]]),
    raw(10, SESSION, 1, "m", [FILE], [SHARES[0], [OTHER, 1, 1, -1]]),
    raw(10, SESSION, 1, "m", [FILE], [SHARES[0], [OTHER[1:], 1, 1, 0]]),
    *(
        raw(10, SESSION, 1, "m", [FILE], [[NODE, 0, 2, 0], [OTHER, 2, 5, 0, devices]])
        for devices in ([4], [5, 1], [6, -1], [5, None], [5.0], 5, None, [1] * 5 + [0] * r.MAX_DEVICES)
    ),
    raw(11, SESSION, 1, 0, ""),
    raw(11, SESSION, 1, 4, ""),
    raw(11, SESSION, 1, 1, "a\nb"),
    raw(11, SESSION, 1, 1),
    raw(12, SESSION),
    raw(12, b"", 1),
    raw(13, SESSION, 1),
    raw(13, SESSION, 1, 1),
]


@pytest.mark.parametrize(
    "payload",
    [
        *PROPOSAL_FAULTS,
        raw(),
        raw("1", 1),
        raw(-1),
        raw(True, 1),
        raw(1),
        raw(1, -1),
        raw(1, MAX_NUMBER + 1),
        raw(2, 1),
        raw(2, 1, [["m", -1, 0]]),
        raw(3, 9, bytes(4 << 9)),
        raw(3, 2, bytes(15)),
        raw(3, -1, b""),
        raw(4, 2, b"\x04", b""),
        raw(4, 2, b"\x01\x01", b""),
        raw(4, 0, b"", bytes(47)),
        raw(4, 0, b"", NODE + b"\xff" * 16),
        raw(4, 0, b"", (NODE + bytes(16)) * 2),
        raw(5, bytes(31)),
        raw(5, NODE * 2),
        raw(6, [], 1),
        raw(6, [[]], False),
        raw(6, [None] * 2000, False),
        raw(8, [], b"", True, 0),
        raw(9, b"short"),
        raw(1, 1, {"more": 1}),
        raw(1, 1, msgpack.ExtType(1, b"more")),
        msgpack.packb({1: 1}),
        msgpack.packb(msgpack.ExtType(1, b"")),
        msgpack.packb(msgpack.Timestamp(1, 2)),
        b"\x92\x01\xd6\xff\x00\x00\x00\x00",
        b"\x92\x63\xa1\xff",
    ],
)
def test_message_bounds_are_enforced(payload: bytes) -> None:
    assert decoded(payload) == "bad"


# -- encoding


def test_encode_refuses_what_peers_would_refuse() -> None:
    ids = tuple(r.NodeId(number.to_bytes(32, "big")) for number in range(codec.MAX_IDS + 1))
    for message in (
        m.Wanted(ids),
        m.TableUpdate((), ids),
        m.Difference(0, (), tuple((node, r.RecordVersion(1, 1)) for node in ids)),
        m.Records((signed(RECORD),) * (codec.MAX_RECORDS + 1)),
        m.Records((signed(replace(RECORD, on_disk=("x" * 250,) * 60, aliases=())),) * 20),
    ):
        with pytest.raises(ValueError, match="above"):
            encode_message(message)
    with pytest.raises(ValueError, match="name"):
        encode_record(replace(RECORD, name="a\nb"))
    with pytest.raises(ValueError, match="address"):
        encode_record(replace(RECORD, addresses=(r.PeerAddress("localhost", 1),)))


def test_longest_lists_are_accepted() -> None:
    ids = tuple(r.NodeId(number.to_bytes(32, "big")) for number in range(codec.MAX_IDS))
    held = tuple((node, r.RecordVersion(MAX_NUMBER, MAX_NUMBER)) for node in ids)
    for message in (
        m.Wanted(ids),
        m.TableUpdate((), ids),
        m.Difference(8, tuple(range(256)), held),
        m.Digest(8, bytes(1024)),
    ):
        assert decode_message(encode_message(message), verify) == message


odd_names = st.text(st.sampled_from("ab\n\x00\u202eé😀"), max_size=300)
odd_numbers = st.integers(-5, 1 << 70)
odd_records = st.builds(
    r.NodeRecord,
    node=st.just(NODE),
    version=st.just(r.RecordVersion(1, 1)),
    mesh=st.just(MESH),
    name=odd_names | st.text(max_size=300),
    software=odd_names,
    addresses=st.lists(
        st.builds(
            r.PeerAddress,
            st.sampled_from(["127.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "localhost", "::1", ""]),
            st.integers(-1, 70000),
        ),
        max_size=12,
    ).map(tuple),
    serves=st.lists(st.builds(r.ServedModel, odd_names, st.none(), odd_numbers, odd_numbers, odd_numbers)).map(tuple),
    loads=st.lists(st.builds(r.ModelLoad, odd_names, odd_numbers, odd_numbers)).map(tuple),
    wants=st.lists(odd_names, max_size=40).map(tuple),
    on_disk=st.lists(odd_names, max_size=80).map(tuple),
    memory=odd_numbers,
)


@given(odd_records)
def test_fit_makes_a_readable_record(record: r.NodeRecord) -> None:
    fitting = fit(record)
    assert decode_record(encode_record(fitting)) == fitting
    assert fit(fitting) == fitting


def test_fit_keeps_valid_and_drops_invalid_values() -> None:
    odd = replace(
        RECORD,
        name="be\x07nch",
        addresses=(*RECORD.addresses, r.PeerAddress("::ffff:10.0.0.1", 1), r.PeerAddress("host.example", 1)),
        serves=(r.ServedModel("evil\nname"), *RECORD.serves),
        loads=(r.ModelLoad("evil\nname", 1, 1), r.ModelLoad("SmolLM2", 1, 2)),
        wants=("", "Qwen3-8B"),
    )
    assert fit(odd) == replace(RECORD, addresses=(*RECORD.addresses, r.PeerAddress("10.0.0.1", 1)))


def test_fit_drops_served_models_last() -> None:
    long = [f"{number:03}" + "x" * 253 for number in range(MAX_MODELS)]
    full = replace(
        RECORD,
        serves=tuple(r.ServedModel(name) for name in long[:40]),
        wants=tuple(long[:32]),
        on_disk=tuple(long[:64]),
        failure_reports=tuple(r.FailureReport(OTHER, MAX_NUMBER) for _ in range(64)),
    )
    fitting = fit(full)
    assert (fitting.serves, fitting.wants, fitting.failure_reports) == (full.serves, full.wants, full.failure_reports)
    assert 16 < len(fitting.on_disk) < 64
    assert r.MAX_RECORD_BYTES - 6000 < len(encode_record(fitting)) <= r.MAX_RECORD_BYTES
    everything = replace(full, serves=tuple(r.ServedModel(name) for name in long))
    assert 80 < len(fit(everything).serves) < MAX_MODELS
    encode_record(fit(everything))


def test_signer_signs_the_fitted_record() -> None:
    made = signer(lambda data: sign(NODE, data))(replace(RECORD, name="a\nb"))
    assert made == signed(replace(RECORD, name="ab"))
    assert decode_message(encode_message(m.Records((made,))), verify) == m.Records((made,))


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_host_has_one_form(packed: bytes) -> None:
    host = unpack_host(packed)
    assert host is None or pack_host(host) == packed
