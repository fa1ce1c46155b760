"""How fast this machine reads prompts with each model, measured from requests and kept over restarts; and the batch
that follows from it.

A processor computes a whole batch of a long prompt between two tokens of the streams beside it: on a slow machine they
wait for seconds. An engine takes its batch at its start only, and none is started again for it.

Invariant: a file that cannot be read or written costs the figures, never a start.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshllm.core.memory.speculation import DraftCounts
from meshllm.engine.processes.llama_server import PROCESSOR_BATCH
from meshllm.models.library.local_model import LocalModel
from meshllm.util.atomic_file import replace_file

log = logging.getLogger(__name__)

FILE: Final = "prompt-speeds.json"
FORMAT: Final = 1
MAX_BYTES: Final = 256 << 10
MAX_MODELS: Final = 256
# Mean time of a batch. The last ones of an 8,000-token prompt take 1.7 times as long, and no stream shall wait for
# longer than 1.5 s.
BATCH_SECONDS: Final = 0.75
# Processor time of a prompt of SmolLM2-135M, one thread, x batches of 256: 1.02 with 128, 1.04 with 96, 1.11 with 64.
LEAST_BATCH: Final = 128
STEP: Final = 32
# A busy machine measures too little, and smaller batches would make it slower still, because the threads wait for each
# other in each: the best figure counts, and fades by this much with each slower one.
FADING: Final = 0.95
# A shorter prompt says little: its share of the time is mostly overhead.
LEAST_TOKENS: Final = 512
MAX_SPEED: Final = 1e9


@dataclass(frozen=True, slots=True)
class PromptSpeed:
    """`speed`: tokens of prompts in a second, measured with `tokens` of them between two looks at the engine."""

    speed: float
    tokens: int


def batch_for(speed: float | None) -> int:
    """Tokens of a batch for a processor that reads `speed` tokens of prompts in a second (None: not known)."""
    if speed is None:
        return PROCESSOR_BATCH
    wanted = STEP * round(speed * BATCH_SECONDS / STEP)
    return max(LEAST_BATCH, min(PROCESSOR_BATCH, wanted))


def measured(before: PromptSpeed | None, tokens: int, seconds: float) -> PromptSpeed | None:
    """The figure after `tokens` of prompts were read in `seconds`: `before` if they say less than it.

    Prompts become slower with their length, so a figure of long ones is not replaced by one of short ones.
    """
    if tokens < LEAST_TOKENS or not seconds > 0 or (before is not None and tokens < before.tokens / 2):
        return before
    speed = min(MAX_SPEED, tokens / seconds)
    return PromptSpeed(speed if before is None else max(speed, FADING * before.speed), tokens)


class PromptSpeeds:
    """The figures of all models, in a file of the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        self._known: dict[str, PromptSpeed] | None = None
        # Of each engine: tokens and seconds of prompts at the last look. A new process counts on (`DraftStats`).
        self._seen: dict[str, tuple[int, float]] = {}

    def batch(self, model: LocalModel) -> int:
        """Tokens of a batch for `model` on the processor. Reads a small file once."""
        known = self._load().get(_key(model))
        return batch_for(None if known is None else known.speed)

    def note(self, models: Mapping[str, LocalModel], counts: Mapping[str, DraftCounts]) -> None:
        """Take over what the engines of `models` have read until now. Writes a small file after a long prompt."""
        changed = False
        for name, model in models.items():
            count = counts.get(name)
            if count is None or not count.read:
                continue
            tokens, seconds = self._seen.get(name, (0, 0.0))
            if count.read <= tokens:
                continue
            self._seen[name] = count.read, count.read_seconds
            known, key = self._load(), _key(model)
            found = measured(known.get(key), count.read - tokens, count.read_seconds - seconds)
            if found is not None and found != known.get(key):
                known.pop(key, None)
                known[key] = found
                changed = True
        if changed:
            self._save()

    def _load(self) -> dict[str, PromptSpeed]:
        if self._known is None:
            self._known = _read(self._path)
        return self._known

    def _save(self) -> None:
        known = self._load()
        while len(known) > MAX_MODELS:
            del known[next(iter(known))]
        models = {key: {"speed": round(one.speed, 3), "tokens": one.tokens} for key, one in known.items()}
        try:
            replace_file(self._path, json.dumps({"format": FORMAT, "models": models}, indent=1), mode=0o600)
        except OSError as error:
            log.warning("%s cannot be written (%s): a restart measures them again.", self._path, error)


def _key(model: LocalModel) -> str:
    """The model's file, whatever it is called."""
    return model.digest or f"{model.path.name}:{model.size}"


def _read(path: Path) -> dict[str, PromptSpeed]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.20}")
        return {str(key): _speed(value) for key, value in list(content["models"].items())[-MAX_MODELS:]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read (%s): batches start without what was measured.", path, error)
        return {}


def _speed(value: Any) -> PromptSpeed:
    """One figure. Raises ValueError, TypeError or KeyError."""
    speed, tokens = value["speed"], value["tokens"]
    if type(speed) not in (int, float) or not (math.isfinite(speed) and 0 < speed <= MAX_SPEED):
        raise ValueError("a speed is out of range")
    if type(tokens) is not int or not 0 < tokens < 1 << 53:
        raise ValueError("a number of tokens is out of range")
    return PromptSpeed(float(speed), tokens)
