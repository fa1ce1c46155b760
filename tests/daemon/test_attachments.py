"""Launchers that are attached to a node, and its end after the last of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from meshllm.daemon import attachments
from meshllm.daemon.attachments import Attachments
from meshllm.daemon.stopping import Stopping
from meshllm.errors import EnvironmentFailure


class Ended(asyncio.Event):
    """Set when the node is told to stop; in the place of `Stopping`."""

    begun = False

    def begin(self) -> bool:
        self.set()
        return True

    async def within(self, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            await self.wait()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A pipe in the place of standard input: (end of the node, end of the launcher)."""
    read, write = os.pipe()
    with os.fdopen(read) as file:
        monkeypatch.setattr("sys.stdin", file)
        yield read, write


async def test_node_ends_once_input_is_closed_and_all_have_gone(pipe: tuple[int, int]) -> None:
    ended = Ended()
    attached = Attachments(lambda: cast(Stopping, ended), ends=True, grace=0.01)
    attached.attach_input()
    assert attached.count == 1
    with attached.attach():
        os.write(pipe[1], b"what is written is no matter")
        os.close(pipe[1])
        with pytest.raises(TimeoutError):
            await ended.within(0.1)
        assert attached.count == 1
    await ended.within()


async def test_next_launcher_within_the_grace_keeps_the_node(pipe: tuple[int, int]) -> None:
    ended = Ended()
    attached = Attachments(lambda: cast(Stopping, ended), ends=True, grace=0.05)
    with attached.attach():
        pass
    with attached.attach(), pytest.raises(TimeoutError):
        await ended.within(0.2)
    await ended.within()
    os.close(pipe[1])


async def test_node_that_was_started_otherwise_never_ends_by_it(pipe: tuple[int, int]) -> None:
    ended = Ended()
    attached = Attachments(lambda: cast(Stopping, ended), ends=False, grace=0.0)
    attached.attach_input()
    os.close(pipe[1])
    with attached.attach():
        assert attached.count == 1
    with pytest.raises(TimeoutError):
        await ended.within(0.05)


async def test_input_that_cannot_be_watched_counts_as_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Ended()
    with open(os.devnull) as nothing:  # noqa: ASYNC230, PTH123 - a file that is never ready to read
        monkeypatch.setattr("sys.stdin", nothing)
        attached = Attachments(lambda: cast(Stopping, ended), ends=True, grace=0.0)
        attached.attach_input()
        await ended.within()
        attached.close()


async def test_attaching_is_bounded_and_refused_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_ATTACHED", 2)
    ended = Ended()
    attached = Attachments(lambda: cast(Stopping, ended), ends=True, grace=0.0)
    with ExitStack() as stack:
        stack.enter_context(attached.attach())
        stack.enter_context(attached.attach())
        with pytest.raises(EnvironmentFailure, match="2 launchers"):
            stack.enter_context(attached.attach())
        ended.begun = True
        with pytest.raises(EnvironmentFailure, match="stopping"):
            stack.enter_context(attached.attach())
        ended.begun = False
        attached.close()
        with pytest.raises(EnvironmentFailure, match="stopping"):
            stack.enter_context(attached.attach())
    with pytest.raises(TimeoutError):
        await ended.within(0.05)
