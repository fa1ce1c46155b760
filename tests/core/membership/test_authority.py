"""The mesh key's word: which certificates and statements count, before and after a rotation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from meshllm.core.membership import authority as a
from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    GUEST_RIGHTS,
    MAX_STATEMENTS,
    NO_RIGHTS,
    Right,
    StatementKind,
)
from meshllm.core.membership.table import MemberEntry
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import (
    FailureReport,
    MeshId,
    NodeRecord,
    RecordVersion,
    ServedModel,
    SignedRecord,
    SplitCandidate,
)
from tests.core.small_mesh import node_id
from tests.mesh_key import NOW, FakeMeshKey

MESH = FakeMeshKey()
ONE, TWO, THREE, FOUR = node_id(1), node_id(2), node_id(3), node_id(4)


def record(certificate: bytes) -> SignedRecord:
    made = NodeRecord(
        ONE,
        RecordVersion(1, 1),
        MeshId(bytes(16)),
        serves=(ServedModel("m"),),
        wants=("w",),
        on_disk=("m",),
        memory=5,
        devices=(5,),
        speed=7,
        splits=(SplitCandidate("big", 3),),
        failure_reports=(FailureReport(TWO, 1),),
        certificate=certificate,
    )
    return SignedRecord(made, b"body", b"s" * 64)


def test_authority_admits_only_members_of_this_mesh_that_may_have_a_record() -> None:
    authority = MESH.authority()
    good = record(MESH.certify(ONE).data)
    assert authority.admit(good, NOW) == replace(good, member=MESH.certify(ONE).certificate)
    for bad in (
        b"",
        FakeMeshKey("other").certify(ONE).data,
        MESH.certify(TWO).data,
        MESH.certify(ONE, GUEST_RIGHTS).data,
        MESH.certify(ONE, Right.USE | Right.INVITE).data,
        MESH.certify(ONE, expires=NOW).data,
        MESH.certify(ONE).data[:-1] + b"x",
    ):
        assert authority.admit(record(bad), NOW) is None
    authority.learn(MESH.expel(ONE))
    assert authority.admit(good, NOW) is None


@pytest.mark.parametrize(
    ("rights", "owned"), [(ALL_RIGHTS, True), (Right.HOST, True), (Right.SERVE | Right.USE, False)]
)
def test_view_of_a_peer_says_whether_it_is_a_machine_of_the_owner(rights: Right, owned: bool) -> None:
    admitted = MESH.authority().admit(record(MESH.certify(ONE, rights).data), NOW)
    assert admitted is not None
    assert MemberEntry(admitted, PeerStatus.ALIVE, 0.0).peer_view().owned is owned
    assert not MemberEntry(record(b""), PeerStatus.ALIVE, 0.0).peer_view().owned


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        (Right.SERVE, {"serves": (), "on_disk": ()}),
        (Right.WORK, {"memory": 0, "devices": (), "speed": 0}),
        (Right.HOST, {"splits": ()}),
        (Right.USE, {"wants": ()}),
    ],
)
def test_authority_leaves_out_what_a_node_has_no_right_to_offer(without: Right, gone: dict[str, object]) -> None:
    whole = record(MESH.certify(ONE, ALL_RIGHTS & ~without).data)
    admitted = MESH.authority().admit(whole, NOW)
    assert admitted is not None
    assert admitted.record == replace(whole.record, **gone)  # type: ignore[arg-type]
    assert admitted.body is whole.body, "it is passed on as it was signed"


def test_authority_sets_are_equal_in_any_order_and_whichever_member_made_them() -> None:
    made = [
        MESH.expel(ONE),
        MESH.state(StatementKind.EXPEL, ONE, by=TWO),
        MESH.state(StatementKind.REVOKE_INVITE, b"12345678"),
    ]
    hashes = set()
    for order in itertools.permutations(made):
        authority = MESH.authority()
        for data in order:
            authority.learn(data)
        hashes.add(authority.hash)
        assert len(authority.statements) == 2
        assert authority.is_expelled(ONE)
        assert authority.is_revoked(b"12345678")
        assert not authority.may_dial(ONE[:16])
        assert authority.may_dial(TWO[:16])
        assert MESH.authority(*[known.data for known in authority.statements]).hash == authority.hash
    assert len(hashes) == 1
    assert MESH.authority().hash not in hashes


def test_authority_believes_no_statement_of_another_key() -> None:
    authority = MESH.authority()
    assert authority.learn(FakeMeshKey("other").expel(ONE)) is None
    assert authority.learn(b"") is None
    assert authority.learn(MESH.expel(ONE)[:-1] + b"x") is None
    assert authority.statements == ()


def test_authority_is_bounded_and_room_for_expulsions_is_made() -> None:
    authority = MESH.authority()
    for number in range(MAX_STATEMENTS):
        assert authority.learn(MESH.state(StatementKind.REVOKE_INVITE, number.to_bytes(8, "big")))
    assert authority.learn(MESH.state(StatementKind.REVOKE_INVITE, b"one more")) is None
    assert authority.learn(MESH.expel(ONE)) is not None
    assert len(authority.statements) == MAX_STATEMENTS
    assert authority.is_expelled(ONE)


def test_authority_keeps_expulsions_over_a_rotation_and_old_certificates_for_a_while() -> None:
    new = FakeMeshKey("new")
    authority = MESH.authority(MESH.expel(TWO))
    old = record(MESH.certify(ONE).data)
    assert authority.admit(old, NOW) is not None
    assert authority.learn(MESH.state(StatementKind.NEW_KEY, new.key)) is not None
    assert authority.key == new.key
    assert authority.is_expelled(TWO), "there is no moment without it"
    assert authority.admit(old, NOW) is None, "unknown when the key changed"
    authority.begin_grace([MESH.certify(ONE, GUEST_RIGHTS).certificate])
    assert authority.admit(old, NOW) is None, "more rights than were known"
    authority.begin_grace([MESH.certify(ONE).certificate])
    assert authority.admit(record(MESH.certify(ONE, expires=NOW + 9999).data), NOW) is None, "valid for longer"
    assert authority.admit(record(MESH.certify(ONE, inviter=TWO).data), NOW) is None, "another inviter's quota"
    assert authority.admit(record(MESH.certify(TWO).data), NOW) is None
    assert authority.admit(old, NOW) is not None
    assert not authority.is_current(old.record.certificate)
    assert authority.admit(record(new.certify(ONE).data), NOW) is not None
    assert authority.is_current(new.certify(ONE).data)
    authority.end_grace()
    assert authority.admit(old, NOW) is None
    # What the old key says now counts no more.
    assert authority.learn(MESH.expel(ONE)) is None
    assert authority.learn(MESH.state(StatementKind.NEW_KEY, FakeMeshKey("third").key)) is None
    # The re-signed expulsion takes the place of the old one.
    known = authority.hash
    assert authority.learn(new.expel(TWO)) is not None
    assert authority.hash == known
    saved = [signed.data for signed in authority.statements]
    again = a.Authority(new.key, authority._read_certificate, authority._read_statement, saved, MESH.key)
    assert (again.hash, again.rotation, again.is_expelled(TWO)) == (known, authority.rotation, True)


@pytest.mark.parametrize("by", [-500, 500])
def test_certificate_of_the_previous_key_counts_for_the_known_time_only(by: int) -> None:
    new = FakeMeshKey("new")
    authority = MESH.authority()
    known = MESH.certify(ONE).certificate
    authority.learn(MESH.state(StatementKind.NEW_KEY, new.key))
    authority.begin_grace([known])
    # As long a time at another moment: whoever still holds the old key would make it last for ever.
    moved = MESH.certify(ONE, issued=known.issued + by, expires=known.expires + by)
    assert authority.certificate(moved.data, ONE, NOW) is None
    # An earlier beginning would make the renewal longer.
    assert authority.certificate(MESH.certify(ONE, issued=known.issued - 500).data, ONE, NOW) is None
    assert authority.certificate(MESH.certify(ONE).data, ONE, NOW) == known
    authority.learn(new.replace(ONE, TWO))
    assert authority.certificate(moved.data, TWO, NOW) is None
    assert authority.certificate(MESH.certify(ONE).data, TWO, NOW) == replace(known, node=TWO)


def test_authority_gives_no_rights_to_the_expelled_and_the_unknown() -> None:
    authority = MESH.authority()
    member = MESH.certify(ONE, GUEST_RIGHTS).certificate
    assert a.rights_of(member, authority) == GUEST_RIGHTS
    assert a.rights_of(None, authority) == NO_RIGHTS
    assert a.rights_of(None, None) == a.rights_of(member, None) == NO_RIGHTS
    authority.learn(MESH.expel(ONE))
    assert a.rights_of(member, authority) == NO_RIGHTS


def test_authority_counts_the_certificate_of_a_replaced_node_for_its_successor_alone() -> None:
    authority = MESH.authority()
    held = MESH.certify(ONE)
    assert authority.certificate(held.data, TWO, NOW) is None
    new = authority.learn(MESH.replace(ONE, TWO))
    assert new is not None
    assert authority.certificate(held.data, ONE, NOW) is None
    assert authority.certificate(held.data, TWO, NOW) == replace(held.certificate, node=TWO)
    assert authority.certificate(held.data, THREE, NOW) is None
    # What it invited has the new id as its inviter.
    invited = MESH.certify(THREE, inviter=ONE)
    found = authority.certificate(invited.data, THREE, NOW)
    assert found == replace(invited.certificate, inviter=TWO)
    # And once more: the newest id counts, over a restart too.
    authority.learn(MESH.replace(TWO, FOUR))
    for known in (authority, MESH.authority(*[said.data for said in authority.statements])):
        assert known.successor(ONE) == known.successor(TWO) == known.successor(FOUR) == FOUR
        assert known.certificate(held.data, FOUR, NOW) == replace(held.certificate, node=FOUR)
        assert known.certificate(held.data, TWO, NOW) is None
        assert known.is_expelled(ONE)
        assert known.is_expelled(TWO)
        assert not known.may_dial(ONE[:16])
        assert known.hash == authority.hash


def test_authority_expels_all_ids_of_a_node_and_both_successors_of_one_in_any_order() -> None:
    expelled = (MESH.replace(ONE, TWO), MESH.replace(TWO, THREE), MESH.expel(ONE))
    doubled = (MESH.replace(ONE, TWO), MESH.replace(ONE, THREE), MESH.state(StatementKind.REVOKE_INVITE, b"12345678"))
    for statements in (expelled, doubled):
        hashes = set()
        for order in itertools.permutations(statements):
            authority = MESH.authority()
            for data in order:
                authority.learn(data)
            hashes.add(authority.hash)
            for node in (ONE, TWO, THREE):
                assert authority.is_expelled(node)
                assert not authority.may_dial(node[:16])
                assert authority.certificate(MESH.certify(node).data, node, NOW) is None
                assert authority.certificate(MESH.certify(ONE).data, node, NOW) is None
        assert len(hashes) == 1


def test_authority_bounds_replaced_keys() -> None:
    authority = MESH.authority()
    nodes = [node_id(number) for number in range(100, 106)]
    for old, new in itertools.pairwise(nodes[:5]):
        assert authority.may_replace(old, new, NOW, owned=True) == ""
        authority.learn(MESH.replace(old, new))
        assert authority.may_replace(old, new, NOW, owned=True) == ""  # it has it already
        assert "before" in authority.may_replace(old, ONE, NOW, owned=True)
    assert "4 times" in authority.may_replace(nodes[4], nodes[5], NOW, owned=True)
    assert authority.may_replace(nodes[4], nodes[5], NOW + 31 * 86_400, owned=True) == ""
    assert "before" in authority.may_replace(ONE, nodes[0], NOW, owned=True)  # back to an old key
    authority.learn(MESH.expel(TWO))
    assert "before" in authority.may_replace(ONE, TWO, NOW, owned=True)
    assert authority.may_replace(ONE, ONE, NOW, owned=True) == "the new key is the old one"
    for number in range(1000, 1000 + 2 * a.MAX_REPLACED, 2):
        if len(authority.statements) < a.MAX_REPLACED_FOR_GUESTS:
            assert authority.may_replace(ONE, THREE, NOW, owned=False) == ""
        elif len(authority.statements) == a.MAX_REPLACED_FOR_GUESTS + 1:
            assert "no room" in authority.may_replace(ONE, THREE, NOW, owned=False)
            assert authority.may_replace(ONE, THREE, NOW, owned=True) == ""
        authority.learn(MESH.replace(node_id(number), node_id(number + 1)))
    assert "no room" in authority.may_replace(ONE, THREE, NOW, owned=True)


def test_replaced_node_is_shown_the_reason() -> None:
    authority = MESH.authority()
    authority.learn(MESH.replace(ONE, TWO))
    assert authority.expulsion_of(ONE) == (MESH.replace(ONE, TWO),)
    authority.learn(MESH.expel(ONE))
    assert MESH.expel(ONE) in authority.expulsion_of(TWO)
    assert MESH.expel(ONE) in authority.expulsion_of(ONE)
    for data in authority.expulsion_of(TWO):
        assert len(authority.expulsion_of(TWO)) <= 4
        assert MESH.authority(MESH.replace(ONE, TWO)).learn(data) is not None
