"""A node's key is replaced only for who has both keys, and nothing is lost if the disk is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import GUEST_RIGHTS, NO_RIGHTS, Right
from meshllm.core.membership.messages import ReplaceKey, ReplaceRefused
from meshllm.core.records import NodeId
from meshllm.daemon import key_replacement
from meshllm.daemon.key_replacement import MAX_REPLACED_OF_INVITE, KeyReplacement, newest
from meshllm.daemon.member_management import HomeState, load_home_state
from meshllm.daemon.settings import Settings
from meshllm.errors import EnvironmentFailure
from meshllm.net.identity import Identity
from meshllm.wire.mesh.certificates import replacement_to_sign


@dataclass
class Node:
    """A founder with a home of its own; what it posts goes to `posted`."""

    home: Path
    posted: list[e.Event] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.found: HomeState = load_home_state(Settings(self.home))
        found = self.found
        self.replacement = KeyReplacement(
            self.home,
            found.identity,
            found.keys,
            found.state,
            found.clock.now,
            self.save,
            self.post,
            self.happened.set,
            found.book,
        )

    def save(self, write: Callable[[], None]) -> None:
        """At once."""
        write()

    def post(self, event: e.Event) -> None:
        """Keep it."""
        self.posted.append(event)
        self.happened.set()


def signed(node: Node, old: Identity, new: Identity, by: tuple[Identity, Identity] | None = None) -> ReplaceKey:
    """A request to `node`, signed by both keys or by `by`."""
    over = replacement_to_sign(node.found.keys.authority.key, old.node, new.node)
    first, second = by or (old, new)
    return ReplaceKey(new.node, first.sign(over), second.sign(over))


def test_key_of_a_member_is_replaced_only_with_both_signatures(tmp_path: Path) -> None:
    node = Node(tmp_path / "a")
    old, new, other = [Identity.load_or_create(tmp_path / name) for name in ("old", "new", "other")]

    def ask(request: ReplaceKey, peer: NodeId = old.node, rights: Right = GUEST_RIGHTS) -> ReplaceRefused | None:
        return node.replacement.certify(c.CertifyReplacement(peer, request), rights)

    for bad in (signed(node, old, new, (old, other)), signed(node, old, new, (other, new))):
        assert ask(bad) == ReplaceRefused("one of the signatures is wrong")
    # A recorded request is worth nothing to another member, nor one for another mesh.
    assert ask(signed(node, old, new), other.node) == ReplaceRefused("one of the signatures is wrong")
    assert ask(signed(Node(tmp_path / "mesh b"), old, new)) == ReplaceRefused("one of the signatures is wrong")
    assert ask(signed(node, old, new), rights=NO_RIGHTS) is not None
    assert node.posted == []
    assert ask(signed(node, old, new)) is None
    (made,) = node.posted
    assert isinstance(made, e.StatementsMade)
    authority = node.found.keys.authority
    for data in made.statements:
        authority.learn(data)
    assert authority.successor(old.node) == new.node
    # It does not become two.
    refused = ask(signed(node, old, other))
    assert refused is not None
    assert "before" in refused.reason


def test_key_of_a_member_is_not_replaced_by_itself(tmp_path: Path) -> None:
    node = Node(tmp_path / "a")
    old = Identity.load_or_create(tmp_path / "old")
    refused = node.replacement.certify(c.CertifyReplacement(old.node, signed(node, old, old)), GUEST_RIGHTS)
    assert refused == ReplaceRefused("the new key is the old one")
    # Nor does such a statement of a member with the mesh key, which would expel it, count.
    assert node.found.keys.authority.learn(node.found.keys.replace(old.node, old.node)) is None
    assert not node.found.keys.authority.is_expelled(old.node)


def test_guests_of_one_invite_cannot_fill_the_mesh_with_replaced_keys(tmp_path: Path) -> None:
    node = Node(tmp_path / "a")
    authority, book, now = node.found.keys.authority, node.found.book, node.found.clock.now()

    def replaced(number: int, rights: Right = GUEST_RIGHTS, invite: bytes = b"invite--") -> str:
        """Why the key of another member is not replaced."""
        old, new = [Identity.load_or_create(tmp_path / f"{number} {name}") for name in ("old", "new")]
        book.note(node.found.keys.issue(old.node, rights, 999, inviter=old.node, invite=invite).certificate, "", now)
        refused = node.replacement.certify(c.CertifyReplacement(old.node, signed(node, old, new)), rights)
        if refused is not None:
            return refused.reason
        authority.learn(node.found.keys.replace(old.node, new.node))
        book.replaced(old.node, new.node)
        return ""

    assert [replaced(number) for number in range(MAX_REPLACED_OF_INVITE)] == [""] * MAX_REPLACED_OF_INVITE
    assert "of its invite" in replaced(100)
    assert replaced(101, invite=b"another-") == ""
    assert replaced(102, rights=Right.USE | Right.HOST) == ""


async def test_founder_replaces_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_replacement, "LAST_WORD_SECONDS", 0.0)
    node = Node(tmp_path)
    old = node.found.identity.node
    waiting = asyncio.get_running_loop().create_task(node.replacement.replace())
    await node.happened.wait()
    assert (tmp_path / "node-key.next").stat().st_mode & 0o777 == 0o600
    # Both are on the disk before the statement leaves this node: a crash now leaves a member with the new key.
    with pytest.raises(EnvironmentFailure, match="already"):
        await node.replacement.replace()
    following = Identity.load_next(tmp_path)
    assert following is not None
    node.happened.clear()
    node.replacement.left(following.node)
    assert await waiting == following.node
    await node.happened.wait()  # the restart
    again = load_home_state(Settings(tmp_path))
    assert again.identity.node == following.node != old
    assert again.keys.may_admit
    assert again.keys.authority.is_expelled(old)
    certificate = again.keys.certificate_as(following.node)
    assert again.keys.certificate is not None
    assert again.keys.certificate.certificate == certificate
    assert certificate.inviter == following.node
    assert not (tmp_path / "node-key.next").exists()
    assert newest(again.identity, tmp_path, again.state) is again.identity


async def test_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path)

    def full(*_: object) -> None:
        raise EnvironmentFailure("No space left.")

    monkeypatch.setattr(node.found.state, "save_replacement", full)
    with pytest.raises(EnvironmentFailure, match="No space"):
        await node.replacement.replace()
    assert node.posted == []
    again = load_home_state(Settings(tmp_path))
    assert again.identity.node == node.found.identity.node
    assert again.keys.may_admit


async def test_refusal_of_the_asked_member_is_the_answer(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.found.keys.private = b""
    waiting = asyncio.get_running_loop().create_task(node.replacement.replace())
    await node.happened.wait()
    assert isinstance(node.posted[0], e.ReplacementWanted)
    node.replacement.refused("no member is linked")
    with pytest.raises(EnvironmentFailure, match=r"no member is linked\. Nothing has changed"):
        await waiting
