"""Moments for people, as the time of day on this machine: when a member was seen last, when a model is unloaded."""

from __future__ import annotations

from datetime import datetime, timedelta


def clock_text(seconds_ago: float, now: datetime | None = None) -> str:
    """The local time `seconds_ago` (negative: to come): "18:53" today, "27 Nov 18:53" on another day. `now`: local
    time, for tests."""
    current = now or datetime.now().astimezone()
    then = current - timedelta(seconds=seconds_ago)
    time = then.strftime("%H:%M")
    return time if then.date() == current.date() else f"{then.day} {then.strftime('%b')} {time}"


def away_text(members: list[tuple[str, float]], most: int = 3) -> str:
    """The members that are away, each with the seconds since it was seen: "cellar last seen 18:53 and 2 more"."""
    shown = ", ".join(f"{name} last seen {clock_text(ago)}" for name, ago in members[:most])
    return f"{shown} and {len(members) - most} more" if len(members) > most else shown
