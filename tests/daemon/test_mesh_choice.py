"""Which mesh a start is about."""

from __future__ import annotations

import pytest

from meshllm.core.membership.certificates import Right
from meshllm.core.records import BootstrapAddress, MeshId, PeerAddress
from meshllm.daemon.mesh_choice import MeshChoice, decide
from meshllm.errors import UsageError
from meshllm.wire.mesh.invite import Invite, InviteTerms

MESH, OTHER = MeshId(b"m" * 16), MeshId(b"o" * 16)
A, B = PeerAddress("192.0.2.1", 1), PeerAddress("192.0.2.2", 2)
WAY = BootstrapAddress(b"p" * 16, (A,))


def invite(mesh: MeshId = OTHER, expires: int = 9, way: BootstrapAddress = WAY) -> Invite:
    return Invite(mesh, b"k" * 16, InviteTerms(b"serial--", Right.USE, expires, 1), (way,))


def never(terms: InviteTerms) -> bool:
    return False


def test_mesh_choice_is_the_saved_mesh_without_invites() -> None:
    assert decide(MESH, never, []) == MeshChoice(MESH)


def test_mesh_choice_adds_addresses_of_an_invite_to_the_saved_mesh() -> None:
    given = invite(MESH)
    found = decide(MESH, never, [given])
    assert (found.invite, found.foreign, found.addresses) == (None, False, (WAY,))
    # The invite is used if the certificate does not count any more.
    assert found.with_spare() == MeshChoice(MESH, (given.key, given.terms), (WAY,), foreign=True)


def test_mesh_choice_uses_an_invite_that_gives_more() -> None:
    given = invite(MESH)
    assert decide(MESH, lambda terms: True, [given]) == MeshChoice(MESH, (given.key, given.terms), (WAY,), foreign=True)


def test_mesh_choice_follows_the_last_invite_to_another_mesh() -> None:
    last = invite(expires=100)
    assert decide(MESH, never, [last, invite()]) == MeshChoice(OTHER, (last.key, last.terms), (WAY,), foreign=True)


def test_mesh_choice_merges_addresses_of_all_invites() -> None:
    more = BootstrapAddress(WAY.pin, (B, A))
    found = decide(MESH, never, [invite(), invite(way=more), invite(way=BootstrapAddress(b"q" * 16, (B,)))])
    assert found.addresses == (BootstrapAddress(WAY.pin, (A, B)), BootstrapAddress(b"q" * 16, (B,)))


def test_mesh_choice_refuses_invites_for_two_meshes() -> None:
    with pytest.raises(UsageError, match="different meshes"):
        decide(MESH, never, [invite(), invite(MESH)])


def test_mesh_choice_repr_hides_the_key() -> None:
    assert "kkkk" not in repr(decide(MESH, never, [invite()]))
