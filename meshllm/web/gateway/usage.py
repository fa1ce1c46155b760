"""Token counts in responses, read from the bytes that are forwarded anyway; no JSON is parsed.

A model's own text cannot fake a count: inside a JSON string, quotes are escaped.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from meshllm.wire.api.routes import Api

# The pieces of a stream in which its last events are found: finish, usage and [DONE] may arrive one by one.
TAIL_PIECES = 4
# The parts of a whole response that are searched: servers write `usage` first or last.
_EDGE_BYTES = 4096
_OBJECT_BYTES = 1024
_MESSAGES = Api.MESSAGES  # see `routes.ENGINE`
_USAGE = b'"usage"'
_TIMINGS = b'"timings"'  # of llama-server, in the last event, also if the caller did not ask for usage
# All counts in one pass: a search for each costs every request some microseconds.
_COUNTS = re.compile(
    rb'"(?:(prompt|input)_tokens|(completion|output)_tokens|(cached_tokens|cache_read_input_tokens)'
    rb'|(cache_creation_input_tokens))":\s?(\d{1,12})'
)
_SEQUENCE = re.compile(rb'"sequence_number":\s?(\d{1,12})')
_PROMPT_N = re.compile(rb'"prompt_n":\s?(\d{1,12})')
_CACHE_N = re.compile(rb'"cache_n":\s?(\d{1,12})')
_PREDICTED_N = re.compile(rb'"predicted_n":\s?(\d{1,12})')


@dataclass(slots=True)
class TokenUsage:
    """Token counts of a response; None: not reported. `prompt` includes `cached`."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None


class UsageReader:
    """Keeps the pieces of one stream that hold token counts. `add` each piece; `read` at the end."""

    __slots__ = ("_anthropic", "_first", "_tail", "add")

    def __init__(self, api: Api) -> None:
        self._anthropic = api is _MESSAGES
        self._first = b""
        self._tail: deque[bytes] = deque(maxlen=TAIL_PIECES)
        # Called with each forwarded piece; bound to C code where nothing else is to do.
        self.add: Callable[[bytes], None] = self._add if self._anthropic else self._tail.append

    def _add(self, data: bytes) -> None:
        if not self._first:
            self._first = data
        self._tail.append(data)

    def last_number(self) -> int:
        """The last sequence number in the stream (`/v1/responses`) so far; 0 if there is none in its last pieces."""
        found = _SEQUENCE.findall(b"".join(self._tail))
        return int(found[-1]) if found else 0

    def read(self) -> TokenUsage:
        """The counts in the stream so far."""
        usage = usage_in(b"".join(self._tail), anthropic=self._anthropic)
        if self._anthropic and usage.prompt is None:
            # `message_start` counts the input, `message_delta` the output.
            start = usage_in(self._first, anthropic=True)
            usage.prompt, usage.cached = start.prompt, start.cached
        return usage


def whole_usage(api: Api, body: bytes) -> TokenUsage:
    """The counts in a response that is not a stream."""
    anthropic = api is _MESSAGES
    if len(body) <= 2 * _EDGE_BYTES:
        return usage_in(body, anthropic=anthropic)
    usage = usage_in(body[-_EDGE_BYTES:], anthropic=anthropic)
    return usage if usage.prompt is not None else usage_in(body[:_EDGE_BYTES], anthropic=anthropic)


def usage_in(data: bytes, *, anthropic: bool) -> TokenUsage:
    """The counts in the last usage or timings object in `data`."""
    at = data.rfind(_USAGE)
    if at >= 0:
        part = data[at : at + _OBJECT_BYTES]
        prompt = completion = cached = created = None
        for is_prompt, is_completion, is_cached, is_created, number in _COUNTS.findall(part):
            # The first of each kind counts.
            if is_prompt and prompt is None:
                prompt = int(number)
            elif is_completion and completion is None:
                completion = int(number)
            elif is_cached and cached is None:
                cached = int(number)
            elif is_created and created is None:
                created = int(number)
        if anthropic and prompt is not None:
            # Anthropic counts the cached tokens apart from `input_tokens`.
            prompt += (cached or 0) + (created or 0)
        if prompt is not None or completion is not None:
            return TokenUsage(prompt, cached, completion)
    at = data.rfind(_TIMINGS)
    if at < 0:
        return TokenUsage()
    part = data[at : at + _OBJECT_BYTES]
    prompt, cached = _number(_PROMPT_N, part), _number(_CACHE_N, part)
    return TokenUsage(None if prompt is None else prompt + (cached or 0), cached, _number(_PREDICTED_N, part))


def _number(pattern: re.Pattern[bytes], data: bytes) -> int | None:
    found = pattern.search(data)
    return int(found[1]) if found is not None else None
