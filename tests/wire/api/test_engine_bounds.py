"""Bounds and types of the sampling fields, in every API alike."""

from __future__ import annotations

from typing import Any

import pytest
from asking import prepare

from meshllm.wire.api import engine_bounds as bounds
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

ASKED: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"messages": [{"role": "user", "content": "a"}]},
    Api.COMPLETIONS: {"prompt": "a"},
    Api.RESPONSES: {"input": "a"},
    Api.MESSAGES: {"messages": [{"role": "user", "content": "a"}]},
}
APIS = pytest.mark.parametrize("api", ASKED)


def kept(api: Api, field: str, value: Any) -> Any:
    """What the engine gets for a field, or the refused parameter."""
    given = {"model": "m", **ASKED[api], field: value}
    found = prepare(api, given)
    if isinstance(found, Refusal):
        return found
    assert isinstance(found, Prepared)
    return (found.body or given).get(field)


@APIS
@pytest.mark.parametrize("value", ["kt", "edskypmxta", ["top_k", "temperature"], ["top-k", "temp", "minp"], "", []])
def test_known_samplers_are_kept(api: Api, value: Any) -> None:
    assert kept(api, "samplers", value) == value


@APIS
@pytest.mark.parametrize("value", ["i", "kit", ["infill"], ["top_k", "infill"], "q", ["x"], "kk", ["dry", "dry"], [1]])
def test_samplers_that_stop_the_engine_or_are_left_out_by_it_are_refused(api: Api, value: Any) -> None:
    """`infill` compares all pairs of tokens: minutes for one token of a vocabulary of 49,000."""
    found = kept(api, "samplers", value)
    assert isinstance(found, Refusal)
    assert found.param == "samplers"


LENGTHS = {
    Api.CHAT: ("max_tokens", "max_completion_tokens", "n_predict"),
    Api.COMPLETIONS: ("max_tokens", "n_predict"),
    Api.RESPONSES: ("max_output_tokens",),
    Api.MESSAGES: ("max_tokens",),
}
DEFINE_NONE = (Api.COMPLETIONS, Api.MESSAGES)


@pytest.mark.parametrize(("api", "field"), [(api, field) for api, fields in LENGTHS.items() for field in fields])
@pytest.mark.parametrize("zero", [0, 0.0])
def test_no_tokens_are_refused_or_kept_where_an_api_defines_them(api: Api, field: str, zero: float) -> None:
    """The engine writes one token at least."""
    given = {"model": "m", **ASKED[api], field: zero}
    found = prepare(api, given)
    if api in DEFINE_NONE:
        assert isinstance(found, Prepared)
        assert found.body is not None
        assert (found.body[field], found.translator is not None) == (1, True)
    else:
        assert isinstance(found, Refusal)
        assert (found.param, "1 or more" in found.message) == (field, True)


@APIS
@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("repeat_last_n", 2**31 - 1, bounds.MAX_WINDOW),
        ("repeat_last_n", -1, bounds.MAX_WINDOW),
        ("repeat_last_n", 64, 64),
        ("dry_penalty_last_n", 40_000_000, bounds.MAX_WINDOW),
        ("max_tokens", 2**32 - 1, bounds.MAX_TOKENS),
        ("max_tokens", 2**63, bounds.MAX_TOKENS),
        ("max_tokens", 5.0, 5),
        ("max_tokens", -1, -1),
        ("n_predict", 2**40, bounds.MAX_TOKENS),
        ("min_keep", 2**33, bounds.MAX_TOKENS),
        ("stop", ["a", ""], ["a"]),
        ("stop", "", None),
        ("stop", [""], None),
        ("temperature", 0.5, 0.5),
        ("seed", -1, -1),
    ],
)
def test_values_are_cut_to_what_they_mean(api: Api, field: str, value: Any, wanted: Any) -> None:
    assert kept(api, field, value) == wanted


@APIS
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "5"),
        ("max_tokens", -7),
        ("max_tokens", 5.5),
        ("max_tokens", True),
        ("temperature", "0"),
        ("temperature", True),
        ("n_probs", 50_000),
        ("samplers", ["top_k"] * 100),
        ("samplers", "k" * 100),
        ("samplers", [7]),
        ("dry_sequence_breakers", ["a"] * 1000),
        ("dry_sequence_breakers", []),
        ("stop", ["a"] * 1000),
        ("stop", ["a" * 100_000]),
        ("stop", [7]),
        ("stop", 7),
        ("logit_bias", {str(token): 1 for token in range(5000)}),
        ("logit_bias", [[1, 2, 3]]),
        ("logit_bias", {"1": "a"}),
        ("logit_bias", 7),
        ("reasoning_format", "unknown"),
        ("chat_template_kwargs", {"enable_thinking": "yes"}),
        ("chat_template_kwargs", []),
        ("cache_prompt", "yes"),
        ("post_sampling_probs", True),
        ("post_sampling_probs", 1),
        ("grammar_triggers", [{"type": 99}]),
        ("chat_parser", "x"),
        ("preserved_tokens", ["a"]),
        ("response_fields", ["a"] * 1000),
    ],
)
def test_values_without_meaning_are_refused_by_name(api: Api, field: str, value: Any) -> None:
    refusal = kept(api, field, value)
    assert isinstance(refusal, Refusal)
    assert str(refusal.param).partition(".")[0] == field
    assert field in refusal.message


@APIS
@pytest.mark.parametrize("field", ["max_tokens", "temperature", "stop", "logit_bias", "samplers", "grammar_triggers"])
def test_null_is_not_there(api: Api, field: str) -> None:
    required = api is Api.MESSAGES and field == "max_tokens"
    found = kept(api, field, None)
    assert found.param == field if isinstance(found, Refusal) else found is None
    assert isinstance(found, Refusal) is required


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS])
@pytest.mark.parametrize(
    ("fields", "count"), [({"n": 2}, 2), ({"n_cmpl": 3}, 3), ({"n": 1, "n_cmpl": 3}, 1), ({"n": None, "n_cmpl": 1}, 1)]
)
def test_the_engine_gets_one_number_of_choices(api: Api, fields: dict[str, Any], count: int) -> None:
    found = prepare(api, {"model": "m", **ASKED[api], **fields})
    assert isinstance(found, Prepared)
    body = found.body if found.body is not None else fields
    assert (body["n"], body.get("n_cmpl")) == (count, None)
    assert found.streamed == (count > 1)


@APIS
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -3, "'temperature' is -3; it must be 0 or more."),
        ("temperature", -0.01, "'temperature' is -0.01; it must be 0 or more."),
        ("top_p", 7, "'top_p' is 7; it must be from 0 to 1."),
        ("top_p", -0.1, "'top_p' is -0.1; it must be from 0 to 1."),
        ("min_p", 1.5, "'min_p' is 1.5; it must be from 0 to 1."),
    ],
)
def test_value_without_a_meaning_is_refused(api: Api, field: str, value: Any, message: str) -> None:
    assert kept(api, field, value) == Refusal(field, message)
    for meant in (0, 0.0, 1, 1.0):
        assert kept(api, field, meant) == meant


@pytest.mark.parametrize("api", [Api.CHAT, Api.MESSAGES, Api.COUNT_TOKENS])
def test_conversation_without_a_message_is_refused(api: Api) -> None:
    found = prepare(api, {"model": "m", "messages": []})
    assert isinstance(found, Refusal)
    assert (found.param, found.status) == ("messages", 400)
