"""The peer table, the rings, the digest: only higher stamps are news, and what is gone stays gone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.membership import summary as gossip
from meshllm.core.membership.failure_detector import expiry_seconds, heartbeat_seconds, suspicion_seconds
from meshllm.core.membership.mesh_merge import MergeDecision, decide
from meshllm.core.membership.messages import Difference, Digest
from meshllm.core.membership.quotas import MAX_WATCHERS_PER_INVITER
from meshllm.core.membership.rings import RINGS, Rings
from meshllm.core.membership.summary import Summary
from meshllm.core.membership.table import TOMBSTONE_SECONDS, TRANSITIONS, MembershipTable, MergeResult
from meshllm.core.membership.timers import Timers
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import (
    MAX_NUMBER,
    FailureReport,
    MeshId,
    NodeId,
    NodeRecord,
    RecordVersion,
    SignedRecord,
)
from tests.core.small_mesh import node_id, sign

OWN = node_id(0)
MESH = MeshId(bytes(16))


def table() -> MembershipTable:
    """An empty one."""
    members = MembershipTable(OWN, Timers(), lambda node: None, lambda node, status: None)
    members.keep_own(sign(NodeRecord(OWN, RecordVersion(1, 1), MESH)), 0.0)
    return members


def record(
    number: int, incarnation: int, version: int, complaints: tuple[int, ...] = (), leaving: bool = False
) -> SignedRecord:
    """What node `number` said; it complains about the first incarnation of others."""
    said = tuple(FailureReport(node_id(n), 1) for n in complaints)
    return sign(
        NodeRecord(node_id(number), RecordVersion(incarnation, version), MESH, failure_reports=said, leaving=leaving)
    )


RECORDS = st.builds(
    lambda number, incarnation, version, leaving: record(number, incarnation, version, leaving=leaving),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 4),
    st.booleans(),
)


def test_table_unlisted_transition_raises_naming_both_states() -> None:
    for old in PeerStatus:
        for new in PeerStatus:
            members = table()
            members.merge(record(1, 1, 1), 0.0, linked=False)
            entry = members.entries[node_id(1)]
            entry.status = old
            if (old, new) not in TRANSITIONS:
                with pytest.raises(ValueError, match=f"from {old.value} to {new.value}"):
                    members._change(entry, new, 0.0)


@given(st.lists(RECORDS, max_size=12), st.randoms(use_true_random=False))
def test_table_merge_is_idempotent_and_commutative(records: list[SignedRecord], rng: random.Random) -> None:
    # A node that left in an incarnation says nothing more in it: that is what an honest owner writes.
    last: dict[tuple[NodeId, int], SignedRecord] = {}
    for signed in sorted(records, key=lambda s: s.record.version):
        key = (signed.record.node, signed.record.version.incarnation)
        if key not in last or not last[key].record.leaving:
            last[key] = signed
    honest = [
        s for s in records if s.record.version <= last[s.record.node, s.record.version.incarnation].record.version
    ]
    unique = list({(s.record.node, s.record.version): s for s in honest}.values())
    shuffled = [*unique, *unique]
    rng.shuffle(shuffled)
    one, other = table(), table()
    for signed in unique:
        one.merge(signed, 0.0, linked=False)
    for signed in shuffled:
        other.merge(signed, 0.0, linked=False)
    assert {n: x.record.version for n, x in one.entries.items()} == {
        n: x.record.version for n, x in other.entries.items()
    }
    assert {n: n in one._gone for n in one.entries} == {n: n in other._gone for n in other.entries}
    for signed in shuffled:
        assert other.merge(signed, 1.0, linked=False) in (MergeResult.STALE, MergeResult.GONE)


def test_table_a_grown_version_makes_a_node_alive() -> None:
    members = table()
    assert members.merge(record(1, 1, 1), 0.0, linked=False) is MergeResult.FIRST
    assert members.status(node_id(1)) is PeerStatus.UNVERIFIED
    assert members.merge(record(1, 1, 1), 9.0, linked=False) is MergeResult.STALE
    assert members.status(node_id(1)) is PeerStatus.UNVERIFIED
    members.merge(record(1, 1, 2), 10.0, linked=False)
    assert members.status(node_id(1)) is PeerStatus.ALIVE


def dead_table() -> MembershipTable:
    """Five live nodes of which the fifth is dead by the complaints of three."""
    members = table()
    for number in range(1, 6):
        members.merge(record(number, 1, 1), 0.0, linked=True)
    for number in (1, 2, 3):
        assert members.status(node_id(5)) is PeerStatus.ALIVE
        members.merge(record(number, 1, 2, (5,)), 1.0, linked=True)
    assert members.status(node_id(5)) is PeerStatus.SUSPECT
    members.suspicion_expired(node_id(5), 20.0)
    assert members.status(node_id(5)) is PeerStatus.DEAD
    return members


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, MAX_NUMBER)), max_size=20))
def test_table_records_of_a_gone_incarnation_revive_no_node(stamps: list[tuple[int, int]]) -> None:
    members = dead_table()
    for incarnation, version in stamps:
        found = members.merge(record(5, incarnation, version), 30.0, linked=True)
        assert found in (MergeResult.STALE, MergeResult.GONE)
    assert members.status(node_id(5)) is PeerStatus.DEAD
    members.merge(record(5, 2, 1), 31.0, linked=False)
    assert members.status(node_id(5)) is PeerStatus.UNVERIFIED
    members.expire(31.0 + TOMBSTONE_SECONDS)


def test_table_suspect_is_cleared_by_incarnation_or_withdrawn_reports() -> None:
    members = table()
    for number in range(1, 6):
        members.merge(record(number, 1, 1), 0.0, linked=True)
    for number in (1, 2, 3):
        members.merge(record(number, 1, 2, (5,)), 1.0, linked=True)
    members.merge(record(5, 1, 9), 2.0, linked=True)
    assert members.status(node_id(5)) is PeerStatus.SUSPECT
    members.merge(record(1, 1, 3), 2.0, linked=True)
    assert members.status(node_id(5)) is PeerStatus.ALIVE
    members.merge(record(1, 1, 4, (5,)), 3.0, linked=True)
    assert members.status(node_id(5)) is PeerStatus.SUSPECT
    members.merge(record(5, 2, 1), 4.0, linked=True)
    assert members.status(node_id(5)) is PeerStatus.ALIVE
    members.suspicion_expired(node_id(5), 50.0)
    assert members.status(node_id(5)) is PeerStatus.ALIVE


def test_table_reports_of_unverified_nodes_do_not_count() -> None:
    members = table()
    members.merge(record(5, 1, 1), 0.0, linked=True)
    for number in range(10, 20):
        members.merge(record(number, 1, 1, (5,)), 0.0, linked=False)
    assert members.status(node_id(5)) is PeerStatus.ALIVE
    for number in range(10, 13):
        members.merge(record(number, 1, 2, (5,)), 0.0, linked=False)
    # Their complaints are old; that they count now is found when what is doubtful is looked at.
    assert members.doubtful
    members.judge_all(0.1)
    assert members.status(node_id(5)) is PeerStatus.SUSPECT


def test_table_node_without_renewal_dies_and_is_forgotten() -> None:
    members = table()
    members.merge(record(1, 1, 1), 0.0, linked=False)
    members.expire(expiry_seconds(2) - 1)
    assert members.status(node_id(1)) is PeerStatus.UNVERIFIED
    members.expire(expiry_seconds(2) + 1)
    assert members.status(node_id(1)) is PeerStatus.DEAD
    assert len(members.summary) == 1
    members.expire(expiry_seconds(2) + 2 + TOMBSTONE_SECONDS)
    assert members.entries == {}


def test_failure_detector_durations_depend_on_mesh_size_only() -> None:
    assert suspicion_seconds(1) == suspicion_seconds(10) == 5.0
    assert suspicion_seconds(1000) == pytest.approx(15.0)
    assert heartbeat_seconds(16) == 30.0
    assert heartbeat_seconds(1000) == 100.0


@given(st.sets(st.integers(0, 300), min_size=1, max_size=60))
def test_rings_subjects_and_observers_agree(numbers: set[int]) -> None:
    rings = Rings()
    nodes = [node_id(number) for number in numbers]
    for node in nodes:
        rings.add(node)
    for node in nodes:
        for other in rings.subjects(node, lambda n: True):
            assert other != node
            assert node in rings.observers(other, lambda n: True)
            assert other in rings.neighbours(node)
        assert len(rings.subjects(node, lambda n: True)) <= RINGS
        for other in nodes:
            if other != node and len(nodes) > 2:
                assert other not in rings.observers(node, lambda n, other=other: n != other)  # type: ignore[misc]
    for node in nodes:
        rings.discard(node)
        rings.discard(node)
    assert len(rings) == 0


@given(st.sets(st.integers(0, 300), min_size=20, max_size=60), st.randoms())
def test_rings_let_no_node_be_watched_by_untrusted_nodes_only(numbers: set[int], rng: random.Random) -> None:
    rings = Rings()
    nodes = [node_id(number) for number in numbers]
    # As many as one inviter has places for, wherever they stand.
    untrusted = set(rng.sample(nodes, MAX_WATCHERS_PER_INVITER))
    for node in nodes:
        rings.add(node)

    def trusted(node: NodeId) -> bool:
        return node not in untrusted

    for node in nodes:
        watchers = rings.observers(node, lambda n: True, trusted)
        assert watchers
        assert not untrusted.intersection(watchers)
        for watcher in watchers:
            assert node in rings.subjects(watcher, lambda n: True, trusted)
            assert node in rings.neighbours(watcher, trusted)
            assert watcher in rings.neighbours(node, trusted)
    # Without any trusted node the others watch.
    watchers = rings.observers(nodes[0], lambda n: True, lambda n: False)
    assert watchers == rings.observers(nodes[0], lambda n: True)


STAMPS = st.dictionaries(st.integers(1, 400), st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=40)


def summary_of(stamps: dict[int, tuple[int, int]]) -> Summary:
    """As if these were a table."""
    summary = Summary()
    for number, stamp in stamps.items():
        summary.put(node_id(number), RecordVersion(0, 0))
        summary.put(node_id(number), RecordVersion(*stamp))
    return summary


@given(STAMPS, STAMPS)
def test_summary_one_exchange_finds_every_difference(
    mine: dict[int, tuple[int, int]], theirs: dict[int, tuple[int, int]]
) -> None:
    one, other = summary_of(mine), summary_of(theirs)
    difference = other.difference(one.digest())
    assert difference is not None
    plan = gossip.plan_exchange(one, lambda node: None, difference)
    assert plan is not None
    assert set(plan.wanted) == {node_id(n) for n in theirs if n not in mine or mine[n] < theirs[n]}
    assert set(plan.offered) == {node_id(n) for n in mine if n not in theirs or theirs[n] < mine[n]}
    for number in mine:
        one.discard(node_id(number))
    assert one.digest().hashes == bytes(4)


@given(st.integers(-3, 70), st.binary(max_size=40), st.lists(st.integers(-5, 300), max_size=5).map(tuple))
def test_summary_refuses_malformed_digests_and_differences(bits: int, hashes: bytes, buckets: tuple[int, ...]) -> None:
    summary = summary_of(dict.fromkeys(range(1, 30), (1, 1)))
    good = 0 <= bits <= 8 and len(hashes) == 4 << bits
    assert (summary.difference(Digest(bits, hashes)) is not None) == good
    plan = gossip.plan_exchange(summary, lambda node: None, Difference(bits, buckets, ()))
    possible = 0 <= bits <= 8 and len(set(buckets)) == len(buckets) and all(0 <= b < 1 << bits for b in buckets)
    assert (plan is not None) == possible


def test_summary_chunks_fit_a_message() -> None:
    records = [replace(sign(NodeRecord(node_id(n), RecordVersion(1, 1), MESH)), body=bytes(20_000)) for n in range(10)]
    portions = list(gossip.chunks(records))
    assert [signed for portion in portions for signed in portion] == records
    assert all(sum(map(gossip.size, portion)) <= gossip.CHUNK_BYTES for portion in portions)


IDS = st.binary(min_size=16, max_size=16).map(MeshId)


@given(IDS, IDS, IDS)
def test_mesh_merge_decision_is_antisymmetric_and_transitive(a: MeshId, b: MeshId, c: MeshId) -> None:
    opposite = {
        MergeDecision.SAME: MergeDecision.SAME,
        MergeDecision.KEEP: MergeDecision.ADOPT,
        MergeDecision.ADOPT: MergeDecision.KEEP,
    }
    assert decide(b, a) is opposite[decide(a, b)]
    if decide(a, b) is decide(b, c):
        assert decide(a, c) is decide(a, b)
