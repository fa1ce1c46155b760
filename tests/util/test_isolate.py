"""Isolation of subscribers: logged by name, counted, rate-limited in the log, never fatal."""

from __future__ import annotations

import asyncio

import pytest

from meshllm.util.isolate import REPORT_SECONDS, Isolation


def broken() -> None:
    raise KeyError("a defect")


def test_isolation_logs_and_counts_a_call_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    isolation = Isolation(lambda: now[0])
    calls: list[int] = []
    assert not isolation.run("one", broken)
    assert isolation.run("two", lambda: calls.append(1))
    assert calls == [1]
    assert "one failed" in caplog.text
    assert "KeyError: 'a defect'" in caplog.text
    assert not isolation.run("one", broken)
    assert caplog.text.count("one failed") == 1
    now[0] = REPORT_SECONDS
    assert not isolation.run("one", broken)
    assert caplog.text.count("one failed") == 2
    assert isolation.failures == {"one": 3}


def test_isolation_lets_cancellation_pass() -> None:
    def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        Isolation().run("one", cancelled)
