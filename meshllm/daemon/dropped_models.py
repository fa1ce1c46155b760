"""`dropped-models.json`: the models that the owner dropped, and until when the mesh's request does not bring them back.

A damaged or foreign file counts for nothing: it is only a wish of the owner, who can drop a model again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from meshllm.core.node import DROPPED_SECONDS
from meshllm.util.atomic_file import replace_file

log = logging.getLogger(__name__)

FILE: Final = "dropped-models.json"
MAX_BYTES: Final = 1 << 20
MAX_MODELS: Final = 1000


def load(home: Path, now: float, unix: float) -> dict[str, float]:
    """The models in the file, with times on the clock of `now`; `unix`: the calendar time. Blocks."""
    try:
        with (home / FILE).open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read and is ignored: %s", home / FILE, error)
        return {}
    if not isinstance(found, dict):
        return {}
    left = {
        name: min(float(until) - unix, DROPPED_SECONDS)
        for name, until in list(found.items())[:MAX_MODELS]
        if isinstance(until, int | float) and not isinstance(until, bool)
    }
    return {name: now + seconds for name, seconds in left.items() if seconds > 0}


def save(home: Path, dropped: Mapping[str, float], now: float, unix: float) -> None:
    """Write the file. Blocks; raises OSError."""
    times = {name: round(unix + until - now) for name, until in list(dropped.items())[-MAX_MODELS:]}
    replace_file(home / FILE, json.dumps(times), mode=0o600)
