"""Bounds of the fields with which a request makes the engine allocate or compute, and their types.

Windows and lengths are cut to what has a meaning; lists that are too long are refused. Engine-internal fields, with
which its own template code drives grammars and parsers, are refused: hostile values end the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from meshllm.wire.api.prepared import Draft
from meshllm.wire.api.refusal import invalid, unsupported

# The samplers' windows: as long as any context here; the engine allocates and scans them.
MAX_WINDOW = 1 << 16
# The engine counts tokens in 32 bits and wraps: 2^32-1 would be endless.
MAX_TOKENS = (1 << 31) - 1
# OpenAI's limit is 20; completions of the engine's own take more.
MAX_TOP_LOGPROBS = 20
MAX_PROBS = 100
MAX_LOGIT_BIAS = 4096
MAX_STOPS = 256
MAX_STOP_LENGTH = 4096
MAX_SAMPLERS = 32
MAX_BREAKERS = 64
MAX_BREAKER_LENGTH = 64
MAX_WORDS = 64
LARGEST = 1 << 64
# Letters of a caller's text that a message repeats.
MAX_SHOWN = 40

_INTERNAL = (
    "chat_format",
    "chat_parser",
    "generation_prompt",
    "grammar_lazy",
    "grammar_triggers",
    "grammar_type",
    "message_delimiters",
    "parse_tool_calls",
    "preserved_tokens",
    "__metadata_user_id",
    "reasoning_budget_start_tag",
    "reasoning_budget_end_tag",
    "reasoning_budget_end_tags",
)
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
_WINDOWS = ("repeat_last_n", "dry_penalty_last_n")
_INTEGERS = frozenset(
    (
        *_LENGTHS,
        *_WINDOWS,
        "n",
        "n_cmpl",
        "best_of",
        "top_k",
        "n_probs",
        "top_logprobs",
        "min_keep",
        "n_keep",
        "n_discard",
        "n_indent",
        "n_cache_reuse",
        "dry_allowed_length",
        "mirostat",
        "sse_ping_interval",
        "reasoning_budget_tokens",
        "thinking_budget_tokens",
    )
)
_NUMBERS = frozenset(
    (
        "temperature",
        "top_p",
        "min_p",
        "typical_p",
        "top_n_sigma",
        "frequency_penalty",
        "presence_penalty",
        "repeat_penalty",
        "dry_multiplier",
        "dry_base",
        "xtc_probability",
        "xtc_threshold",
        "dynatemp_range",
        "dynatemp_exponent",
        "mirostat_tau",
        "mirostat_eta",
        "adaptive_target",
        "adaptive_decay",
        "seed",
        "t_max_predict_ms",
    )
)


_ANY = (-math.inf, math.inf)
# Outside of these a value has no meaning, and the engine would silently take another.
_RANGES = {"temperature": (0.0, math.inf), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0)}


def keep_bounds(draft: Draft) -> None:
    """Check the types and bounds of all sampling fields of a body, and cut windows; RequestRefused if it cannot."""
    for field, value in draft.given.items():
        rule = _RULES.get(field)
        if rule is not None and value is not None:
            rule(draft, field, value)


def wants_no_tokens(draft: Draft) -> bool:
    """Whether a request wants its prompt read and no token written (0), in an API that defines that.

    The engine writes one token at least: it is asked for that, and the answer must be cut. To be called before
    `keep_bounds`, which refuses a 0.
    """
    asked = [field for field in _LENGTHS if type(draft.get(field)) in (int, float) and draft.get(field) == 0]
    for field in asked:
        draft.set(field, 1)
    return bool(asked)


def choices_of(draft: Draft) -> int:
    """How many choices a request wants, in `n` or in the engine's own field, which then becomes `n`."""
    count = draft.get("n") or draft.get("n_cmpl") or 1
    if draft.get("n_cmpl") is not None:
        draft.set("n_cmpl", None)
        draft.set("n", count)
    return int(count)


def refuse_choices(body: Mapping[str, Any]) -> None:
    """Refuse several choices in an API whose answers have one: the engine would answer with a list of answers."""
    for field in ("n", "n_cmpl"):
        if body.get(field) not in (None, 1):
            raise unsupported(field, f"'{field}' is not supported in this API: an answer is one message.")


def refuse_large(field: str, value: object) -> None:
    """Refuse a number beyond 64 bits, which no integer or float of the engine holds as it was sent."""
    if isinstance(value, int | float) and abs(value) >= LARGEST:
        raise invalid(field, f"'{field}' is too large: numbers must fit into 64 bits.")


def _number(_draft: Draft, field: str, value: object) -> None:
    if type(value) is not float and type(value) is not int:
        raise invalid(field, f"'{field}' must be a number.")
    refuse_large(field, value)
    least, most = _RANGES.get(field, _ANY)
    if not least <= value <= most:
        raise invalid(field, f"'{field}' is {value:g}; it must be {_range_text(least, most)}.")


def _range_text(least: float, most: float) -> str:
    return f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"


def _integer(draft: Draft, field: str, value: object) -> None:
    if type(value) is int and 0 < value <= MAX_TOP_LOGPROBS:
        return  # within the bounds of all of them
    refuse_large(field, value)
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise invalid(field, f"'{field}' must be a whole number.")
    if number == 0 and field in _LENGTHS:
        if draft.get(field) == 0:
            raise invalid(field, f"'{field}' is 0; it must be 1 or more.")
        return
    most = MAX_TOKENS
    if field in _WINDOWS:
        number, most = MAX_WINDOW if number == -1 else number, MAX_WINDOW
    elif field == "top_logprobs" and number > MAX_TOP_LOGPROBS:
        raise invalid(field, f"'{field}' is {number}; at most {MAX_TOP_LOGPROBS} is accepted.")
    elif field == "n_probs" and number > MAX_PROBS:
        raise invalid(field, f"'{field}' is {number}; at most {MAX_PROBS} is accepted.")
    least = -1 if field in _LENGTHS or field in _SIGNED else 0
    if number < least:
        bound = "1 or more, or -1 for no limit" if field in _LENGTHS else f"{least} or more"
        raise invalid(field, f"'{field}' is {number}; it must be {bound}.")
    if number > most or number is not value:
        draft.set(field, min(number, most))


_SIGNED = frozenset(("n_keep", "sse_ping_interval", "reasoning_budget_tokens", "thinking_budget_tokens", "top_k"))


def _internal(_draft: Draft, field: str, _value: object) -> None:
    raise unsupported(field, f"'{field}' is internal to the engine and cannot be set.")


def _logit_bias(_draft: Draft, field: str, value: Any) -> None:
    if not isinstance(value, dict | list):
        raise invalid(field, f"'{field}' must be an object of tokens and numbers.")
    if len(value) > MAX_LOGIT_BIAS:
        raise invalid(field, f"'{field}' has {len(value)} entries; at most {MAX_LOGIT_BIAS} are accepted.")
    pairs = value.items() if isinstance(value, dict) else value
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise invalid(field, f"'{field}' must be a list of pairs of token and number.")
        token, bias = pair
        if isinstance(token, str) and len(token) > MAX_STOP_LENGTH:
            raise invalid(field, f"'{field}' has a text of {len(token)} characters for a token.")
        if not isinstance(token, str | int) or isinstance(token, bool):
            raise invalid(field, f"'{field}' must name tokens by their numbers or texts.")
        where = f"{field}.{str(token)[:MAX_SHOWN]}"
        if isinstance(bias, str):
            raise invalid(where, f"'{where}' is the text {bias[:MAX_SHOWN]!r}; it must be a number.")
        if not (bias is False or _is_number(bias)):
            raise invalid(where, f"'{where}' must be a number.")
        refuse_large(where, bias)
        refuse_large(where, token)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stop(draft: Draft, field: str, value: Any) -> None:
    if isinstance(value, str):
        if not value:
            draft.set(field, None)
        return
    words = _words(field, value, MAX_STOPS, MAX_STOP_LENGTH)
    if "" in words:  # the engine would stop at once
        draft.set(field, [word for word in words if word] or None)


def _words(field: str, value: object, most: int, length: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise invalid(field, f"'{field}' must be a list of texts.")
    if len(value) > most or any(len(word) > length for word in value):
        raise invalid(field, f"'{field}' has too many or too long entries: at most {most} of {length} characters.")
    return value


def _samplers(_draft: Draft, field: str, value: object) -> None:
    if isinstance(value, str):
        if len(value) > MAX_SAMPLERS:
            raise invalid(field, f"'{field}' has {len(value)} entries; at most {MAX_SAMPLERS} are accepted.")
        names = list(value)
    else:
        names = _words(field, value, MAX_SAMPLERS, MAX_BREAKER_LENGTH)
    known = _SAMPLER_LETTERS if isinstance(value, str) else _SAMPLER_NAMES
    for name in names:
        if name in ("i", "infill"):
            # It compares all pairs of tokens: one request would stop the engine for minutes.
            raise unsupported(field, f"'{field}' has 'infill', which is not supported here.")
        if name not in known:  # the engine would leave it out
            raise invalid(field, f"'{field}' has {name!r}; known are {', '.join(_SAMPLERS.values())}.")
    if len(set(names)) < len(names):
        raise invalid(field, f"'{field}' must have each sampler once.")


# By the engine's letter for each.
_SAMPLERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "a": "adaptive_p",
}
_SAMPLER_LETTERS = frozenset(_SAMPLERS)
_SAMPLER_NAMES = frozenset(
    ("nucleus", "temp", "typ", *(name.replace("_", mark) for name in _SAMPLERS.values() for mark in ("_", "-", "")))
)


def _response_fields(_draft: Draft, field: str, value: object) -> None:
    _words(field, value, MAX_WORDS, MAX_WORDS)


def _breakers(_draft: Draft, field: str, value: object) -> None:
    if not _words(field, value, MAX_BREAKERS, MAX_BREAKER_LENGTH):
        raise invalid(field, f"'{field}' must not be empty.")


def _reasoning_format(_draft: Draft, field: str, value: object) -> None:
    formats = ("none", "auto", "deepseek", "deepseek-legacy")
    if value not in formats:
        raise invalid(field, f"'{field}' must be one of {', '.join(formats)}.")


def _reasoning_effort(_draft: Draft, field: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > MAX_WORDS:
        raise invalid(field, f"'{field}' must be a text.")


def _kwargs(_draft: Draft, field: str, value: object) -> None:
    if not isinstance(value, dict):
        raise invalid(field, f"'{field}' must be an object.")
    if not isinstance(value.get("enable_thinking"), bool | None):
        raise invalid(f"{field}.enable_thinking", f"'{field}.enable_thinking' must be true or false.")


def _boolean(_draft: Draft, field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise invalid(field, f"'{field}' must be true or false.")


def _post_sampling(draft: Draft, field: str, value: object) -> None:
    _boolean(draft, field, value)
    if value:
        raise unsupported(field, f"'{field}' is not supported: log-probabilities are those before sampling.")


def _text(_draft: Draft, field: str, value: object) -> None:
    if not isinstance(value, str):
        raise invalid(field, f"'{field}' must be a text.")


_BOOLEANS = (
    "cache_prompt",
    "return_tokens",
    "return_progress",
    "timings_per_token",
    "verbose",
    "ignore_eos",
    "backend_sampling",
    "add_generation_prompt",
    "parallel_tool_calls",
    "reasoning_control",
    "echo",
)
_RULES: dict[str, Callable[[Draft, str, Any], None]] = {
    **dict.fromkeys(_INTERNAL, _internal),
    **dict.fromkeys(_INTEGERS, _integer),
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(_BOOLEANS, _boolean),
    "logit_bias": _logit_bias,
    "stop": _stop,
    "stop_sequences": _stop,
    "response_fields": _response_fields,
    "samplers": _samplers,
    "dry_sequence_breakers": _breakers,
    "reasoning_format": _reasoning_format,
    "reasoning_effort": _reasoning_effort,
    "chat_template_kwargs": _kwargs,
    "grammar": _text,
    "post_sampling_probs": _post_sampling,
}
