"""`invites.json`: the invites that a node made, who used them, the members that it knows, and for which of them
certificates of the previous mesh key still count.

Invariants: the file is replaced as a whole, mode 0600, and holds no key. A use of an invite is on the disk before the
node that used it is welcomed, so that a single-use invite admits one node over any crash.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from meshllm.core.ids import NodeId
from meshllm.core.membership.certificates import (
    MAX_NODES_PER_INVITE,
    SERIAL_BYTES,
    Certificate,
    CertificateTerms,
    MeshKey,
    Right,
)
from meshllm.util.atomic_file import replace_file
from meshllm.wire.mesh.hello import HelloRefusal
from meshllm.wire.mesh.invite import InviteTerms, new_serial

log = logging.getLogger(__name__)

FILE = "invites.json"
MAX_INVITES, MAX_MEMBERS = 1024, 1024
# How long (seconds) an expired invite stays in the list.
KEPT_SECONDS = 30 * 86_400
FRESH_INVITE = "Ask for a fresh invite: 'mesh-llm invite' prints it on a node of the mesh."
MAKER_ONLY = "The node that made the invite must be on: start it, or ask for a fresh invite."
# Models of a member that are kept, by name.
MAX_SERVED = 16


class InviteState(Enum):
    """What an invite is good for. VOID: the mesh has a new key since it was made."""

    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class InviteEntry:
    """An invite. `serial`, `by` (who asked for it) and `nodes` (who used it) are hexadecimal, as is `mesh_key`: the
    beginning of the public mesh key for which it was made ("" in a file of an earlier version)."""

    serial: str
    rights: int
    expires: int
    lifetime: int
    once: bool
    by: str
    label: str = ""
    nodes: list[str] = field(default_factory=list)
    mesh_key: str = ""

    @property
    def used_up(self) -> bool:
        """Whether it admits no node that has not used it."""
        return len(self.nodes) >= (1 if self.once else MAX_NODES_PER_INVITE)

    def state(self, now: float, key: MeshKey, *, revoked: bool) -> InviteState:
        """What it is good for, in a mesh with that key."""
        if revoked:
            return InviteState.REVOKED
        if self.mesh_key not in ("", key_mark(key)):
            return InviteState.VOID
        if self.expires <= now:
            return InviteState.EXPIRED
        return InviteState.USED if self.used_up else InviteState.OPEN


@dataclass(frozen=True, slots=True)
class KnownMember:
    """A member as its certificate says; times in unix seconds. `seen`: when it was met last; `served`: models that it
    served then; `since`: when it was first met with a certificate of these terms."""

    name: str
    rights: int
    issued: int
    expires: int
    inviter: str
    invite: str
    seen: int
    served: list[str] = field(default_factory=list)
    since: int = 0


class InviteBook:
    """The owner of the file. Everything runs on the event loop; a save takes about a millisecond."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        self.invites: dict[str, InviteEntry] = {}
        self.members: dict[str, KnownMember] = {}
        self.grace: frozenset[CertificateTerms] = frozenset()
        try:
            found = json.loads(self._path.read_text())
            self.invites = {str(entry["serial"]): InviteEntry(**entry) for entry in found["invites"]}
            self.members = {str(node): KnownMember(**entry) for node, entry in found["members"].items()}
            self.grace = frozenset(_read_terms(entry) for entry in found.get("grace", []))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            log.warning("%s cannot be read: invites for one use that this node made admit no node any more", self._path)

    def add(self, terms: InviteTerms, by: NodeId, label: str, now: float, key: MeshKey) -> None:
        """A new invite to the mesh of that key; those that expired long ago, or all expired ones, make room."""
        self._keep_after(now - KEPT_SECONDS)
        if len(self.invites) >= MAX_INVITES:
            self._keep_after(now)
        if len(self.invites) >= MAX_INVITES:
            raise ValueError(f"{MAX_INVITES} invites are open: revoke some")
        entry = InviteEntry(
            terms.serial.hex(),
            int(terms.rights),
            terms.expires,
            terms.member_lifetime,
            terms.once,
            by.hex(),
            label,
            mesh_key=key_mark(key),
        )
        self.invites[entry.serial] = entry
        self._save(durable=True)

    def _keep_after(self, time: float) -> None:
        self.invites = {serial: entry for serial, entry in self.invites.items() if entry.expires > time}

    def use(self, terms: InviteTerms, node: NodeId, key: MeshKey, maker: NodeId) -> HelloRefusal | None:
        """`node` uses an invite of `maker`: None once that is on the disk, else why not. A node may use it again."""
        serial, who = terms.serial.hex(), node.hex()
        entry = self.invites.get(serial)
        if entry is None:
            if terms.once or terms.maker_only:
                return HelloRefusal("cannot_admit", "The answering node does not know the invite.", MAKER_ONLY)
            # Made by another holder of the mesh key.
            entry = InviteEntry(
                serial,
                int(terms.rights),
                terms.expires,
                terms.member_lifetime,
                terms.once,
                maker.hex(),
                "made elsewhere",
                mesh_key=key_mark(key),
            )
            if len(self.invites) >= MAX_INVITES:
                return HelloRefusal("cannot_admit", "Too many invites are open at the answering node.", MAKER_ONLY)
        if who in entry.nodes:
            return None
        if entry.used_up:
            used = "The invite was used already." if entry.once else f"{MAX_NODES_PER_INVITE} nodes used the invite."
            return HelloRefusal("used_invite", used, FRESH_INVITE)
        self.invites[serial] = replace(entry, nodes=[*entry.nodes, who])
        self._save(durable=True)
        return None

    def maker_of(self, serial: bytes) -> str:
        """Who asked for the invite, hexadecimal; "" if that is not known."""
        entry = self.invites.get(serial.hex())
        return entry.by if entry is not None else ""

    def granted_to(self, serial: bytes, gone: Callable[[NodeId], bool]) -> bool:
        """Whether a member that is `gone` asked for the invite or used it, so that it may have kept it to come back."""
        entry = self.invites.get(serial.hex())
        holders = [] if entry is None else [*([entry.by] if entry.by else []), *entry.nodes]
        return any(gone(NodeId(bytes.fromhex(holder))) for holder in holders)

    def seen(self, member: Certificate, name: str, now: float) -> None:
        """A member was met."""
        self.note(member, name, now)
        self._save(durable=False)

    def note(self, member: Certificate, name: str, now: float, served: Sequence[str] | None = None) -> None:
        """The same without writing it to the disk, which `flush` does. `served`: its models, None if not known."""
        who, before = member.node.hex(), self.known_as(member.node)
        known = self.members.pop(who, None)
        while len(self.members) >= MAX_MEMBERS:
            del self.members[next(iter(self.members))]
        self.members[who] = KnownMember(
            name or (known.name if known is not None else ""),
            int(member.rights),
            member.issued,
            member.expires,
            member.inviter.hex(),
            member.invite.hex(),
            int(now),
            (known.served if known is not None else []) if served is None else list(served)[:MAX_SERVED],
            int(now) if known is None or before is None or before.terms != member.terms else known.since,
        )

    def flush(self) -> None:
        """Write what was noted."""
        self._save(durable=False)

    def rename(self, node: NodeId, name: str) -> None:
        """A member that was met says its name; `flush` writes it."""
        known = self.members[node.hex()]
        self.members[node.hex()] = replace(known, name=name)

    def known_since(self, node: NodeId) -> float:
        """When the member was first met with the certificate that it has; never is infinity."""
        known = self.members.get(node.hex())
        return known.since if known is not None else math.inf

    def known_as(self, node: NodeId) -> Certificate | None:
        """What the newest certificate with which the member was met said; its serial is not kept."""
        known = self.members.get(node.hex())
        if known is None:
            return None
        return Certificate(
            node,
            Right(known.rights),
            known.issued,
            known.expires,
            bytes(SERIAL_BYTES),
            NodeId(bytes.fromhex(known.inviter)),
            bytes.fromhex(known.invite),
        )

    def replaced(self, old: NodeId, new: NodeId) -> None:
        """A member has another id: it keeps its name, its place among the users of its invite, and its own invites."""
        was, now = old.hex(), new.hex()
        known = self.members.pop(was, None)
        if known is not None:
            self.members[now] = known
        self.members = {
            who: replace(entry, inviter=now) if entry.inviter == was else entry for who, entry in self.members.items()
        }
        for serial, entry in self.invites.items():
            nodes = [now if node == was else node for node in entry.nodes]
            self.invites[serial] = replace(entry, by=now if entry.by == was else entry.by, nodes=nodes)
        self._save(durable=True)

    def save_grace(self, terms: frozenset[CertificateTerms]) -> None:
        """Certificates of the previous mesh key with these terms still count."""
        self.grace = terms
        self._save(durable=True)

    def forget(self, node: NodeId) -> None:
        """A member was expelled."""
        if self.members.pop(node.hex(), None) is not None:
            self._save(durable=True)

    def clear(self) -> None:
        """The node is in another mesh now."""
        self.invites, self.members, self.grace = {}, {}, frozenset()
        self._save(durable=False)

    def _save(self, *, durable: bool) -> None:
        content: dict[str, Any] = {
            "invites": [asdict(entry) for entry in self.invites.values()],
            "members": {node: asdict(entry) for node, entry in self.members.items()},
            "grace": [
                [node.hex(), int(rights), issued, expires, inviter.hex(), invite.hex()]
                for node, rights, issued, expires, inviter, invite in sorted(self.grace)
            ],
        }
        replace_file(self._path, json.dumps(content, indent=1) + "\n", mode=0o600, durable=durable)


def fresh_serial(maker: NodeId) -> bytes:
    """The serial of a new invite of `maker`."""
    return new_serial(secrets.token_bytes(SERIAL_BYTES), maker)


def key_mark(key: MeshKey) -> str:
    """The beginning of a public mesh key, hexadecimal."""
    return key[:8].hex()


def _read_terms(entry: list[Any]) -> CertificateTerms:
    node, rights, issued, expires, inviter, invite = entry
    ids = NodeId(bytes.fromhex(node)), NodeId(bytes.fromhex(inviter))
    return ids[0], Right(rights), int(issued), int(expires), ids[1], bytes.fromhex(invite)
