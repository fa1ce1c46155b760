"""The choice of a model for a request that leaves it to the mesh."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.routing.agent_choice import AgentModel
from meshllm.core.routing.auto_choice import Needs, choose, holds, none_suits, served_models, suits, with_more_context
from meshllm.core.routing.routes import NO_MESH
from meshllm.core.snapshot import BackendState, Purpose, Snapshot

EMBED = AgentModel("embed", context=512, purpose=Purpose.EMBED)
TEXT = AgentModel("text", context=8192, size=9, tools=True, purpose=Purpose.GENERATE, vision=False)
SMALL = replace(TEXT, name="small", size=1, context=32768)
SEES = replace(TEXT, name="sees", size=1, tools=False, vision=True)
UNKNOWN = AgentModel("unknown")
ALL = (EMBED, TEXT, SMALL, SEES, UNKNOWN)


@pytest.mark.parametrize(
    ("needs", "name"),
    [
        (Needs(), "text"),
        (Needs(Purpose.EMBED), "embed"),
        (Needs(Purpose.EMBED, tokens=9999), "embed"),  # the only one, and the tokens are an estimate
        (Needs(vision=True), "sees"),
        (Needs(vision=True, tools=True), "sees"),
        (Needs(tokens=9000), "small"),
        (Needs(tokens=99999, tools=True), "unknown"),  # of the others it is known that they are too small
        (Needs(tools=True), "text"),
    ],
)
def test_a_request_gets_what_it_needs(needs: Needs, name: str) -> None:
    chosen = choose(ALL, needs)
    assert chosen is not None
    assert chosen.name == name


def test_a_model_in_memory_comes_before_a_larger_one() -> None:
    chosen = choose([replace(TEXT, loaded=False), SMALL], Needs())
    assert chosen == SMALL


def test_a_machine_of_the_owner_comes_before_a_larger_model_of_another_member() -> None:
    theirs = replace(TEXT, name="theirs", size=10**12, context=1 << 20, owned=False)
    assert choose([theirs, SMALL], Needs()) == SMALL
    assert choose([theirs, SMALL], Needs(tokens=99999)) == theirs  # no other holds it


def test_nothing_that_cannot_answer_is_chosen() -> None:
    assert choose([EMBED, TEXT], Needs(Purpose.RERANK)) is None
    assert choose([TEXT], Needs(vision=True)) is None
    assert "accepts images" in none_suits([TEXT], Needs(vision=True))
    assert "no model to choose from" in none_suits([], Needs())


models = st.builds(
    AgentModel,
    name=st.text(min_size=1, max_size=3),
    context=st.sampled_from([0, 512, 8192, 32768]),
    size=st.integers(0, 3),
    tools=st.sampled_from([None, True, False]),
    free_slots=st.sampled_from([None, 0, 1]),
    rtt_ms=st.sampled_from([None, 0.0, 5.0]),
    loaded=st.booleans(),
    purpose=st.sampled_from([None, *Purpose]),
    vision=st.sampled_from([None, True, False]),
)
needs = st.builds(Needs, st.sampled_from(Purpose), st.booleans(), st.booleans(), st.sampled_from([0, 512, 8192, 40000]))


@given(st.lists(models, max_size=6, unique_by=lambda model: model.name), needs)
def test_the_choice_suits_whenever_one_does(served: list[AgentModel], need: Needs) -> None:
    chosen = choose(served, need)
    suitable = [model for model in served if suits(model, need)]
    assert (chosen is None) == (not suitable)
    if chosen is not None:
        assert suits(chosen, need)
        assert holds(chosen, need) or not any(holds(model, need) for model in suitable)
        assert choose(reversed(served), need) == chosen


def test_a_model_that_a_request_loads_is_chosen_after_those_in_memory() -> None:
    snapshot = Snapshot(available=("disk", "some-embedder"), backends=(BackendState("http://b", True, models=("up",)),))
    found = served_models(snapshot, NO_MESH)
    assert {(model.name, model.loaded, model.owned, model.purpose) for model in found} == {
        ("disk", False, True, None),
        ("some-embedder", False, True, Purpose.EMBED),
        ("up", True, True, None),
    }
    assert choose(found, Needs()) == next(model for model in found if model.name == "up")
    assert choose([model for model in found if not model.loaded], Needs()).name == "disk"  # type: ignore[union-attr]


def test_models_with_more_context_are_named_the_largest_first() -> None:
    larger = with_more_context(ALL, Purpose.GENERATE, 5000, 4096)
    assert [model.name for model in larger] == ["small", "sees", "text"]
    assert with_more_context(ALL, Purpose.GENERATE, 99999, 32768) == []


def test_the_purpose_of_a_backends_model_is_read_from_its_name() -> None:
    names = ("nomic-embed-text", "bge-reranker", "chat")
    snapshot = Snapshot(backends=(BackendState("http://b", healthy=True, models=names),))
    found = {model.name: model.purpose for model in served_models(snapshot, NO_MESH)}
    assert found == {"nomic-embed-text": Purpose.EMBED, "bge-reranker": Purpose.RERANK, "chat": None}
