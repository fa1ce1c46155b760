"""A flood of lines of one place in the program."""

from __future__ import annotations

import logging
from pathlib import Path

from meshllm.daemon.log_file import LogFile, RotatingFile
from meshllm.daemon.log_flood import ACCESS_LOGGER, BURST, RATE, FloodFilter


def test_flood_of_one_place_is_counted_and_other_places_still_log() -> None:
    times = [0.0]
    flood = FloodFilter(lambda: times[0])

    def record(line: int, name: str = "meshllm.x") -> logging.LogRecord:
        return logging.LogRecord(name, logging.INFO, "x.py", line, "peer %s", ("a",), None)

    assert sum(flood.filter(record(1)) for _ in range(10_000)) == BURST
    assert flood.filter(record(2))
    assert all(flood.filter(record(3, ACCESS_LOGGER)) for _ in range(1000))
    times[0] = 2 / RATE
    told = record(1)
    assert flood.filter(told)
    assert told.fields == {"left_out": 10_000 - BURST}  # type: ignore[attr-defined]
    told = record(1)
    assert flood.filter(told)
    assert not hasattr(told, "fields")


def test_log_file_stays_small_under_a_flood(tmp_path: Path) -> None:
    logger = logging.Logger("meshllm.flood")
    handler = LogFile(RotatingFile(tmp_path / "daemon.log"))
    logger.addHandler(handler)
    handler.start()
    for number in range(50_000):
        logger.warning("refused %d", number)
    logger.warning("another line")
    handler.close()
    lines = (tmp_path / "daemon.log").read_text().splitlines()
    assert BURST < len(lines) < 10 * BURST
    assert lines[-1].endswith("another line")
