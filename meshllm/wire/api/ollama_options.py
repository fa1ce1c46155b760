"""The options of a request of Ollama's API, as the fields of OpenAI's that mean the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.refusal import RequestRefused, invalid

# Ollama's names and OpenAI's, or the engine's where OpenAI has none.
_FLOATS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
_INTEGERS = {
    "num_predict": "max_tokens",
    "top_k": "top_k",
    "seed": "seed",
    "repeat_last_n": "repeat_last_n",
    "mirostat": "mirostat",
}
# How a model is loaded, which is its host's to decide. The answer is the same: the context served is told by /api/show
# and /api/ps, and a prompt that does not fit is refused instead of cut.
_OF_THE_HOST = ("num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread")
# Values with which Ollama sets no limit, and no seed.
_NEGATIVE_IS_NONE = ("num_predict", "seed")
_KEEP_ALIVE = re.compile(r"[-+]?(?:\d{1,12}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h))+|[-+]?\d{1,12}")
MAX_INTEGER = 1 << 53
# Characters of a duration.
MAX_KEEP_ALIVE = 100


def openai_fields(options: object) -> dict[str, Any]:
    """The fields of OpenAI's API for `options`. RequestRefused for a value of another type than Ollama's.

    Names that Ollama does not know, or no longer, have no effect, as there.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise invalid("options", "'options' must be an object.")
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in _FLOATS:
            fields[_FLOATS[name]] = _number(name, value)
        elif name in _INTEGERS:
            number = _integer(name, value)
            # Ollama's runner counts only above 0.
            if not (name in _NEGATIVE_IS_NONE and number < (1 if name == "num_predict" else 0)):
                fields[_INTEGERS[name]] = number
        elif name == "stop":
            fields["stop"] = _texts(value)
        elif name in _OF_THE_HOST:
            _integer(name, value)
    return fields


def _wrong(name: str, kind: str) -> RequestRefused:
    return invalid(f"options.{name}", f'option "{name}" must be of type {kind}')


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "float32")
    return value


def _integer(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_INTEGER:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "integer")
    return value


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _wrong("stop", "array of strings")
    return [text for text in value if text]


def unloads(keep_alive: object) -> bool:
    """Whether a request unloads the model once it is answered. RequestRefused for what is no duration.

    Otherwise the value has no effect: the owner of a host decides how long a model stays (`--idle-unload`).
    """
    if keep_alive is None:
        return False
    if isinstance(keep_alive, str):
        if len(keep_alive) > MAX_KEEP_ALIVE or _KEEP_ALIVE.fullmatch(keep_alive) is None:
            shown = keep_alive[:40]
            raise invalid("keep_alive", f"'keep_alive' is {shown!r}: use a duration such as \"10m\", or seconds.")
        return all(float(number) == 0 for number in re.findall(r"\d+(?:\.\d+)?", keep_alive))
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, int | float):
        raise invalid("keep_alive", "'keep_alive' must be a duration such as \"10m\", or a number of seconds.")
    return keep_alive == 0
