"""Whether an answer of the gateway is of its API's documented shape: judged by the models of the official SDKs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from meshllm.wire.api.engine_faults import INVALID_OUTPUT
from scripts.fuzzing import body_grammar as paths

_STREAMS = frozenset((paths.CHAT, paths.COMPLETIONS, paths.RESPONSES, paths.MESSAGES))
_ANTHROPIC = frozenset((paths.MESSAGES, paths.COUNT))
_FINAL = frozenset(("response.completed", "response.incomplete", "response.failed", "error"))
_BUSY = (429, 503)
# What an engine says and a caller must not see: the text of an exception.
_RAW = re.compile(r"got exception|\[json\.exception|std::|Traceback|terminate called|GGML_ASSERT|/llama\.cpp/")
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_MAX_WORDS = 48


class Wrong(Exception):
    """An answer that is not of its API's shape; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def kind_of_answer(path: str, answer: Answer, *, streams: bool) -> tuple[str, ...]:
    """What tells this answer from others: API, status, code, parameter, features. Raises Wrong."""
    if answer.status != 200:
        return _error(path, answer)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "application/x-ndjson" and path in paths.OLLAMA:
        return (path, "200", "stream", *_lines(answer.body))
    if streams and path in _STREAMS:
        if kind != "text/event-stream":
            raise Wrong(f"a stream was asked for, but the content type is {kind}")
        return (path, "200", "stream", *_events(path, answer.body))
    if kind != "application/json":
        raise Wrong(f"the content type is {kind}")
    value = _json(answer.body)
    _valid(_whole(path), value)
    return (path, "200", *_features(path, value))


def label_of(kind: tuple[str, ...]) -> str:
    """Status and code of a kind of answer, for counts."""
    if kind[1] != "200":
        return f"{kind[1]} {kind[2]}"
    error = "error" in kind[2:4] and kind[2] == "stream"
    return f"200, then {kind[4]}" if error else "200"


def _json(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise Wrong(f"no JSON: {error}") from None


def _error(path: str, answer: Answer) -> tuple[str, ...]:
    if answer.status in _BUSY and not answer.headers.get("retry-after"):
        raise Wrong(f"status {answer.status} without Retry-After")
    value = _json(answer.body)
    if path in paths.OLLAMA:
        return (path, str(answer.status), *_ollama_error(answer.status, value))
    error = _error_object(path, value)
    # A model that writes calls which cannot be read is no fault of the node.
    known = answer.status in _BUSY or (answer.status, error.get("code")) == (502, INVALID_OUTPUT)
    if not 400 <= answer.status < 500 and not known:
        raise Wrong(f"status {answer.status}: {error['message']}")
    return (path, str(answer.status), *_words(error))


def _words(error: Mapping[str, Any]) -> tuple[str, ...]:
    # Only its beginning: schemas have any number of paths.
    param = ".".join(re.sub(r"\d+", "0", str(error.get("param"))).split(".")[:2])
    return (
        str(error.get("code") or error.get("type")),
        param[:_MAX_WORDS],
        _VARIABLE.sub("?", error["message"])[:_MAX_WORDS],
    )


def _error_object(path: str, value: Any) -> dict[str, Any]:
    """The error in a whole answer, or in an event of a stream."""
    error = value.get("error") if isinstance(value, dict) else None
    if path in _ANTHROPIC and isinstance(value, dict) and value.get("type") != "error":
        raise Wrong("an error of this API has the type 'error'")
    if not isinstance(error, dict):
        raise Wrong("no error object")
    _check_error(error)
    if path not in _ANTHROPIC and not {"param", "code"} <= error.keys():
        raise Wrong("an error without 'param' and 'code'")
    return error


def _check_error(error: Mapping[str, Any]) -> None:
    for key in ("message", "type"):
        if not isinstance(error.get(key), str) or not error[key]:
            raise Wrong(f"the error's {key} is no text")
    for key in ("param", "code"):
        if not isinstance(error.get(key), str | None):
            raise Wrong(f"the error's {key} is no text")
    if _RAW.search(error["message"]):
        raise Wrong(f"the error shows an exception: {error['message'][:300]}")


def _ollama_error(status: int, value: Any) -> tuple[str, ...]:
    """The words of an error in the shape of Ollama's API, which has no codes."""
    if (
        not isinstance(value, dict)
        or set(value) != {"error"}
        or not isinstance(value["error"], str)
        or not value["error"]
    ):
        raise Wrong(f"no error of Ollama's shape: {value!r:.200}")
    if _RAW.search(value["error"]):
        raise Wrong(f"the error shows an exception: {value['error'][:300]}")
    unreadable = status in (500, 502) and "tool call" in value["error"]
    if not 400 <= status < 500 and status not in _BUSY and not unreadable:
        raise Wrong(f"status {status}: {value['error']}")
    return ("error", "", _VARIABLE.sub("?", value["error"])[:_MAX_WORDS])


# -- streams


def _lines(body: bytes) -> tuple[str, ...]:
    """A stream of Ollama's API: lines of JSON, of which the last one alone ends it."""
    if not body.endswith(b"\n"):
        raise Wrong("the stream ends within a line")
    found: set[str] = set()
    lines = [_json(line) for line in body.splitlines()]
    for line in lines[:-1]:
        _valid(_ollama_line(), line)
        if line["done"]:
            raise Wrong("a line follows the last one")
    last = lines[-1]
    if isinstance(last, dict) and "error" in last:
        return ("error", *_ollama_error(400, last)[1:])
    _valid(_ollama_line(), last)
    if not last["done"] or last.get("done_reason") not in ("stop", "length", "load"):
        raise Wrong(f"the last line is no end: {last!r:.200}")
    for line in lines:
        found |= {key for key, item in {**line, **line.get("message", {})}.items() if item}
    return last["done_reason"], *sorted(found & {"content", "response", "thinking", "tool_calls", "logprobs"})


def _events(path: str, body: bytes) -> tuple[str, ...]:
    events: list[tuple[str, str]] = []
    text = body.decode("utf-8")
    if not text.endswith("\n\n"):
        raise Wrong("the stream ends within an event")
    for block in text.split("\n\n"):
        name, data = "", []
        for line in block.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            elif line and not line.startswith(":"):
                raise Wrong(f"a line that is none of an event stream: {line[:100]!r}")
        if data:
            events.append((name, "\n".join(data)))
    if not events:
        raise Wrong("a stream without events")
    return _CHECKS[path](path, events)


def _check_chunks(path: str, events: list[tuple[str, str]]) -> tuple[str, ...]:
    """Chat and completions."""
    if events[-1][1] != "[DONE]":
        raise Wrong("the stream does not end with [DONE]")
    reasons: set[str] = set()
    features: set[str] = set()
    for _, data in events[:-1]:
        value = _json(data)
        if isinstance(value, dict) and "error" in value:
            return ("error", *_words(_error_object(path, value)))
        if path == paths.COMPLETIONS:  # null before the end, which the SDK does not check in streams
            for choice in value["choices"]:
                reasons.add(str(choice["finish_reason"]))
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        _valid(_chunk(path), value)
        for choice in value["choices"]:
            reasons.add(str(choice["finish_reason"]))
            features |= {key for key, item in (choice.get("delta") or choice).items() if item}
    if path == paths.CHAT and not reasons - {"None"}:
        raise Wrong("no choice has a finish reason")
    return *sorted(reasons), *sorted(features - {"index", "finish_reason"})


def _check_response_events(path: str, events: list[tuple[str, str]]) -> tuple[str, ...]:
    last = -1
    kinds: dict[str, None] = {}
    for name, data in events:
        value = _json(data)
        kind = value.get("type") if isinstance(value, dict) else None
        if name != kind:
            raise Wrong(f"the event {name!r} has the type {kind!r}")
        if value.get("sequence_number") != last + 1:
            raise Wrong(f"the number {value.get('sequence_number')} follows {last}")
        last += 1
        _valid(_chunk(path), value)
        kinds[name] = None
    ends = [name for name, _ in events if name in _FINAL]
    # After an error comes the failed response, if a response had begun.
    if ends != [name for name, _ in events[-len(ends) :]] or (len(ends) != 1 and ends != ["error", "response.failed"]):
        raise Wrong(f"the stream ends with {', '.join(ends) or events[-1][0]}")
    if ends == ["error", "response.failed"]:
        failed = _json(events[-1][1])["response"]["error"]
        _check_error({"type": "error", **failed})
    if ends[0] == "error":
        error = _json(events[-len(ends)][1])
        _check_error({"type": "error", **error})
        return ("error", *_words(error))
    if events[0][0] != "response.created":
        raise Wrong(f"the first event is {events[0][0]}")
    return tuple(sorted(kinds))


def _check_message_events(path: str, events: list[tuple[str, str]]) -> tuple[str, ...]:
    kinds: dict[str, None] = {}
    opened = False
    for index, (name, data) in enumerate(events):
        value = _json(data)
        kind = value.get("type") if isinstance(value, dict) else None
        if name != kind:
            raise Wrong(f"the event {name!r} has the type {kind!r}")
        if kind == "error":
            if index != len(events) - 1:
                raise Wrong("events follow the error")
            return ("error", *_words(_error_object(path, value)))
        if kind == "ping":
            continue
        _valid(_chunk(path), value)
        if (kind == "message_start") == opened:
            raise Wrong(f"{kind} where message_start is " + ("open" if opened else "missing"))
        opened = True
        kinds[name] = None
        if kind == "message_delta":
            kinds[str(value["delta"]["stop_reason"])] = None
        elif kind == "content_block_start":
            kinds[value["content_block"]["type"]] = None
    if events[-1][0] != "message_stop":
        raise Wrong(f"the last event is {events[-1][0]}")
    return tuple(sorted(kinds))


_CHECKS: dict[str, Callable[[str, list[tuple[str, str]]], tuple[str, ...]]] = {
    paths.CHAT: _check_chunks,
    paths.COMPLETIONS: _check_chunks,
    paths.RESPONSES: _check_response_events,
    paths.MESSAGES: _check_message_events,
}

# -- the SDKs' models


def _valid(adapter: TypeAdapter[Any], value: Any) -> None:
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        first = _telling(error.errors())
        where = ".".join(map(str, first["loc"]))
        raise Wrong(f"{where}: {first['msg']} (got {str(first['input'])[:120]!r})") from None


def _telling(errors: Sequence[Any]) -> Any:
    """The error to show: of a union, one of the member whose `type` is the value's."""
    wrong_types = [error for error in errors if error["type"] == "literal_error" and error["loc"][1:] == ("type",)]
    others = {error["loc"][:1] for error in wrong_types}
    return next((error for error in errors if error["loc"][:1] not in others), errors[0])


@cache
def _whole(path: str) -> TypeAdapter[Any]:
    """The model of a whole answer."""
    if path in (paths.OLLAMA_CHAT, paths.OLLAMA_GENERATE):
        return _ollama_line()
    from anthropic.types import Message, MessageTokensCount
    from openai.types import Completion, CreateEmbeddingResponse
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response
    from openai.types.responses.input_token_count_response import InputTokenCountResponse

    models: dict[str, Any] = {
        paths.CHAT: ChatCompletion,
        paths.COMPLETIONS: Completion,
        paths.RESPONSES: Response,
        paths.MESSAGES: Message,
        paths.COUNT: MessageTokensCount,
        paths.EMBEDDINGS: CreateEmbeddingResponse,
        paths.CHAT_COUNT: InputTokenCountResponse,
        paths.RESPONSES_COUNT: InputTokenCountResponse,
        paths.RERANK: dict,
        paths.OLLAMA_EMBED: _Embeddings,
    }
    return TypeAdapter(models[path])


class _Function(TypedDict):
    name: str
    arguments: dict[str, Any]


class _Call(TypedDict):
    function: _Function


class _Message(TypedDict):
    role: Literal["assistant"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[_Call]]


class _Line(TypedDict):
    """An answer, or a line of one, of Ollama's `/api/chat` and `/api/generate`."""

    model: str
    created_at: datetime
    done: bool
    done_reason: NotRequired[str]
    message: NotRequired[_Message]
    response: NotRequired[str]
    thinking: NotRequired[str]
    total_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    eval_count: NotRequired[int]


class _Embeddings(TypedDict):
    model: str
    embeddings: list[list[float]]


@cache
def _ollama_line() -> TypeAdapter[Any]:
    """The model of a line, which has a message or a text."""

    def one(line: Any) -> Any:
        if ("message" in line) == ("response" in line):
            raise ValueError("neither a message nor a response, or both")
        return line

    return TypeAdapter(Annotated[_Line, AfterValidator(one)])


@cache
def _chunk(path: str) -> TypeAdapter[Any]:
    """The model of an event of a stream."""
    from anthropic.types import RawMessageStreamEvent
    from openai.types import Completion
    from openai.types.chat import ChatCompletionChunk
    from openai.types.responses import ResponseStreamEvent

    models: dict[str, Any] = {
        paths.CHAT: ChatCompletionChunk,
        paths.COMPLETIONS: Completion,
        paths.RESPONSES: ResponseStreamEvent,
        paths.MESSAGES: RawMessageStreamEvent,
    }
    return TypeAdapter(models[path])


def _features(path: str, value: dict[str, Any]) -> tuple[str, ...]:
    """What is special in a whole answer."""
    if path == paths.RESPONSES:
        kinds = {item["type"] for item in value["output"]}
        return (value["status"], *sorted(kinds))
    if path == paths.MESSAGES:
        return (str(value["stop_reason"]), *sorted({block["type"] for block in value["content"]}))
    found: set[str] = set()
    if path in paths.OLLAMA:
        return (str(value.get("done_reason")),)
    for choice in value.get("choices", ()):
        found.add(str(choice["finish_reason"]))
        found |= {key for key, item in {**choice, **choice.get("message", {})}.items() if item}
    return tuple(sorted(found - {"index", "finish_reason", "message", "role"}))
