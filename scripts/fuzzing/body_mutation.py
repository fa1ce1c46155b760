"""Makes bodies for the APIs: from the grammar, and by mutation of recorded and kept ones.

A body asks for few tokens (`keep_short`), so that an answer is quick.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

from scripts.fuzzing.body_grammar import (
    CHAT,
    COMPLETIONS,
    CONTENT,
    FIELDS,
    GRAMMARS,
    KEYS,
    MESSAGES,
    OLLAMA,
    PATHS,
    RERANK,
    RESPONSES,
    anything,
    boolean,
    number,
    schema,
    text,
    word,
)
from tests.fuzz.mutate import mutate as mutate_bytes

# How often the grammar chooses each.
WEIGHTS = (26, 12, 18, 18, 8, 4, 4, 5, 5, 12, 8, 2)
LIMITS = {CHAT: "max_tokens", COMPLETIONS: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
ALL_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
TOKENS = (1, 1, 1, 2, 4)
# Fields of the grammar that get any value instead of one of their own kind.
HOSTILE = 0.3
# Mutations of a known body that is no JSON: most are refused alike.
NOT_JSON = 0.1
MAX_BODY = 200_000


@dataclass(frozen=True, slots=True)
class Case:
    """One request: `data` is the body, JSON or not."""

    path: str
    data: bytes


class Bodies:
    """Makes cases for the served `model`. `known`: recorded and kept requests, from which it also makes new ones."""

    def __init__(self, rng: Random, model: str, known: Sequence[Case]) -> None:
        self._rng = rng
        self._model = model
        self.known = list(known)
        self._others = [json.dumps(found).encode() for found in (GRAMMARS(rng), anything(rng), schema(rng))]

    def next(self) -> Case:
        """The next case."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.55 or not self.known:
            return self.written(*self._from_grammar())
        case = rng.choice(self.known)
        if kind < 0.62:
            return Case(case.path, mutate_bytes(case.data, self._others, rng)[:MAX_BODY])
        try:
            body = json.loads(case.data)
        except (ValueError, RecursionError):
            if rng.random() < NOT_JSON:
                return Case(case.path, mutate_bytes(case.data, self._others, rng)[:MAX_BODY])
            return self.written(*self._from_grammar())
        for _ in range(rng.choice((1, 2, 3, 4, 6, 8))):
            body = self._changed(body, case.path)
        return self.written(rng.choice(PATHS) if rng.random() < 0.03 else case.path, body)

    def written(self, path: str, body: Any) -> Case:
        """The case of a body, which asks for few tokens."""
        rng = self._rng
        if isinstance(body, dict):
            if rng.random() < 0.98:
                body["model"] = self._model
            keep_short(path, body, rng)
        data = json.dumps(body, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
        if b"@deep@" in data and rng.random() < 0.5:
            depth = rng.choice((60, 130, 600, 1100, 3000))
            data = data.replace(b'"@deep@"', rng.choice((b"[", b'{"a":')) * depth, 1)
        return Case(path, data[:MAX_BODY])

    def _from_grammar(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        path = rng.choices(PATHS, WEIGHTS)[0]
        field, plain, wild = CONTENT[path]
        body: dict[str, Any] = {"model": self._model}
        if rng.random() < 0.99:
            body[field] = (plain if rng.random() < 0.35 else wild)(rng)
        if path == RERANK and rng.random() < 0.8:
            body["documents"] = ["a", "b"]
        if rng.random() < 0.4:
            body["stream"] = rng.choice((True, True, True, True, False, None, "x", 1))
        fields = FIELDS[path]
        for name in rng.sample(list(fields), min(len(fields), rng.choice((0, 1, 2, 3, 4, 5, 7)))):
            body[name] = anything(rng) if rng.random() < HOSTILE else fields[name](rng)
        if "tools" in body and rng.random() < 0.4:
            body["tool_choice"] = fields.get("tool_choice", anything)(rng)
        return path, body

    def _changed(self, body: Any, path: str) -> Any:
        """One change somewhere in the tree."""
        rng = self._rng
        places = _places(body)
        if not places or rng.random() < 0.1:
            fields = FIELDS[path]
            name = rng.choice(list(fields))
            return {**body, name: fields[name](rng)} if isinstance(body, dict) else anything(rng)
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1:
                holder[key] = anything(rng)
            case 2:
                holder[key] = None
            case 3:
                holder[key] = [holder[key]]
            case 4 if isinstance(holder, list):
                holder[key:key] = deepcopy([holder[key]] * rng.choice((1, 2, 30)))
            case 4:
                holder[rng.choice(KEYS)] = holder.pop(key)
            case 5 if isinstance(holder[key], str):
                at = rng.randint(0, len(holder[key]))
                holder[key] = holder[key][:at] + text(rng) + holder[key][at + rng.randint(0, 3) :]
            case 5 if isinstance(holder[key], dict):
                holder[key][rng.choice(KEYS)] = anything(rng)
            case 6:
                other_holder, other_key = rng.choice(places)
                holder[key] = deepcopy(other_holder[other_key])
            case _:
                holder[key] = rng.choice((text, number, boolean, schema, word))(rng)
        return body


def keep_short(path: str, body: dict[str, Any], rng: Random) -> None:
    """Make a body ask for few tokens, or for none, so that its answer is quick."""
    for name in ALL_LIMITS:
        # What is neither a number nor null is refused.
        if name in body and isinstance(body[name], int | float | None) and rng.random() < 0.998:
            body[name] = rng.choice(TOKENS)
    if (limit := LIMITS.get(path)) is not None:
        # Without one the engine would write until its context is full.
        body.setdefault(limit, rng.choice(TOKENS))
    options = body.setdefault("options", {}) if path in OLLAMA else None
    if isinstance(options, dict):
        options["num_predict"] = rng.choice(TOKENS)
    if isinstance(body.get("n"), int) and body["n"] > 4 and rng.random() < 0.9:
        body["n"] = 2


def _places(body: Any) -> list[tuple[Any, Any]]:
    """Where values are in a tree: the object or list that holds each, and its key there."""
    places: list[tuple[Any, Any]] = []
    todo = [body]
    while todo and len(places) < 3000:
        holder = todo.pop()
        for key, value in (
            holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        ):
            places.append((holder, key))
            if isinstance(value, dict | list):
                todo.append(value)
    return places
