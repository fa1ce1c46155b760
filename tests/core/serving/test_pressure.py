"""Taken slots are pressure only if it lasts, and end with it only if that lasts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.records import ModelLoad
from meshllm.core.serving.pressure import FULL_SECONDS, PRESSED_SECONDS, RELIEVED_SECONDS, PressureWatch

SLOTS = {"m": 4}


def after(watch: PressureWatch, active: int, waiting: int, now: float) -> bool:
    watch.update([ModelLoad("m", active, waiting)], SLOTS, now)
    return "m" in watch.pressed


def test_pressure_needs_thirty_seconds_without_a_break() -> None:
    watch = PressureWatch()
    assert not after(watch, 4, 1, 0.0)
    assert watch.next_deadline(0.0) == PRESSED_SECONDS
    assert not after(watch, 3, 0, 20.0)
    assert not after(watch, 4, 1, 21.0)
    assert not after(watch, 4, 1, 21.0 + PRESSED_SECONDS - 1)
    assert after(watch, 4, 9, 21.0 + PRESSED_SECONDS)


def test_full_slots_are_pressure_after_two_minutes() -> None:
    watch = PressureWatch()
    assert not after(watch, 4, 0, 0.0)
    assert not after(watch, 4, 0, PRESSED_SECONDS)
    assert watch.next_deadline(PRESSED_SECONDS) == FULL_SECONDS
    assert after(watch, 4, 0, FULL_SECONDS)


def test_pressure_ends_after_a_minute_with_free_slots() -> None:
    watch = PressureWatch()
    after(watch, 4, 2, 0.0)
    assert after(watch, 4, 2, 100.0)
    assert after(watch, 2, 0, 500.0), "half of the slots"
    assert after(watch, 1, 0, 501.0)
    assert watch.next_deadline(501.0) == 501.0 + RELIEVED_SECONDS
    assert after(watch, 2, 0, 530.0)
    assert after(watch, 1, 0, 540.0)
    assert not after(watch, 1, 0, 540.0 + RELIEVED_SECONDS)
    assert watch.next_deadline(700.0) is None


@given(st.floats(0.0, 1e7))
def test_deadline_is_never_too_early(since: float) -> None:
    watch = PressureWatch()
    after(watch, 4, 1, since)
    due = watch.next_deadline(since)
    assert due is not None
    assert after(watch, 4, 1, due)


def test_model_that_is_not_served_any_more_is_not_pressed() -> None:
    watch = PressureWatch()
    after(watch, 9, 9, 0.0)
    assert after(watch, 9, 9, 100.0)
    assert watch.update([], {}, 101.0)
    assert not watch.pressed
