"""Which mesh a node joins at its start: the saved one, or that of the given invites.

`mesh.json` changes only once a peer of the invited mesh has accepted this node, so that a wrong invite costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshllm.core.records import BootstrapAddress, MeshId
from meshllm.daemon.mesh_state import saved_membership
from meshllm.errors import BadMessage, UsageError
from meshllm.net.identity import verify
from meshllm.wire.mesh.certificates import read_certificate
from meshllm.wire.mesh.invite import Invite, InviteTerms


@dataclass(frozen=True, slots=True)
class MeshChoice:
    """The mesh to join. `invite` (key, terms) is used for dialling until a member has admitted this node.

    `addresses`: the bootstrap addresses of the invites, in their order. `foreign`: the node is not yet a member of that
    mesh, or not with these rights. `spare`: an invite to the node's own mesh, which it needs only if its certificate
    does not count any more: the node cannot know how often the mesh key has changed while it was off.
    """

    mesh: MeshId
    invite: tuple[bytes, InviteTerms] | None = field(default=None, repr=False)
    addresses: tuple[BootstrapAddress, ...] = ()
    foreign: bool = False
    spare: tuple[bytes, InviteTerms] | None = field(default=None, repr=False)

    def with_spare(self) -> MeshChoice:
        """The same mesh, joined by the spare invite."""
        return MeshChoice(self.mesh, self.spare, self.addresses, foreign=True)


def is_member(home: Path, invite: Invite, now_unix: float) -> bool:
    """Whether the node of `home` is a member of the mesh of `invite` already, or by that invite. Creates nothing."""
    saved = saved_membership(home)
    if saved is None:
        return False
    mesh, keys, data = saved
    try:
        certificate = read_certificate(data, keys, verify).certificate
    except BadMessage:
        return False
    return certificate.valid_at(now_unix) and (mesh == invite.mesh or certificate.invite == invite.terms.serial)


def decide(mesh: MeshId, needed: Callable[[InviteTerms], bool], invites: Sequence[Invite]) -> MeshChoice:
    """The mesh to join, for a node whose saved mesh is `mesh`; `needed`: whether an invite to that gives it anything.

    Raises UsageError for invites to different meshes.
    """
    if not invites:
        return MeshChoice(mesh)
    if len({invite.mesh for invite in invites}) > 1:
        raise UsageError(
            "The invites are for different meshes.", advice="A node joins one mesh: give invites for one mesh only."
        )
    addresses = _merged(invites)
    last = max(invites, key=lambda invite: invite.terms.expires)
    if last.mesh == mesh and not needed(last.terms):
        return MeshChoice(mesh, addresses=addresses, spare=(last.key, last.terms))
    return MeshChoice(last.mesh, (last.key, last.terms), addresses, foreign=True)


def _merged(invites: Sequence[Invite]) -> tuple[BootstrapAddress, ...]:
    """The bootstrap addresses of all invites, each node once with all its addresses."""
    merged: dict[bytes, BootstrapAddress] = {}
    for found in (address for invite in invites for address in invite.ways):
        known = merged.get(found.pin)
        addresses = found.addresses if known is None else known.addresses + found.addresses
        merged[found.pin] = BootstrapAddress(found.pin, tuple(dict.fromkeys(addresses)))
    return tuple(merged.values())
