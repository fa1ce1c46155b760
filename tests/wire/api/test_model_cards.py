"""Reading `/v1/models` as an agent's launcher does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.routing.agent_choice import AgentModel
from meshllm.wire.api.model_cards import read_model_cards

HOST = {"kind": "engine", "name": "this node", "slots": 4}


def card(name: str, **mesh: Any) -> dict[str, Any]:
    return {"id": name, "max_input_tokens": 8192, "mesh": {"hosts": [HOST], "loaded": True, **mesh}}


def read(*cards: Any, **tools: bool) -> tuple[AgentModel, ...]:
    return read_model_cards(json.dumps({"data": cards}).encode(), tools)


def test_cards_give_context_size_tools_load_and_distance() -> None:
    far = {"kind": "peer", "rtt_ms": 20.5, "slots": 4, "active": 1, "waiting": 0}
    near = {"kind": "peer", "rtt_ms": 3.0, "slots": 2, "active": 4, "waiting": 1}
    assert read(card("a", size=7, hosts=[far, near]), card("b"), a=True) == (
        AgentModel("a", 8192, 7, tools=True, free_slots=3, rtt_ms=3.0),
        AgentModel("b", 8192, 0, tools=None, free_slots=None, rtt_ms=0.0),
    )


def test_cards_say_what_is_known_of_tool_calls_templates_and_speed() -> None:
    cards = [card("a", calls_tools=True), card("b", calls_tools=False, chat_template=False), card("c", calls_tools=1)]
    found = read_model_cards(json.dumps({"data": cards}).encode(), speeds={"a": 20.5})
    assert [(one.calls_tools, one.chat_template, one.speed) for one in found] == [
        (True, True, 20.5),
        (False, False, None),
        (None, True, None),
    ]


def test_a_model_that_a_request_loads_counts_as_not_loaded() -> None:
    (found,) = read(card("unloaded", hosts=[], phase="available"))
    assert (found.name, found.loaded) == ("unloaded", False)


def test_models_that_no_agent_can_use_are_left_out() -> None:
    strange = [None, 3, {}, {"id": 5, "mesh": {}}, card("x\x1b[2J"), card(""), card("y" * 600)]
    assert read(card("embeds", purpose="embed"), card("wanted", hosts=[]), *strange) == ()


def test_context_is_that_of_this_node_where_no_host_says_it() -> None:
    assert (
        read({"id": "a", "max_input_tokens": None, "mesh": {"hosts": [HOST], "context_length": 4096}})[0].context
        == 4096
    )
    assert read({"id": "a", "max_input_tokens": True, "mesh": {"hosts": [HOST]}})[0].context == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": 3}', b"\xff"])
def test_other_answers_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no list of models"):
        read_model_cards(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


facts = st.fixed_dictionaries({"hosts": values, "size": values})
cards = st.fixed_dictionaries({"id": values, "max_input_tokens": values, "mesh": facts})


@given(st.lists(cards, max_size=3))
def test_any_values_are_read_without_an_error(found: list[Any]) -> None:
    for model in read(*found):
        assert model.context >= 0
        assert model.size >= 0


def test_the_context_that_a_model_was_made_for_is_read() -> None:
    (found,) = read({**card("a"), "meta": {"n_ctx": 4096, "n_ctx_train": 8192}})
    assert found.trained == 8192
    assert read({**card("a"), "meta": {"n_ctx_train": "8192"}})[0].trained == 0
