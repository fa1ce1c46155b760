"""What the owner sees of members: rows of `mesh-llm members`, and the names of rights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshllm.core.membership.certificates import ALL_RIGHTS, Certificate, Right
from meshllm.daemon.invite_book import KnownMember
from meshllm.errors import UsageError


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member; ids and serials are hexadecimal, times in unix seconds. `here`: this node."""

    node: str
    name: str
    rights: list[str]
    since: int
    expires: int
    inviter: str
    invite: str
    seen: int
    alive: bool
    here: bool = False


@dataclass(frozen=True, slots=True)
class ExpelledMember:
    """The member that was expelled. `rotated`: it held the mesh key, so the mesh has a new one."""

    node: str
    name: str
    rotated: bool


def right_names(rights: Right) -> list[str]:
    """The names of rights, in their order."""
    return [str(right.name).lower() for right in Right if right in rights]


def parse_rights(names: Sequence[str]) -> Right:
    """The rights of those names; no names: all rights. Raises UsageError."""
    if not names:
        return ALL_RIGHTS
    found = Right(0)
    for name in names:
        try:
            found |= Right[name.strip().upper()]
        except KeyError:
            known = ", ".join(right_names(ALL_RIGHTS))
            raise UsageError(f"{name!r} is not a right.", advice=f"The rights are {known}.") from None
    return found


def member_row(member: Certificate, name: str, *, alive: bool, seen: int, here: bool = False) -> MemberRow:
    """The row of a member whose certificate is known."""
    return MemberRow(
        member.node.hex(),
        name,
        right_names(member.rights),
        member.issued,
        member.expires,
        member.inviter.hex(),
        member.invite.hex(),
        seen,
        alive,
        here,
    )


def row_of_entry(node: str, entry: KnownMember, *, alive: bool) -> MemberRow:
    """The row of a member that was met before."""
    rights = right_names(Right(entry.rights))
    return MemberRow(
        node, entry.name, rights, entry.issued, entry.expires, entry.inviter, entry.invite, entry.seen, alive
    )
