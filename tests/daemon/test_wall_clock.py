"""The clock that never goes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.daemon.wall_clock import CLOCK_FILE, SAVE_SECONDS, WallClock

NOW = 1_900_000_000.0


def test_wall_clock_does_not_go_back_within_a_run_or_after_it(tmp_path: Path) -> None:
    times = [NOW]
    clock = WallClock(tmp_path, lambda: times[0])
    assert clock.now() == NOW
    times[0] = NOW - 3600
    assert clock.now() == NOW
    clock.save()
    assert (tmp_path / CLOCK_FILE).stat().st_mode & 0o777 == 0o600
    later = WallClock(tmp_path, lambda: times[0])
    assert later.now() == NOW
    times[0] = NOW + 5
    assert later.now() == NOW + 5


def test_wall_clock_reports_a_clock_that_is_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WallClock(tmp_path, lambda: NOW).save()
    WallClock(tmp_path, lambda: NOW - 60)
    assert caplog.records == []
    WallClock(tmp_path, lambda: NOW - 3600)
    assert "3600 s behind" in caplog.text
    assert str(tmp_path / CLOCK_FILE) in caplog.text


@pytest.mark.parametrize("content", ["", "x", "-5", "99999999999999999", "\x00", "1e9", "9" * 1000])
def test_wall_clock_ignores_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / CLOCK_FILE).write_text(content)
    assert WallClock(tmp_path, lambda: NOW).now() == NOW


def test_wall_clock_asks_to_be_saved_now_and_then(tmp_path: Path) -> None:
    times = [NOW]
    clock = WallClock(tmp_path, lambda: times[0])
    assert clock.due()
    clock.save()
    assert not clock.due()
    times[0] += SAVE_SECONDS
    assert clock.due()


def test_wall_clock_survives_a_home_that_takes_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = WallClock(tmp_path / "missing", lambda: NOW)
    clock.save()
    assert "cannot be written" in caplog.text
    assert clock.now() == NOW
