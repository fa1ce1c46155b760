"""Owners of asyncio tasks: names, failures, cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import pytest

from meshllm.tasks import EagerTask, Owner, Signal


async def _fail() -> None:
    raise ValueError("no")


async def _wait_for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("awaited", "level"), [(False, logging.ERROR), (True, logging.DEBUG)])
async def test_owner_logs_a_failed_task_with_its_name(
    awaited: bool, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "meshllm.tasks")
    owner = Owner("owner", awaited=awaited)
    task = owner.start(_fail(), "work")
    await asyncio.wait({task})
    await owner.close()
    record = next(record for record in caplog.records if record.name == "meshllm.tasks")
    assert (record.levelno, "owner/work" in record.getMessage()) == (level, True)
    assert record.exc_info is not None


async def test_owner_reports_a_failed_task_to_on_error() -> None:
    failures: list[tuple[str, BaseException]] = []
    owner = Owner("owner", lambda name, error: failures.append((name, error)))
    await asyncio.wait({owner.start(_fail(), "work")})
    await owner.close()
    assert [(name, str(error)) for name, error in failures] == [("owner/work", "no")]


async def test_owner_close_cancels_running_tasks_and_refuses_new_ones() -> None:
    owner = Owner("owner")
    task = owner.start(_wait_for_ever(), "work")
    await owner.close()
    assert task.cancelled()
    with pytest.raises(RuntimeError, match="owner is closed and cannot start more"):
        owner.start(_wait_for_ever(), "more")


class _Steps:
    """An eager coroutine that writes down what it does."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.signal: Signal[str] = Signal()

    async def run(self, before: Awaitable[object] | None = None) -> None:
        try:
            self.done.append("started")
            if before is not None:
                self.done.append(f"got {await before}")
            self.done.append(f"got {await self.signal}")
        except asyncio.CancelledError:
            self.done.append("cancelled")
            raise
        finally:
            self.done.append("ended")


async def test_eager_task_starts_and_goes_on_without_the_event_loop() -> None:
    owner, steps = Owner("owner"), _Steps()
    owner.start_eagerly(steps.run(), "work")
    assert steps.done == ["started"]
    assert "owner/work" in repr(owner)
    steps.signal.set("one")
    steps.signal.set("two")
    assert steps.done == ["started", "got one", "ended"]
    assert "idle" in repr(owner)


async def test_eager_task_does_not_wait_for_a_signal_that_is_set() -> None:
    owner, steps = Owner("owner"), _Steps()
    steps.signal.set("one")
    owner.start_eagerly(steps.run(), "work")
    assert steps.done == ["started", "got one", "ended"]


async def test_eager_task_awaits_tasks_and_their_failures() -> None:
    owner, steps, failing = Owner("owner", awaited=True), _Steps(), _Steps()
    owner.start_eagerly(steps.run(owner.start(asyncio.sleep(0, "slept"), "step")), "work")
    failed = owner.start(_fail(), "step")
    owner.start_eagerly(failing.run(failed), "failing")
    assert (steps.done, failing.done) == (["started"], ["started"])
    await asyncio.wait({failed})
    await asyncio.sleep(0)
    assert (steps.done, failing.done) == (["started", "got slept"], ["started", "ended"])
    await owner.close()


async def test_eager_task_is_cancelled_at_once_while_it_waits_for_a_signal() -> None:
    owner, steps = Owner("owner"), _Steps()
    task = owner.start_eagerly(steps.run(), "work")
    task.cancel()
    assert steps.done == ["started", "cancelled", "ended"]
    steps.signal.set("late")
    task.cancel()
    assert steps.done == ["started", "cancelled", "ended"]


async def test_eager_task_cancels_the_task_that_it_awaits() -> None:
    owner, steps = Owner("owner"), _Steps()
    step = owner.start(_wait_for_ever(), "step")
    owner.start_eagerly(steps.run(step), "work").cancel()
    await asyncio.wait({step})
    await owner.close()
    assert step.cancelled()
    assert steps.done == ["started", "cancelled", "ended"]


async def test_eager_task_cancelled_while_its_future_is_done_keeps_the_result() -> None:
    """The result may be an open connection: it must reach the code that closes it."""
    owner, steps, future = Owner("owner"), _Steps(), asyncio.get_running_loop().create_future()
    task = owner.start_eagerly(steps.run(future), "work")
    future.set_result("connection")
    task.cancel()
    await asyncio.sleep(0)
    assert steps.done == ["started", "got connection", "cancelled", "ended"]


async def test_eager_task_that_cancels_itself_ends_at_its_next_wait() -> None:
    owner, steps = Owner("owner"), _Steps()
    tasks: list[EagerTask] = []

    async def cancel_itself() -> None:
        await go
        tasks[0].cancel()
        await steps.run()

    go: Signal[None] = Signal()
    tasks.append(owner.start_eagerly(cancel_itself(), "work"))
    go.set(None)
    assert steps.done == ["started", "cancelled", "ended"]


async def test_eager_task_failure_is_reported_with_its_name_and_not_raised_at_the_signal() -> None:
    failures: list[tuple[str, BaseException]] = []
    owner = Owner("owner", lambda name, error: failures.append((name, error)))
    go: Signal[None] = Signal()

    async def fail_later() -> None:
        await go
        await _fail()

    owner.start_eagerly(fail_later(), "work")
    go.set(None)
    assert [(name, str(error)) for name, error in failures] == [("owner/work", "no")]


async def test_owner_close_ends_eager_tasks_with_what_they_await() -> None:
    owner, steps, waits = Owner("owner"), _Steps(), _Steps()
    owner.start_eagerly(steps.run(), "work")
    owner.start_eagerly(waits.run(owner.start(_wait_for_ever(), "step")), "more")
    await owner.close()
    assert steps.done == waits.done == ["started", "cancelled", "ended"]
    with pytest.raises(RuntimeError, match="owner is closed and cannot start more"):
        owner.start_eagerly(_wait_for_ever(), "more")
