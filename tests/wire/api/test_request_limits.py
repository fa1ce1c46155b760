"""Bounds of prompts, grammars, schemas and patterns."""

from __future__ import annotations

from typing import Any

import pytest

from meshllm.wire.api import request_limits as limits
from meshllm.wire.api.request_limits import problem_of_constraints, tasks_of, too_many_tasks, without_owner_fields
from meshllm.wire.api.routes import Api


@pytest.mark.parametrize(
    ("api", "body", "tasks"),
    [
        (Api.COMPLETIONS, {"prompt": "x"}, 1),
        (Api.COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (Api.COMPLETIONS, {"prompt": ["x"] * 5000}, 5000),
        (Api.COMPLETIONS, {"prompt": [[1, 2], [3]], "n": 3}, 6),
        (Api.COMPLETIONS, {"prompt": "x", "best_of": 9, "n": 2}, 9),
        (Api.CHAT, {"messages": [], "n": 4}, 4),
        (Api.CHAT, {"messages": [], "n_cmpl": 4}, 4),
        (Api.CHAT, {"messages": [], "n": 1e300}, limits.MAX_TASKS + 1),
        (Api.CHAT, {"messages": [], "n": "4"}, 1),
        (Api.EMBEDDINGS, {"input": ["x"] * 7}, 7),
        (Api.EMBEDDINGS, {"input": [5, 6]}, 1),
        (Api.RERANK, {"documents": ["x"] * 7}, 7),
        (Api.COUNT_TOKENS, {"messages": [], "n": 7}, 1),
    ],
)
def test_prompts_and_choices_count_as_tasks(api: Api, body: dict[str, Any], tasks: int) -> None:
    assert tasks_of(api, body) == tasks


def test_guests_may_ask_for_fewer_tasks() -> None:
    assert not too_many_tasks(Api.CHAT, limits.MAX_GUEST_TASKS, guest=True)
    assert str(limits.MAX_GUEST_TASKS) in too_many_tasks(Api.CHAT, limits.MAX_GUEST_TASKS + 1, guest=True)
    assert not too_many_tasks(Api.CHAT, limits.MAX_GUEST_TASKS + 1, guest=False)
    assert too_many_tasks(Api.COMPLETIONS, 5000, guest=False)
    assert not too_many_tasks(Api.EMBEDDINGS, 2048, guest=False)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


BOMBS: dict[str, dict[str, Any]] = {
    "many values of an enum": {"json_schema": {"enum": [str(value) for value in range(limits.MAX_CHOICES + 1)]}},
    "large choice": {"tools": [{"input_schema": {"anyOf": [{"const": value} for value in range(5000)]}}]},
    "deep grammar": {"grammar": "root ::= " + "(" * 190_000 + "x"},
    "deep, but short": {"grammar": "root ::= " + "(" * 40 + '"a"' + ")" * 40},
    "parentheses after a quote that is escaped": {"grammar": r'root ::= "\\" ' + "(" * 40},
    "long grammar": {"grammar": "root ::= " + '"a" ' * 40_000},
    "a repetition of a repetition": {"grammar": 'root ::= "a"{50}{50}{50}'},
    "a huge repetition": {"grammar": 'root ::= "a"{1,1000000}'},
    "many repetitions": {"grammar": "root ::= " + '"a"{1900} ' * 11},
    "deep schema": {"json_schema": nested(40)},
    "deep response format": {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(40)}}},
    "deep tool": {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(40)}}]},
    "deep tool of Anthropic": {"tools": [{"name": "f", "input_schema": nested(40)}]},
    "deep text format": {"text": {"format": {"type": "json_schema", "schema": nested(40)}}},
    "deep output format": {"output_config": {"format": {"type": "json_schema", "schema": nested(40)}}},
    "large tool": {"tools": [{"name": "f", "description": "x" * 70_000}]},
    "large enum": {"json_schema": {"enum": ["x" * 10] * 20_000}},
    "many numbers": {"json_schema": {"enum": list(range(60_000))}},
    "deep pattern": {"json_schema": {"type": "string", "pattern": "^" + "(" * 40 + "a" + ")" * 40 + "$"}},
    "repeating pattern": {"json_schema": {"type": "string", "pattern": "^a{1,1000000}$"}},
    "long pattern": {"json_schema": {"type": "string", "pattern": "a" * 5000}},
    "least length": {"json_schema": {"type": "string", "minLength": 1_000_000}},
    "many lengths": {"json_schema": {"anyOf": [{"type": "string", "maxLength": 1999} for _ in range(20)]}},
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_grammars_and_schemas_are_bounded(bomb: dict[str, Any]) -> None:
    problem = problem_of_constraints(Api.CHAT, bomb)
    assert problem is not None
    parameter, message = problem
    assert parameter.partition(".")[0] in bomb
    assert message.endswith(".")


USUAL: dict[str, dict[str, Any]] = {
    "none": {"messages": [{"role": "user", "content": "((((" * 100}]},
    "grammar": {"grammar": 'root ::= "(" ([^()]{1,20} | "\\"" )* ")" # ((((\n'},
    "schema": {"json_schema": nested(25)},
    "tools": {
        "tools": [{"type": "function", "function": {"name": f"f{n}", "parameters": nested(8)}} for n in range(200)]
    },
    "lengths": {"json_schema": {"type": "string", "minLength": 1, "maxLength": 10_000_000, "pattern": "^[(]{1,8}$"}},
    "odd": {"tools": "x", "response_format": 3, "json_schema": [], "text": "x", "grammar": 7},
}


@pytest.mark.parametrize("body", USUAL.values(), ids=USUAL.keys())
def test_usual_requests_pass(body: dict[str, Any]) -> None:
    assert problem_of_constraints(Api.CHAT, body) is None


def test_fields_of_the_owner_are_stripped() -> None:
    body = {"model": "m", "id_slot": 1, "cache_prompt": True, "slot_id": 2, "lora": [], "temperature": 1}
    assert without_owner_fields(body) == {"model": "m", "temperature": 1}
    assert without_owner_fields({"model": "m"}) is None
