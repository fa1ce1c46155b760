"""Which mesh a node joins at its start: the saved one, or that of the given invites.

`mesh.json` changes only once a peer of the invited mesh has accepted this node, so that a wrong invite costs nothing.
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
    """The mesh to join. `secret` is None while only an invite that expires is known (`invite`: key, expiry).

    `addresses`: the bootstrap addresses of the invites, in their order. `foreign`: not the saved mesh; saved once a
    link has proved the secret.
    """

    mesh: MeshId
    secret: bytes | None = field(repr=False)
    invite: tuple[bytes, int] | None = field(default=None, repr=False)
    addresses: tuple[BootstrapAddress, ...] = ()
    foreign: bool = False


def decide(mesh: MeshId, secret: bytes, invites: Sequence[Invite]) -> MeshChoice:
    """The mesh to join, for a node whose saved mesh is `mesh`. Raises UsageError for invites to different meshes."""
    if not invites:
        return MeshChoice(mesh, secret)
    addresses = _merged(invites)
    ours = [hmac.compare_digest(invite.key, invite_key(secret, invite.expires)) for invite in invites]
    if all(ours):
        return MeshChoice(mesh, secret, addresses=addresses)
    # Two meshes with one secret may have two ids until they merge: the key counts.
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
            "The invites are for different meshes.", advice="A node joins one mesh: give invites for one mesh only."
        )
    if known is not None:
        return MeshChoice(invites[0].mesh, known, addresses=addresses, foreign=True)
    last = max(expiring, key=lambda invite: invite.expires)
    return MeshChoice(last.mesh, None, (last.key, last.expires), addresses, foreign=True)


def _merged(invites: Sequence[Invite]) -> tuple[BootstrapAddress, ...]:
    """The bootstrap addresses of all invites, each node once with all its addresses."""
    merged: dict[bytes, BootstrapAddress] = {}
    for found in (address for invite in invites for address in invite.ways):
        known = merged.get(found.pin)
        addresses = found.addresses if known is None else known.addresses + found.addresses
        merged[found.pin] = BootstrapAddress(found.pin, tuple(dict.fromkeys(addresses)))
    return tuple(merged.values())
