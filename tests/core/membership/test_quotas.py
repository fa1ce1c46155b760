"""What one inviter may cost the others."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    MAX_NODES_PER_INVITE,
    MAX_NODES_PER_INVITER,
    Certificate,
    Right,
)
from meshllm.core.membership.quotas import MAX_MEMORY_PER_INVITER, MAX_WATCHERS_PER_INVITER, Quotas, memory_of
from meshllm.core.records import FailureReport, MeshId, NodeRecord, RecordVersion, ServedModel, SignedRecord
from tests.core.small_mesh import node_id
from tests.mesh_key import NOW, FakeMeshKey

MESH = FakeMeshKey()
OWNER, ROGUE = node_id(1), node_id(2)


def member(number: int, rights: Right = Right.SERVE, **more: object) -> Certificate:
    more.setdefault("inviter", ROGUE)
    made = MESH.certify(node_id(number), rights, **more).certificate  # type: ignore[arg-type]
    return replace(made, issued=NOW + number)


def take(quotas: Quotas, made: Certificate, size: int) -> bool:
    """What the table does with a record that takes `size` bytes."""
    displaced = quotas.displaced(made, size)
    if displaced is None:
        return False
    for node in displaced:
        quotas.drop(node)
    quotas.keep(made, size)
    return True


def test_quotas_bound_the_nodes_and_memory_of_an_inviter() -> None:
    quotas = Quotas()
    assert sum(take(quotas, member(number), 100) for number in range(10, 2010)) == MAX_NODES_PER_INVITER
    assert quotas.fattest() == ROGUE
    assert quotas.displaced(member(10), 100) == set(), "what is known may be renewed"
    assert quotas.displaced(member(10), MAX_MEMORY_PER_INVITER + 1) is None
    quotas.drop(node_id(10))
    assert quotas.displaced(member(3000), 100) == set()


def test_quotas_bound_the_nodes_of_an_invite_for_everybody() -> None:
    quotas = Quotas()
    for number in range(10, 10 + MAX_NODES_PER_INVITE):
        quotas.keep(member(number, ALL_RIGHTS, inviter=OWNER, invite=b"1" * 8), 100)
    assert quotas.displaced(member(99, ALL_RIGHTS, inviter=OWNER, invite=b"1" * 8), 100) is None
    assert quotas.displaced(member(99, ALL_RIGHTS, inviter=OWNER, invite=b"2" * 8), 100) == set()


@pytest.mark.parametrize("seed", range(20))
def test_quotas_keep_the_same_nodes_in_whatever_order_they_come(seed: int) -> None:
    rng = random.Random(seed)
    made = [
        (replace(member(number), issued=rng.randrange(30)), rng.randrange(1, MAX_MEMORY_PER_INVITER // 8))
        for number in range(10, 60)
    ]
    kept = set()
    for _ in range(3):
        rng.shuffle(made)
        quotas = Quotas()
        # Anti-entropy offers again what was refused.
        while True:
            refused = [(certificate, size) for certificate, size in made if not knows(quotas, certificate)]
            if not sum(take(quotas, certificate, size) for certificate, size in refused):
                break
        assert memory(quotas) <= MAX_MEMORY_PER_INVITER
        kept.add(frozenset(certificate.node for certificate, _ in made if knows(quotas, certificate)))
    assert len(kept) == 1


def knows(quotas: Quotas, made: Certificate) -> bool:
    return made.node in quotas._members


def memory(quotas: Quotas) -> int:
    return sum(size for _, size in quotas._members.values())


def test_quotas_do_not_let_a_flood_displace_those_who_were_first() -> None:
    quotas = Quotas()
    first = [replace(member(number), issued=NOW - 5000) for number in range(2000, 2010)]
    for made in first:
        take(quotas, made, 4096)
    for number in range(10, 1000):
        take(quotas, member(number), MAX_MEMORY_PER_INVITER // 100)
    assert all(knows(quotas, made) for made in first)
    assert memory(quotas) <= MAX_MEMORY_PER_INVITER


def test_quotas_trust_the_nodes_that_the_owner_of_this_node_invited() -> None:
    quotas = Quotas()
    quotas.keep(member(10, inviter=OWNER), 100)
    assert quotas.voice(node_id(10)) == OWNER
    assert quotas.has_untrusted
    quotas.set_own(member(1, ALL_RIGHTS, inviter=OWNER))
    assert quotas.voice(node_id(10)) == node_id(10)
    assert not quotas.has_untrusted


def test_memory_of_a_record_counts_what_it_makes_of_few_bytes() -> None:
    plain = NodeRecord(ROGUE, RecordVersion(1, 1), MeshId(bytes(16)))
    fat = [
        replace(plain, serves=tuple(ServedModel(f"{number:x}") for number in range(256))),
        replace(plain, failure_reports=tuple(FailureReport(node_id(number), 1) for number in range(64))),
    ]
    for record in fat:
        assert memory_of(SignedRecord(record, b"x" * 100, b"")) > 30_000
    assert memory_of(SignedRecord(plain, b"x" * 1000, b"")) < 4000


def test_quotas_give_nodes_of_one_inviter_one_voice_and_few_places() -> None:
    quotas = Quotas()
    for number in range(10, 30):
        quotas.keep(member(number), 100)
    assert {quotas.voice(node_id(number)) for number in range(10, 30)} == {ROGUE}
    assert sum(quotas.take_place(node_id(number)) for number in range(10, 30)) == MAX_WATCHERS_PER_INVITER
    quotas.leave_place(node_id(10))
    assert quotas.take_place(node_id(29))
    # The inviter turns out to hold the mesh key: it could make as many as it likes anyway.
    quotas.keep(member(2, ALL_RIGHTS, inviter=OWNER), 100)
    assert quotas.voice(node_id(10)) == node_id(10)
    assert quotas.take_place(node_id(11))


def test_quotas_do_not_count_a_mesh_of_one_secret() -> None:
    quotas = Quotas()
    quotas.keep(None, 100)
    assert quotas.displaced(None, 1 << 30) == set()
    assert not quotas.has_untrusted
    assert quotas.voice(ROGUE) == ROGUE
    assert quotas.fattest() is None
