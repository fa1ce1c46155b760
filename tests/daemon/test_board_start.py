"""The blackboard of a node that starts: callers wait a moment, and are told why where there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshllm.core.board.service import BoardWriter, FeedQuery, PostWish, SearchQuery
from meshllm.daemon.board_shield import STOPPING
from meshllm.daemon.board_start import SWITCHED_OFF, BoardPart
from meshllm.daemon.settings import Settings
from meshllm.errors import BoardOff
from meshllm.tasks import Owner
from tests.local_board import LocalBoard


def part(tmp_path: Path, **fields: bool) -> BoardPart:
    return BoardPart(Settings(home=tmp_path, **fields), lambda event: None, lambda cursor: None)


async def test_post_waits_until_the_board_is_open(tmp_path: Path) -> None:
    starting = part(tmp_path)
    waiting = Owner("test").start(starting.board.post(PostWish("early")), "post")
    await asyncio.sleep(0)
    assert not waiting.done()
    board = LocalBoard()
    starting._set_ready(board)
    assert (await waiting).post.text == "early"
    assert starting.board is board


async def test_callers_that_wait_are_told_that_the_node_stops(tmp_path: Path) -> None:
    starting = part(tmp_path)
    waiting = Owner("test").start(starting.board.feed(FeedQuery()), "feed")
    await asyncio.sleep(0)
    await starting.close()
    with pytest.raises(BoardOff, match=STOPPING):
        await waiting


async def test_node_without_a_board_says_why_at_once(tmp_path: Path) -> None:
    off = part(tmp_path, blackboard=False).board
    for call in (
        off.post(PostWish("text")), off.feed(FeedQuery()), off.search(SearchQuery("x")), off.retract("abcd"),
        off.notice(BoardWriter("ann"), ""),
    ):  # fmt: skip
        with pytest.raises(BoardOff, match=SWITCHED_OFF):
            await call
    assert off.facts().reason == SWITCHED_OFF
    starting = part(tmp_path)
    starting.open(None, "no UDP port can be opened")
    with pytest.raises(BoardOff, match="no UDP port"):
        await starting.board.post(PostWish("text"))
    assert not starting.board.facts().enabled
