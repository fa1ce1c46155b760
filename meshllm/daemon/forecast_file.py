"""`forecasts.json`: what the forecasts of splits learned, kept over a restart.

Invariant: a file that cannot be read costs the corrections, never the start.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meshllm.core.ids import NODE_ID_BYTES, NodeId
from meshllm.core.split.corrections import (
    LEAST_FACTOR,
    MAX_CORRECTIONS,
    MOST_FACTOR,
    MOST_STEPS,
    Correction,
    aged,
)
from meshllm.core.split.lease import MAX_SHARES
from meshllm.util.atomic_file import replace_file

log = logging.getLogger(__name__)

FILE = "forecasts.json"
FORMAT = 1
# A full file has half of this.
MAX_BYTES = 1 << 20
MAX_SPEED = 1e18


def load(home: Path, now: float, unix: float) -> tuple[Correction, ...]:
    """The corrections in the file of `home`, with times on the clock that shows `now`; `unix`: the calendar time now.

    () if there is no file, or one that is damaged or of another version, which is logged.
    """
    path = home / FILE
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.20}")
        found = [_read(each, unix) for each in content["corrections"][-MAX_CORRECTIONS:]]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("%s cannot be read (%s): forecasts of splits start without what was measured.", path, error)
        return ()
    return aged(found, now - unix)


def save(home: Path, known: Iterable[Correction], now: float, unix: float) -> None:
    """Write the corrections, whose times are on the clock that shows `now`. Raises OSError."""
    corrections = [
        {
            "nodes": [node.hex() for node in each.nodes],
            "size": each.size,
            "speed": each.speed,
            "used_speed": each.used_speed,
            "factor": each.factor,
            "steps": each.steps,
            "measured": round(each.at, 3),
        }
        for each in aged(known, unix - now)
    ]
    text = json.dumps({"format": FORMAT, "corrections": corrections}, indent=1)
    replace_file(home / FILE, text, mode=0o600)


def _read(value: Any, unix: float) -> Correction:
    """One correction, with its time in unix seconds. Raises ValueError, TypeError or KeyError."""
    nodes = [bytes.fromhex(node) for node in value["nodes"]]
    if not 1 <= len(nodes) <= MAX_SHARES or any(len(node) != NODE_ID_BYTES for node in nodes):
        raise ValueError("a correction is not for nodes")
    size = value["size"]
    if type(size) is not int or not 0 <= size < 64:
        raise ValueError("a class is out of range")
    return Correction(
        nodes=tuple(sorted(NodeId(node) for node in nodes)),
        size=size,
        speed=_number(value["speed"], 1e-9, MAX_SPEED),
        used_speed=_number(value["used_speed"], 1e-9, MAX_SPEED),
        factor=_number(value["factor"], LEAST_FACTOR, MOST_FACTOR),
        steps=_number(value["steps"], 0.0, MOST_STEPS),
        # A clock that was set back must not make a measurement last longer.
        at=min(unix, _number(value["measured"], 0.0, 1e12)),
    )


def _number(value: Any, least: float, most: float) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("a number is missing")
    return min(max(float(value), least), most)
