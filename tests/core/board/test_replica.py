"""The blackboard between nodes: spreading, catching up, who shares it, and what a hostile or broken node cannot do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from meshllm.core import events as e
from meshllm.core.board.entries import EntryDraft, EntryKind, SignedEntry
from meshllm.core.board.messages import (
    BoardDifference,
    BoardDigest,
    BoardEntries,
    BoardMessage,
    BoardWant,
    ChainRange,
    ChainState,
)
from meshllm.core.membership.certificates import GUEST_RIGHTS, Right
from meshllm.core.records import Role
from tests.core.board import made_entries
from tests.core.small_mesh import SmallMesh, node_id
from tests.mesh_key import FakeMeshKey
from tests.saved_board import SavedBoard, sign_entry


def mesh_of(count: int, *, seed: int = 1) -> SmallMesh:
    mesh = SmallMesh(seed)
    for number in range(count):
        mesh.start(number, [mesh.way(0)] if number else (), board=True)
    mesh.until(mesh.whole)
    mesh.run(2.0)
    return mesh


def post(mesh: SmallMesh, number: int, *texts: str) -> None:
    for text in texts:
        mesh.tell(number, e.PostWanted(len(mesh.boards[number].done) + 1, EntryDraft(text)))
        mesh.run(0.05)


def texts(mesh: SmallMesh) -> list[list[str]]:
    return [mesh.boards[number].texts for number in sorted(mesh.cores)]


def board_messages(mesh: SmallMesh) -> Counter[str]:
    return Counter(type(message).__name__ for _, _, message in mesh.sent if isinstance(message, BoardMessage))


def only(board: SavedBoard, text: str) -> SignedEntry:
    return next(entry for entry in board.entries.values() if entry.body == text)


def test_post_reaches_all_and_is_answered() -> None:
    mesh = mesh_of(6)
    post(mesh, 2, "hello")
    mesh.run(0.5)
    assert texts(mesh) == [["hello"]] * 6
    assert mesh.boards[2].done == [1]


def test_idle_board_sends_nothing() -> None:
    mesh = mesh_of(5)
    post(mesh, 1, "one", "two")
    mesh.run(5.0)
    mesh.sent.clear()
    mesh.run(30.0)
    assert board_messages(mesh) == {}


def test_lost_push_is_repaired() -> None:
    mesh = mesh_of(4)
    mesh.cut = lambda a, b: True
    post(mesh, 1, "lost")
    mesh.cut = lambda a, b: False
    mesh.run(10.0)
    assert texts(mesh) == [["lost"]] * 4


def test_number_missing_in_the_middle_is_asked_for() -> None:
    mesh = mesh_of(4)
    post(mesh, 1, "one")
    mesh.cut = lambda a, b: b == 3
    post(mesh, 1, "two")
    mesh.cut = lambda a, b: False
    post(mesh, 1, "three")
    mesh.run(0.2)
    assert mesh.boards[3].texts == ["one", "three"]
    mesh.run(8.0)
    assert mesh.boards[3].texts == ["one", "two", "three"]


def test_node_that_was_away_asks_one_peer_and_gets_all_once() -> None:
    mesh = mesh_of(5)
    mesh.kill(4)
    for text in range(15):
        post(mesh, text % 3, f"text {text}")
    mesh.run(30.0)
    mesh.sent.clear()
    mesh.start(4, board=True)
    mesh.until(lambda: len(mesh.boards[4].entries) == 15)
    mesh.run(3.0)
    got = [
        entry.id
        for _, to, message in mesh.sent
        if to == 4 and isinstance(message, BoardEntries)
        for entry in message.entries
    ]
    assert len(got) == len(set(got)) == 15


def test_many_chains_are_compared_by_buckets() -> None:
    mesh = SmallMesh()
    shared = [made_entries.entry(1, by=by, time=int(mesh.unix(0) * 1000), body=f"of {by}") for by in range(400)]
    key = mesh.mesh_key
    for number in (0, 1):
        board = mesh.boards[number] = SavedBoard()
        for entry in shared[: 300 + number * 100]:
            board.entries[entry.id] = entry
        board.certificates = [key.certify(made_entries.author(by)).data for by in range(400)]
    mesh.start(0, board=True)
    mesh.start(1, [mesh.way(0)], board=True)
    mesh.until(lambda: len(mesh.boards[0].entries) == 400)
    assert board_messages(mesh)[BoardDigest.__name__] >= 1


def test_restart_keeps_the_board_and_the_numbers() -> None:
    mesh = mesh_of(3)
    post(mesh, 1, "before")
    mesh.kill(1)
    mesh.run(20.0)
    mesh.start(1, board=True)
    mesh.until(mesh.whole)
    post(mesh, 1, "after")
    mesh.run(3.0)
    assert texts(mesh) == [["before", "after"]] * 3
    assert [entry.header.seq for entry in mesh.boards[0].entries.values()] == [1, 2]


def test_post_that_was_saved_and_not_sent_is_sent_after_the_restart() -> None:
    mesh = mesh_of(3)
    mesh.tell(1, e.PostWanted(1, EntryDraft("saved")))
    mesh.kill(1)  # before `PostSaved`
    assert mesh.boards[1].texts == ["saved"]
    mesh.run(20.0)
    assert mesh.boards[0].texts == []
    mesh.start(1, board=True)
    mesh.until(lambda: mesh.boards[0].texts == ["saved"])


def test_post_that_cannot_be_saved_is_refused_and_its_number_used_again() -> None:
    mesh = mesh_of(2)
    full = [True]
    board = mesh.boards[1]
    carry_out = board.carry_out

    def disk(command: object) -> e.Event | None:
        if full[0] and type(command).__name__ == "SavePost":
            return e.PostFailed(1, "The disk is full.")
        return carry_out(command)  # type: ignore[arg-type]

    board.carry_out = disk  # type: ignore[method-assign]
    mesh.tell(1, e.PostWanted(1, EntryDraft("not saved")))
    mesh.run(0.5)
    full[0] = False
    post(mesh, 1, "saved")
    mesh.run(1.0)
    assert board.refused == [(1, "The disk is full.")]
    assert mesh.boards[0].texts == ["saved"]
    assert only(board, "saved").header.seq == 1


def test_author_that_posts_too_fast_is_refused_here_and_not_flagged_elsewhere() -> None:
    mesh = mesh_of(3)
    post(mesh, 1, *[f"text {number}" for number in range(30)])
    mesh.run(1.0)
    assert len(mesh.boards[0].entries) == 20
    assert "too fast" in mesh.boards[1].refused[0][1]
    # What leaked in the burst can be erased all the same.
    target = only(mesh.boards[1], "text 3").id
    mesh.tell(1, e.PostWanted(99, EntryDraft("", EntryKind.RETRACT, target=target)))
    mesh.run(0.5)
    assert "text 3" not in mesh.boards[0].texts
    assert mesh.boards[0].flagged == ()
    mesh.run(61.0)
    post(mesh, 1, "later")
    mesh.run(1.0)
    assert mesh.boards[0].texts[-1] == "later"


def test_retracted_text_leaves_all_nodes() -> None:
    mesh = mesh_of(5)
    post(mesh, 1, "a secret", "stays")
    mesh.run(1.0)
    target = only(mesh.boards[1], "a secret").id
    mesh.tell(1, e.PostWanted(9, EntryDraft("", EntryKind.RETRACT, target=target)))
    mesh.run(1.0)
    assert [[text for text in found if text] for found in texts(mesh)] == [["stays"]] * 5


def test_nobody_retracts_for_another() -> None:
    mesh = mesh_of(2)
    post(mesh, 1, "stays")
    target = only(mesh.boards[1], "stays").id
    mesh.tell(0, e.PostWanted(9, EntryDraft("", EntryKind.RETRACT, target=target)))
    mesh.run(1.0)
    assert "Only a message of this node" in mesh.boards[0].refused[0][1]


def test_guest_neither_reads_nor_writes() -> None:
    mesh = mesh_of(3)
    mesh.rights[7] = GUEST_RIGHTS
    mesh.start(7, [mesh.way(0)], role=Role.CLIENT, board=True)
    mesh.run(5.0)
    post(mesh, 1, "ours")
    post(mesh, 7, "theirs")
    mesh.run(10.0)
    assert mesh.boards[7].texts == ["theirs"]
    assert texts(mesh)[:3] == [["ours"]] * 3


def test_client_of_the_owner_reads_and_writes_and_repairs() -> None:
    mesh = mesh_of(3)
    mesh.rights[7] = Right.USE | Right.SERVE
    post(mesh, 1, "before")
    mesh.start(7, [mesh.way(0)], role=Role.CLIENT, board=True)
    mesh.run(5.0)
    assert mesh.boards[7].texts == ["before"]
    mesh.cut = lambda a, b: 7 in (a, b)
    post(mesh, 7, "by the client")
    post(mesh, 1, "by a node")
    mesh.cut = lambda a, b: False
    mesh.run(10.0)
    assert all(sorted(found) == ["before", "by a node", "by the client"] for found in texts(mesh))


def test_node_without_a_blackboard_gets_no_message_about_it() -> None:
    mesh = mesh_of(2)
    mesh.start(5, [mesh.way(0)])
    mesh.until(mesh.whole)
    post(mesh, 1, "text")
    mesh.run(10.0)
    sent = {type(message) for _, to, message in mesh.sent if to == 5 and not isinstance(message, BoardEntries)}
    assert not sent & {BoardDigest, BoardDifference, BoardWant}


def test_what_an_expelled_member_wrote_goes_with_it() -> None:
    mesh = mesh_of(4)
    post(mesh, 3, "of the expelled")
    post(mesh, 1, "ours")
    mesh.run(1.0)
    mesh.tell(0, e.StatementsMade((mesh.mesh_key.expel(node_id(3)),)))
    mesh.run(2.0)
    assert [mesh.boards[number].texts for number in (0, 1, 2)] == [["ours"]] * 3


def test_entries_of_strangers_and_of_other_meshes_are_refused() -> None:
    mesh = mesh_of(2)
    moment = int(mesh.unix(0) * 1000)
    stranger = made_entries.entry(1, moment, by=50, body="of a stranger")
    other_key = FakeMeshKey("another mesh").certify(made_entries.author(50)).data
    header = replace(made_entries.entry(1, moment).header, author=node_id(1), mesh=bytes([9]) * 16)
    foreign = replace(made_entries.entry(1, moment), header=header)
    for message in (BoardEntries((stranger,), (other_key,), push=True), BoardEntries((foreign,), push=True)):
        mesh.tell(0, e.MessageReceived(node_id(1), message))
    mesh.run(1.0)
    assert mesh.boards[0].entries == {}


def test_equivocation_is_proven_to_all() -> None:
    """A member writes one text to some, and another with the same number to others."""
    mesh = mesh_of(4)
    moment = int(mesh.unix(0) * 1000)
    signed = []
    for body in ("one", "other"):
        header = replace(made_entries.entry(1, moment, body=body).header, author=node_id(3))
        data, signature = sign_entry(header)
        made = made_entries.entry(1, moment, body=body)
        signed.append(replace(made, header=header, data=data, signature=signature, id=made_entries.entry_id(data)))
    mesh.tell(0, e.MessageReceived(node_id(3), BoardEntries((signed[0],))))
    mesh.tell(1, e.MessageReceived(node_id(3), BoardEntries((signed[1],), push=True)))
    mesh.run(20.0)
    shown = min(signed, key=lambda entry: entry.id).body
    for number in (0, 1, 2):
        assert mesh.boards[number].flagged == (node_id(3),), number
        assert mesh.boards[number].texts == [shown]
    mesh.sent.clear()
    mesh.run(20.0)
    assert board_messages(mesh) == {}


def test_peer_that_hides_entries_hides_nothing() -> None:
    """It lists a chain and sends its last entry only."""
    mesh = mesh_of(4)
    mesh.kill(3)
    post(mesh, 1, "one", "two", "three")
    mesh.run(20.0)
    last = only(mesh.boards[1], "three")
    mesh.start(3, board=True)
    mesh.tell(3, e.MessageReceived(node_id(0), BoardEntries((last,))))
    mesh.until(lambda: mesh.boards[3].texts == ["one", "two", "three"], within=20.0)


def test_peer_that_strips_a_text_does_not_erase_it() -> None:
    mesh = mesh_of(3)
    mesh.cut = lambda a, b: b == 2
    post(mesh, 1, "whole")
    mesh.cut = lambda a, b: False
    stripped = made_entries.without_text(only(mesh.boards[1], "whole"))
    mesh.tell(2, e.MessageReceived(node_id(0), BoardEntries((stripped,))))
    mesh.until(lambda: mesh.boards[2].texts == ["whole"], within=20.0)


def test_peer_that_lists_what_it_has_not_is_asked_once_until_it_answers() -> None:
    mesh = mesh_of(2)
    claimed = ChainState(made_entries.chain_of(made_entries.entry(1, by=99)), 500, 1)
    mesh.sent.clear()
    for _ in range(30):
        mesh.tell(0, e.MessageReceived(node_id(1), BoardDifference(0, (0,), (claimed,))))
    wants = [message for number, _, message in mesh.sent if number == 0 and isinstance(message, BoardWant)]
    assert [each.ranges for each in wants] == [(ChainRange(claimed.chain, 1, 500),)]


@pytest.mark.parametrize("hours", [-2, 2])
def test_clocks_that_are_wrong_show_nothing_beyond_its_lifetime(hours: int) -> None:
    mesh = SmallMesh()
    mesh.clocks[1] = hours * 3600.0
    for number in range(3):
        mesh.start(number, [mesh.way(0)] if number else (), board=True)
    mesh.until(mesh.whole)
    post(mesh, 1, "with a wrong clock")
    post(mesh, 0, "with a right one")
    mesh.run(5.0)
    held = mesh.boards[0].texts
    assert held == (["with a right one"] if hours > 0 else ["with a wrong clock", "with a right one"])
    assert mesh.boards[0].waiting == (1 if hours > 0 else 0)
    # All of them go; the clocks are read every minute.
    for number in range(3):
        mesh.tell(number, e.ClockRead(mesh.unix(number) + 48 * 3600 + 300))
    mesh.run(1.0)
    assert mesh.boards[0].texts == []
    assert all("with a right one" not in mesh.boards[number].texts for number in (0, 2))


def test_merged_meshes_go_on_with_one_board() -> None:
    mesh = SmallMesh()
    mesh.start(0, mesh=2, board=True)
    mesh.start(1, [mesh.way(0)], mesh=2, board=True)
    mesh.start(2, mesh=1, board=True)
    mesh.run(5.0)
    post(mesh, 0, "before")
    mesh.tell(2, e.JoinWanted((mesh.way(0),)))
    mesh.until(mesh.whole)
    mesh.until(lambda: len(set(mesh.meshes.values())) == 1)
    post(mesh, 0, "after")
    mesh.run(5.0)
    assert mesh.boards[2].texts[-1] == "after"
    assert mesh.boards[1].texts == ["before", "after"]
    mesh.run(20.0)
    mesh.sent.clear()
    mesh.run(30.0)
    assert board_messages(mesh) == {}


def test_peer_that_lists_and_does_not_send_keeps_no_other_from_being_asked() -> None:
    """It lists what all have, again and again, and answers nothing."""
    mesh = mesh_of(3)
    mesh.kill(2)
    post(mesh, 1, "one", "two")
    mesh.run(20.0)
    chain = made_entries.chain_of(only(mesh.boards[1], "one"))
    mesh.cut = lambda a, b: (a, b) == (0, 2)
    mesh.start(2, board=True)
    mesh.run(1.0)
    for _ in range(600):
        listed = BoardDifference(0, (0,), (ChainState(chain, 500, 1),), reply=True)
        mesh.tell(2, e.MessageReceived(node_id(0), listed))
        mesh.run(0.05)
        if mesh.boards[2].texts == ["one", "two"]:
            return
    raise AssertionError(mesh.boards[2].texts)


def test_what_a_peer_lists_is_remembered_within_bounds() -> None:
    mesh = mesh_of(2)
    core = mesh.cores[0]
    for first in range(0, 40_000, 1000):
        chains = tuple([ChainState(made_entries.ChainId(node_id(1), 1 + first + n), 5, 1) for n in range(1000)])
        mesh.tell(0, e.MessageReceived(node_id(1), BoardDifference(0, (0,), chains, reply=True)))
        mesh.now += 1.0
    assert core._mesh is not None
    peers = core._mesh._board._peers  # type: ignore[attr-defined]
    assert 0 < len(peers[node_id(1)].targets) <= 2048


def test_author_with_many_epochs_makes_no_node_send_without_end() -> None:
    mesh = mesh_of(4)
    moment = int(mesh.unix(0) * 1000)
    mesh.sent.clear()
    for epoch in range(1, 400):
        header = replace(made_entries.entry(1, moment, epoch=epoch).header, author=node_id(3))
        data, signature = sign_entry(header)
        made = made_entries.entry(1, moment, epoch=epoch)
        flood = replace(made, header=header, data=data, signature=signature, id=made_entries.entry_id(data))
        mesh.tell(0, e.MessageReceived(node_id(3), BoardEntries((flood,), push=True)))
        mesh.run(0.01)
    pushed = sum(isinstance(m, BoardEntries) and m.push for number, _, m in mesh.sent if number == 0)
    assert 0 < pushed <= 3 * 45
    assert len(mesh.boards[0].entries) <= 16
