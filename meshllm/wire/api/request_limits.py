"""Bounds of what a request asks of the engine: its number of prompts, its grammars, schemas and patterns. Pure.

The engine takes each prompt of a list as a task, and parses grammars and schemas by recursion. Every check is linear in
the body, and costs a request without these fields some look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshllm.wire.api.routes import Api

# Tasks of one request that generate text, and that only read (embeddings, rerank); OpenAI takes 2048 inputs.
MAX_TASKS = 512
MAX_READ_TASKS = 2048
# The same for a guest: what an engine with few slots does in seconds.
MAX_GUEST_TASKS = 4
MAX_GUEST_READ_TASKS = 128
MAX_GRAMMAR_BYTES = 64 << 10
# Levels of JSON in a schema: twice the levels of nested objects. Groups in a grammar or a pattern.
MAX_SCHEMA_DEPTH = 64
MAX_GROUP_DEPTH = 32
MAX_PATTERN_BYTES = 4 << 10
# One repetition, as in the engine; and all repetitions of a request together, because each is written out as rules.
MAX_REPETITION = 2000
MAX_REPETITIONS = 20_000
# All schemas of a request: an agent's tools have some 1,000 parts and 100 kB.
MAX_SCHEMA_PARTS = 50_000
MAX_SCHEMAS_BYTES = 1 << 20
# Values of one enum, and branches of one choice: the engine follows all of them at each token (5000 take 22 s).
MAX_CHOICES = 2000
_CHOICES = frozenset(("enum", "anyOf", "oneOf"))

Problem = tuple[str, str]
_COMPLETIONS = Api.COMPLETIONS  # looked up once, as `routes.ENGINE`

_LITERALS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)
_GROUPS = re.compile(r"[()]")
_ESCAPED = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
_TWICE = re.compile(r"[}*+]\s*\{")
_COUNTS = frozenset(("minLength", "maxLength", "minItems", "maxItems"))
_LEAST = frozenset(("minLength", "minItems"))
_COUNT_FIELDS = frozenset(("n", "n_cmpl", "best_of"))
_SCHEMA_FIELDS = ("json_schema", "response_format", "output_config", "output_format")
_TOOL_FIELDS = ("tools", "functions")
_CONSTRAINT_FIELDS = frozenset(("grammar", "text", *_SCHEMA_FIELDS, *_TOOL_FIELDS))
# Fields that only the owner of an engine may set: they name slots, caches and adapters, or ask for internals.
_OWNER_FIELDS = frozenset(
    (
        "id_slot",
        "cache_prompt",
        "n_cache_reuse",
        "lora",
        "timings_per_token",
        "return_tokens",
        "return_progress",
        "verbose",
        "__verbose",
        "response_fields",
    )
)


def without_owner_fields(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """`body` without the fields that only an owner may set; None if it has none of them."""
    kept = {key: value for key, value in body.items() if key not in _OWNER_FIELDS and not key.startswith("slot_")}
    return kept if len(kept) != len(body) else None


def tasks_of(api: Api, body: Mapping[str, Any]) -> int:
    """How many tasks the engine makes of a request; at least 1, never too few."""
    if api.can_stream and api is not _COMPLETIONS and _COUNT_FIELDS.isdisjoint(body):
        return 1  # the usual case
    if api is Api.EMBEDDINGS:
        return max(_listed(body.get("input")), _listed(body.get("content")))
    if api is Api.RERANK:
        return max(_listed(body.get("documents")), _listed(body.get("texts")))
    if not api.can_stream:
        return 1
    prompts = _listed(body.get("prompt")) if api is Api.COMPLETIONS else 1
    if _COUNT_FIELDS.isdisjoint(body):
        return prompts
    return prompts * max(_count(body.get("n")), _count(body.get("n_cmpl")), _count(body.get("best_of")))


def _listed(value: object) -> int:
    """The number of prompts: a list of numbers is one prompt, as tokens."""
    if not isinstance(value, list) or not value:
        return 1
    return 1 if isinstance(value[0], int) and all(isinstance(item, int) for item in value) else len(value)


def _count(value: object) -> int:
    if isinstance(value, float):
        value = int(value) if abs(value) < 1 << 53 else MAX_TASKS + 1
    return value if isinstance(value, int) and value > 1 else 1


def too_many_tasks(api: Api, tasks: int, *, guest: bool) -> str:
    """The message for a request of too many prompts; empty if it is within the bound."""
    if tasks == 1:
        return ""
    generates, reads = (MAX_GUEST_TASKS, MAX_GUEST_READ_TASKS) if guest else (MAX_TASKS, MAX_READ_TASKS)
    limit = generates if api.can_stream else reads
    if tasks <= limit:
        return ""
    whose = "of a guest " if guest else ""
    return f"The request has {tasks} prompts (inputs times 'n'); a request {whose}may have {limit}. Send several."


def problem_of_constraints(api: Api, body: Mapping[str, Any]) -> Problem | None:
    """Why a grammar, schema or pattern is refused: the parameter and a message; None if all are within the bounds."""
    if _CONSTRAINT_FIELDS.isdisjoint(body):
        return None
    get = body.get
    if (grammar := get("grammar")) is not None and (message := _grammar_problem(grammar)):
        return "grammar", message
    schemas = _schemas(get)
    if not schemas:
        return None
    walk = _SchemaWalk()
    for parameter, schema in schemas:
        if message := walk.problem(schema):
            return parameter, message
    return None


def _schemas(get: Any) -> list[tuple[str, object]]:
    """The schemas of a request, with the parameter that holds each."""
    found: list[tuple[str, object]] = []
    for name in _SCHEMA_FIELDS:
        if (value := get(name)) is not None:
            found.append((name, value))
    if (text := get("text")) is not None and isinstance(text, dict):
        found.append(("text.format", text.get("format")))
    for name in _TOOL_FIELDS:
        tools = get(name)
        if isinstance(tools, list):
            found += [(name, tool) for tool in tools]
        elif tools is not None:
            found.append((name, tools))
    return found


def _grammar_problem(grammar: object) -> str:
    if not isinstance(grammar, str):
        return ""  # the engine refuses it
    if len(grammar) > MAX_GRAMMAR_BYTES:
        return f"The grammar has {len(grammar)} characters; at most {MAX_GRAMMAR_BYTES} are accepted."
    text = _LITERALS.sub("", grammar)
    if _depth(text) > MAX_GROUP_DEPTH:
        return f"The groups of the grammar are nested more than {MAX_GROUP_DEPTH} levels deep."
    if _TWICE.search(text):
        return "The grammar repeats a repetition, as in 'a{2}{3}': put the inner one in a group."
    most, total = _repetitions(text)
    if most > MAX_REPETITION or total > MAX_REPETITIONS:
        return f"The grammar repeats too often: at most {MAX_REPETITION} times in one place, {MAX_REPETITIONS} in all."
    return ""


def _depth(text: str) -> int:
    depth = deepest = 0
    for found in _GROUPS.finditer(text):
        depth = depth + 1 if found[0] == "(" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _repetitions(text: str) -> tuple[int, int]:
    """The largest repetition in a grammar or pattern, and the sum of all."""
    most = total = 0
    for low, high in _REPEATED.findall(text):
        count = max(_number(low), _number(high))
        most, total = max(most, count), total + count
    return most, total


def _number(digits: str) -> int:
    return int(digits) if 0 < len(digits) < 10 else 0 if not digits else MAX_REPETITIONS + 1


class _SchemaWalk:
    """Checks the schemas of one request; the parts and repetitions of all of them count together."""

    def __init__(self) -> None:
        self._parts = 0
        self._bytes = 0
        self._repetitions = 0

    def problem(self, schema: object) -> str:
        """Why `schema` is refused; empty if it is not."""
        todo: list[tuple[object, int]] = [(schema, 1)]
        before = self._bytes
        while todo:
            part, depth = todo.pop()
            self._parts += 1
            if depth > MAX_SCHEMA_DEPTH:
                return f"The schema is nested more than {MAX_SCHEMA_DEPTH} levels of JSON deep."
            if isinstance(part, dict):
                for key, value in part.items():
                    self._bytes += len(key) + 4
                    if isinstance(value, str):
                        self._bytes += len(value)
                        if key in ("pattern", "grammar") and (message := self._text_problem(key, value)):
                            return message
                    elif isinstance(value, int | float):
                        if key in _COUNTS and (message := self._count_problem(key, value)):
                            return message
                    elif value is not None:
                        if key in _CHOICES and isinstance(value, list) and len(value) > MAX_CHOICES:
                            return f"'{key}' has {len(value)} entries; at most {MAX_CHOICES} are accepted."
                        todo.append((value, depth + 1))
            elif isinstance(part, list):
                self._parts += len(part)
                todo += [(item, depth + 1) for item in part if isinstance(item, dict | list)]
                self._bytes += sum(len(item) + 3 for item in part if isinstance(item, str))
            elif isinstance(part, str):
                self._bytes += len(part)
            if self._parts > MAX_SCHEMA_PARTS or self._bytes > MAX_SCHEMAS_BYTES:
                return f"The schemas are too large: at most {MAX_SCHEMA_PARTS} parts and {MAX_SCHEMAS_BYTES >> 10} KiB."
            if self._bytes - before > MAX_GRAMMAR_BYTES:
                return f"The schema is too large: at most {MAX_GRAMMAR_BYTES >> 10} KiB for each schema or tool."
        return ""

    def _text_problem(self, key: str, text: str) -> str:
        if key != "pattern":
            return _grammar_problem(text)
        if len(text) > MAX_PATTERN_BYTES:
            return f"A pattern has {len(text)} characters; at most {MAX_PATTERN_BYTES} are accepted."
        text = _ESCAPED.sub("", text)
        if _depth(text) > MAX_GROUP_DEPTH:
            return f"The groups of a pattern are nested more than {MAX_GROUP_DEPTH} levels deep."
        if _TWICE.search(text):
            return "A pattern repeats a repetition, as in 'a{2}{3}': put the inner one in a group."
        most, total = _repetitions(text)
        self._repetitions += total
        if most > MAX_REPETITION or self._repetitions > MAX_REPETITIONS:
            return f"Patterns repeat too often: at most {MAX_REPETITION} times in one place, {MAX_REPETITIONS} in all."
        return ""

    def _count_problem(self, key: str, value: float) -> str:
        if value > MAX_REPETITION:
            # The engine takes a larger maximum for none.
            return f"'{key}' is {value}; at most {MAX_REPETITION} is accepted." if key in _LEAST else ""
        self._repetitions += max(0, int(value)) if abs(value) < MAX_REPETITIONS else 0
        if self._repetitions > MAX_REPETITIONS:
            return f"The bounds of lengths and items in the schemas sum to more than {MAX_REPETITIONS}."
        return ""
