"""What one inviter may cost the others."""

from __future__ import annotations

from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    MAX_NODES_PER_INVITE,
    MAX_NODES_PER_INVITER,
    Certificate,
    Right,
)
from meshllm.core.membership.quotas import MAX_BYTES_PER_INVITER, MAX_WATCHERS_PER_INVITER, Quotas
from tests.core.small_mesh import node_id
from tests.mesh_key import FakeMeshKey

MESH = FakeMeshKey()
OWNER, ROGUE = node_id(1), node_id(2)


def member(number: int, rights: Right = Right.SERVE, **more: object) -> Certificate:
    more.setdefault("inviter", ROGUE)
    return MESH.certify(node_id(number), rights, **more).certificate  # type: ignore[arg-type]


def test_quotas_bound_the_nodes_and_bytes_of_an_inviter() -> None:
    quotas = Quotas()
    taken = 0
    for number in range(10, 2010):
        if quotas.has_room(member(number), 100):
            quotas.keep(member(number), 100)
            taken += 1
    assert taken == MAX_NODES_PER_INVITER
    assert quotas.fattest() == ROGUE
    assert quotas.has_room(member(10), 100), "what is known may be renewed"
    assert not quotas.has_room(member(10), MAX_BYTES_PER_INVITER)
    quotas.drop(node_id(10))
    assert quotas.has_room(member(9), 100)


def test_quotas_bound_the_nodes_of_an_invite_for_everybody() -> None:
    quotas = Quotas()
    for number in range(10, 10 + MAX_NODES_PER_INVITE):
        quotas.keep(member(number, ALL_RIGHTS, inviter=OWNER, invite=b"1" * 8), 100)
    assert not quotas.has_room(member(9, ALL_RIGHTS, inviter=OWNER, invite=b"1" * 8), 100)
    assert quotas.has_room(member(9, ALL_RIGHTS, inviter=OWNER, invite=b"2" * 8), 100)


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
    assert quotas.has_room(None, 1 << 30)
    assert quotas.voice(ROGUE) == ROGUE
    assert quotas.fattest() is None
