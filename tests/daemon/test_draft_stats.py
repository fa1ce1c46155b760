"""What becomes of guesses is asked of engines after requests, and is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from meshllm.core.memory.speculation import PLAIN, DraftCounts, DraftSource, Speculation
from meshllm.core.snapshot import ModelState, ServerFacts, ServerPhase, Snapshot
from meshllm.daemon.draft_stats import DraftStats

NGRAMS = Speculation(DraftSource.NGRAMS)


def serving(*models: tuple[str, str, Speculation]) -> Snapshot:
    return Snapshot(
        models=tuple(
            ModelState(name, server_facts=ServerFacts(socket, 1, 4, 4096, speculation=how))
            for name, socket, how in models
        )
    )


class Engines:
    """What engines answer; `answers` an exception or counts, by socket. `moved` is set at each question and change."""

    def __init__(self) -> None:
        self.answers: dict[str, DraftCounts | Exception] = {}
        self.asked: list[str] = []
        self.moved = asyncio.Event()

    async def ask(self, socket: str) -> DraftCounts:
        self.asked.append(socket)
        self.moved.set()
        await asyncio.sleep(0)
        answer = self.answers[socket]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not so():
                self.moved.clear()
                await self.moved.wait()


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
async def acceptance(engines: Engines) -> AsyncIterator[DraftStats]:
    made = DraftStats(engines.ask, engines.moved.set, pause=0.0)
    yield made
    await made.close()


async def test_engine_is_asked_only_after_requests(engines: Engines, acceptance: DraftStats) -> None:
    engines.answers["/a"] = DraftCounts(10, 6)
    acceptance.publish(serving(("m", "/a", NGRAMS)))
    assert acceptance.counts() == {"m": DraftCounts()}
    assert engines.asked == []
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["m"] == DraftCounts(10, 6))
    engines.answers["/a"] = DraftCounts(20, 9)
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["m"] == DraftCounts(20, 9))


async def test_refresh_during_a_question_asks_once_more(engines: Engines, acceptance: DraftStats) -> None:
    engines.answers["/a"] = DraftCounts(1, 1)
    acceptance.publish(serving(("m", "/a", NGRAMS)))
    acceptance.refresh()
    await engines.until(lambda: len(engines.asked) == 1)
    for _ in range(5):
        acceptance.refresh()
    await engines.until(lambda: len(engines.asked) == 2)
    acceptance.publish(serving(("m", "/a", NGRAMS), ("n", "/b", NGRAMS)))
    engines.answers["/b"] = DraftCounts(2, 2)
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["n"] == DraftCounts(2, 2))
    assert engines.asked == ["/a", "/a", "/a", "/b"]


async def test_engines_without_drafts_are_not_asked(engines: Engines, acceptance: DraftStats) -> None:
    engines.answers["/b"] = DraftCounts(4, 4)
    acceptance.publish(serving(("plain", "/a", PLAIN), ("m", "/b", NGRAMS)))
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["m"] == DraftCounts(4, 4))
    assert "/a" not in engines.asked
    assert "plain" not in acceptance.counts()


async def test_counts_of_an_ended_process_are_kept(engines: Engines, acceptance: DraftStats) -> None:
    engines.answers = {"/a": DraftCounts(10, 5), "/b": DraftCounts(3, 3)}
    acceptance.publish(serving(("m", "/a", NGRAMS)))
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["m"] == DraftCounts(10, 5))
    acceptance.publish(Snapshot(models=(ModelState("m"),)))
    assert acceptance.counts() == {"m": DraftCounts(10, 5)}
    acceptance.publish(serving(("m", "/b", NGRAMS)))
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["m"] == DraftCounts(13, 8))


@pytest.mark.parametrize("trouble", [ConnectionRefusedError(), TimeoutError(), ValueError("no HTTP")])
async def test_silent_engine_changes_no_counts(engines: Engines, acceptance: DraftStats, trouble: Exception) -> None:
    engines.answers = {"/a": DraftCounts(10, 5), "/b": DraftCounts(2, 1)}
    acceptance.publish(serving(("m", "/a", NGRAMS), ("n", "/b", NGRAMS)))
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["m"] == DraftCounts(10, 5))
    engines.answers = {"/a": trouble, "/b": DraftCounts(3, 1)}
    acceptance.refresh()
    await engines.until(lambda: acceptance.counts()["n"] == DraftCounts(3, 1))
    assert acceptance.counts()["m"] == DraftCounts(10, 5)


async def test_question_to_a_stopping_engine_is_cancelled() -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def ask(socket: str) -> DraftCounts:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()
        raise AssertionError

    acceptance = DraftStats(ask, lambda: None, pause=0.0)
    running = serving(("m", "/a", NGRAMS))
    acceptance.publish(running)
    acceptance.refresh()
    async with asyncio.timeout(30):
        await asked.wait()
        ending = replace(running.models[0], server=ServerPhase.STOPPING)
        acceptance.publish(Snapshot(models=(ending,)))
        await hung_up.wait()
    asked.clear()
    acceptance.refresh()
    await asyncio.sleep(0)
    assert not asked.is_set()
    await acceptance.close()


async def test_close_stops_asking(engines: Engines, acceptance: DraftStats) -> None:
    acceptance.publish(serving(("m", "/a", NGRAMS)))
    await acceptance.close()
    acceptance.refresh()
    assert engines.asked == []
