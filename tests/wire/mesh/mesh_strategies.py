"""Hypothesis strategies for records, messages, addresses and invites."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from meshllm.core import records as r
from meshllm.core.demand.levels import MAX_LEVEL, keyed
from meshllm.core.membership import messages as m
from meshllm.core.membership.certificates import ALL_RIGHTS, Right
from meshllm.core.snapshot import Purpose
from meshllm.core.split import lease as n
from meshllm.core.split.planner import WorkerShare
from meshllm.wire.mesh import fields, invite
from meshllm.wire.mesh.codec import encode_record, signed_bytes
from meshllm.wire.mesh.leases import PHASES as LENT_PHASES
from meshllm.wire.mesh.records import MAX_CONTEXT, MAX_REQUESTS


def sign(node: r.NodeId, data: bytes) -> bytes:
    """64 bytes that depend on node and data only: a signature, for the codec."""
    return hashlib.sha512(node + data).digest()


def verify(node: r.NodeId, data: bytes, signature: bytes) -> bool:
    """The counterpart of `sign`."""
    return signature == sign(node, data)


def signed(record: r.NodeRecord) -> r.SignedRecord:
    """`record` as its node would send it."""
    body = encode_record(record)
    return r.SignedRecord(record, body, sign(record.node, signed_bytes(body)))


numbers = st.integers(0, fields.MAX_NUMBER)
requests = st.integers(0, MAX_REQUESTS)
texts = st.text(max_size=40).filter(fields.is_text)
names = texts.filter(bool)
node_ids = st.binary(min_size=32, max_size=32).map(r.NodeId)
mesh_ids = st.binary(min_size=16, max_size=16).map(r.MeshId)
stamps = st.builds(r.RecordVersion, numbers, numbers)
hosts = st.one_of(
    st.integers(0, (1 << 32) - 1).map(lambda number: str(IPv4Address(number))),
    st.integers(0, (1 << 128) - 1).map(lambda number: str(IPv6Address(number))),
).filter(lambda host: (packed := fields.pack_host(host)) is not None and fields.unpack_host(packed) == host)
addresses = st.builds(r.PeerAddress, hosts, st.integers(1, 65535))
models = st.builds(
    r.ServedModel,
    names,
    st.sampled_from([None, *Purpose]),
    st.integers(0, MAX_CONTEXT),
    requests,
    numbers,
    st.sampled_from([None, False, True]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, False, True]),
    st.booleans(),
)
loads = st.builds(r.ModelLoad, names, requests, requests)
demands = st.lists(
    st.builds(r.DemandLevel, names, st.integers(1, MAX_LEVEL)), max_size=6, unique_by=lambda entry: entry.model
).map(tuple)
complaints = st.builds(r.FailureReport, node_ids, numbers)
windows = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: (min(pair), max(pair)))


def few(values: st.SearchStrategy[object], most: int = 6) -> st.SearchStrategy[tuple[object, ...]]:
    """A tuple of values."""
    return st.lists(values, max_size=most).map(tuple)


@st.composite
def _with_aliases(draw: st.DrawFn, record: r.NodeRecord) -> r.NodeRecord:
    """The record with some names on disk as aliases, and with sizes of the files."""
    if not record.on_disk:
        return record
    count = len(record.on_disk)
    record = replace(record, disk_sizes=draw(st.lists(numbers, min_size=count, max_size=count).map(tuple)))
    one = st.sampled_from(record.on_disk)
    return replace(record, aliases=draw(few(st.tuples(one, one))))


records = st.builds(
    r.NodeRecord,
    node=node_ids,
    version=stamps,
    mesh=mesh_ids,
    name=texts,
    software=texts,
    protocol=windows,
    addresses=few(addresses),
    serves=few(models),
    loads=few(loads),
    wants=few(names),
    on_disk=few(names),
    memory=numbers,
    failure_reports=few(complaints),
    leaving=st.booleans(),
    splits=few(st.builds(r.SplitCandidate, names, numbers, st.booleans())),
    speed=numbers,
    devices=few(numbers),
    idle=st.booleans(),
    certificate=st.sampled_from([b"", bytes(range(158))]),
    demand=demands.map(keyed),
    loading=few(names),
    room=numbers,
    download_room=numbers,
    unserved=few(st.builds(r.UnservedModel, names, st.sampled_from(r.UnservedCause), texts)),
).flatmap(_with_aliases)
signed_records = records.map(signed)
some_ids = st.lists(node_ids, max_size=6, unique=True).map(tuple)


@st.composite
def digests(draw: st.DrawFn) -> m.Digest:
    """A digest with the number of hashes that its bits require."""
    bits = draw(st.integers(0, 4))
    hashes = draw(st.binary(min_size=4 << bits, max_size=4 << bits))
    return m.Digest(bits, hashes, draw(st.sampled_from([b"", bytes(8)])))


@st.composite
def differences(draw: st.DrawFn) -> m.Difference:
    """A difference with valid buckets."""
    bits = draw(st.integers(0, m.MAX_DIGEST_BITS))
    buckets = draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=6, unique=True))
    held = draw(st.lists(st.tuples(node_ids, stamps), max_size=6, unique_by=lambda entry: entry[0]))
    return m.Difference(bits, tuple(buckets), tuple(held))


sessions = st.binary(min_size=n.SESSION_BYTES, max_size=n.SESSION_BYTES)
file_names = names.filter(lambda name: not set(name) & set("/\\") and not name.startswith("."))
leased_files = st.builds(
    n.LeasedFile,
    file_names.map(lambda name: f"{name[:30]}.gguf"),
    st.integers(1, fields.MAX_NUMBER),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@st.composite
def leases(draw: st.DrawFn) -> n.Lease:
    """A lease with consecutive shares."""
    shares: list[WorkerShare] = []
    for node in draw(st.lists(node_ids, min_size=2, max_size=5, unique=True)):
        first = shares[-1].first + shares[-1].layers if shares else 0
        layers, there = draw(st.integers(1, 80)), draw(st.integers(0, 80))
        devices = draw(st.sampled_from([(), (layers,), (min(there, layers), layers - min(there, layers), 0)]))
        shares.append(WorkerShare(node, first, layers, draw(numbers), devices))
    files = draw(st.lists(leased_files, min_size=1, max_size=3, unique_by=lambda file: file.name))
    return n.Lease(draw(sessions), draw(numbers), draw(names), tuple(files), tuple(shares))


exact = st.binary(min_size=8, max_size=8)
hashes = st.one_of(st.just(b""), exact)
certificates = st.binary(min_size=158, max_size=158)
rights = st.integers(0, int(ALL_RIGHTS)).map(Right)
seconds = st.integers(0, (1 << 32) - 1)

lease_messages = st.one_of(
    st.builds(n.Propose, leases()),
    st.builds(n.WorkerReport, sessions, numbers, st.sampled_from(list(LENT_PHASES)), texts),
    st.builds(n.Commit, sessions, numbers),
    st.builds(n.Release, sessions, numbers, texts),
    st.builds(n.Renew, sessions, numbers, st.booleans()),
)

messages = st.one_of(
    lease_messages,
    st.builds(m.Ping, numbers),
    st.builds(m.Pong, numbers, few(loads)),
    digests(),
    differences(),
    st.builds(m.Wanted, some_ids),
    st.builds(m.Records, few(signed_records, 3), st.booleans()),
    st.builds(m.Subscribe, hashes, texts),
    st.builds(
        m.Statements, few(st.binary(min_size=138, max_size=138)).map(lambda all: tuple(dict.fromkeys(all))), exact
    ),
    st.builds(m.RenewCertificate, certificates),
    st.builds(m.RenewedCertificate, certificates, st.sampled_from([b"", bytes(32)])),
    st.builds(m.AskInvite, rights, seconds, seconds, st.integers(0, 255)),
    st.builds(m.GrantedInvite, exact, rights, seconds, seconds, st.binary(min_size=16, max_size=16)),
    st.builds(m.GrantedInvite, st.just(b""), rights, seconds, seconds, st.just(b""), names),
    st.builds(m.ReplaceKey, node_ids, st.binary(min_size=64, max_size=64), st.binary(min_size=64, max_size=64)),
    st.builds(m.ReplaceRefused, names),
    st.builds(m.ReportDemand, demands),
    st.builds(m.TableUpdate, few(signed_records, 3), some_ids, st.booleans(), st.booleans()),
    st.builds(m.Adopted, mesh_ids),
)

ways = st.builds(
    r.BootstrapAddress,
    st.binary(min_size=16, max_size=16),
    st.lists(addresses, min_size=1, max_size=invite.MAX_ADDRESSES).map(tuple),
)
terms = st.builds(
    invite.InviteTerms,
    st.binary(min_size=8, max_size=8),
    st.integers(1, 63).map(Right),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    st.booleans(),
)
invites = st.builds(
    invite.Invite,
    mesh_ids,
    st.binary(min_size=16, max_size=16),
    terms,
    st.lists(ways, min_size=1, max_size=invite.MAX_WAYS).map(tuple),
)
