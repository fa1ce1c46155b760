"""Which mesh a start is about: the one of last time, or the one that invites lead to.

Law: an invite is believed only once a peer has let us in. Until then what is on the disk stays as it was, so that a
wrong or dead invite costs nothing.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from meshllm.core.records import BootstrapAddress, MeshId
from meshllm.errors import UsageError
from meshllm.wire.mesh.invite import Invite, invite_key


@dataclass(frozen=True, slots=True)
class MeshChoice:
    """The mesh to be in. `secret` is None as long as only an invite that expires is held (`invite`: key, expiry).

    `ways` are those of the invites, in their order. `foreign`: it is not the mesh on the disk; to be adopted there once
    a link has proved it.
    """

    mesh: MeshId
    secret: bytes | None = field(repr=False)
    invite: tuple[bytes, int] | None = field(default=None, repr=False)
    ways: tuple[BootstrapAddress, ...] = ()
    foreign: bool = False


def decide(mesh: MeshId, secret: bytes, invites: Sequence[Invite]) -> MeshChoice:
    """Where to go, for a node that was in `mesh`. Raises UsageError for invites to different meshes."""
    if not invites:
        return MeshChoice(mesh, secret)
    ways = _together(invites)
    ours = [hmac.compare_digest(invite.key, invite_key(secret, invite.expires)) for invite in invites]
    if all(ours):
        return MeshChoice(mesh, secret, ways=ways)
    # Two meshes of one secret may still have two ids: they are about to heal into one. The key is what counts.
    lasting = {invite.key for invite in invites if not invite.expires}
    expiring = [invite for invite in invites if invite.expires]
    known = next(iter(lasting), None)
    strange = (
        any(ours)
        or len(lasting) > 1
        or any(known is not None and invite.key != invite_key(known, invite.expires) for invite in expiring)
        or (known is None and len({invite.mesh for invite in expiring}) > 1)
    )
    if strange:
        raise UsageError(
            "These invites are of different meshes.", advice="A node is in one mesh: give invites of one only."
        )
    if known is not None:
        return MeshChoice(invites[0].mesh, known, ways=ways, foreign=True)
    last = max(expiring, key=lambda invite: invite.expires)
    return MeshChoice(last.mesh, None, (last.key, last.expires), ways, foreign=True)


def _together(invites: Sequence[Invite]) -> tuple[BootstrapAddress, ...]:
    """All ways in, each node once, with all its addresses."""
    ways: dict[bytes, BootstrapAddress] = {}
    for way in (way for invite in invites for way in invite.ways):
        known = ways.get(way.pin)
        ways[way.pin] = (
            way if known is None else BootstrapAddress(way.pin, tuple(dict.fromkeys(known.addresses + way.addresses)))
        )
    return tuple(ways.values())
