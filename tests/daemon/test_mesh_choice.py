"""Which mesh a start is about."""

from __future__ import annotations

import pytest

from meshllm.core.records import BootstrapAddress, MeshId, PeerAddress
from meshllm.daemon.mesh_choice import MeshChoice, decide
from meshllm.errors import UsageError
from meshllm.wire.mesh.invite import Invite, invite_key

MESH, OTHER = MeshId(b"m" * 16), MeshId(b"o" * 16)
SECRET, THEIRS = b"s" * 16, b"t" * 16
A, B = PeerAddress("192.0.2.1", 1), PeerAddress("192.0.2.2", 2)
WAY = BootstrapAddress(b"p" * 16, (A,))


def invite(secret: bytes = THEIRS, mesh: MeshId = OTHER, expires: int = 0, way: BootstrapAddress = WAY) -> Invite:
    return Invite(mesh, invite_key(secret, expires), expires, (way,))


def test_mesh_choice_is_the_saved_mesh_without_invites() -> None:
    assert decide(MESH, SECRET, []) == MeshChoice(MESH, SECRET)


@pytest.mark.parametrize("expires", [0, 99])
def test_mesh_choice_adds_addresses_of_an_invite_to_the_saved_mesh(expires: int) -> None:
    # Its id may be another: the mesh has healed with one of a smaller id since.
    assert decide(MESH, SECRET, [invite(SECRET, OTHER, expires)]) == MeshChoice(MESH, SECRET, addresses=(WAY,))


def test_mesh_choice_follows_an_invite_to_another_mesh() -> None:
    assert decide(MESH, SECRET, [invite()]) == MeshChoice(OTHER, THEIRS, addresses=(WAY,), foreign=True)


def test_mesh_choice_has_no_secret_from_an_expiring_invite() -> None:
    found = decide(MESH, SECRET, [invite(expires=99), invite(expires=100)])
    assert found == MeshChoice(OTHER, None, (invite_key(THEIRS, 100), 100), (WAY,), foreign=True)


def test_mesh_choice_prefers_a_lasting_invite() -> None:
    found = decide(MESH, SECRET, [invite(expires=99), invite()])
    assert found == MeshChoice(OTHER, THEIRS, None, (WAY,), foreign=True)


def test_mesh_choice_merges_addresses_of_all_invites() -> None:
    more = BootstrapAddress(WAY.pin, (B, A))
    found = decide(MESH, SECRET, [invite(), invite(way=more), invite(way=BootstrapAddress(b"q" * 16, (B,)))])
    assert found.addresses == (BootstrapAddress(WAY.pin, (A, B)), BootstrapAddress(b"q" * 16, (B,)))


@pytest.mark.parametrize(
    "invites",
    [
        [invite(), invite(b"u" * 16)],
        [invite(), invite(SECRET)],
        [invite(), invite(b"u" * 16, expires=9)],
        [invite(expires=9), invite(b"u" * 16, MESH, expires=9)],
    ],
)
def test_mesh_choice_refuses_invites_for_two_meshes(invites: list[Invite]) -> None:
    with pytest.raises(UsageError, match="different meshes"):
        decide(MESH, SECRET, invites)


def test_mesh_choice_repr_hides_the_secret() -> None:
    assert "ssss" not in repr(decide(MESH, SECRET, []))
    assert "tttt" not in repr(decide(MESH, SECRET, [invite()]))
