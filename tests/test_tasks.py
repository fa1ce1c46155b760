"""Owners of asyncio tasks: names, failures, cancellation."""

from __future__ import annotations

import asyncio
import logging

import pytest

from meshllm.tasks import Owner


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
