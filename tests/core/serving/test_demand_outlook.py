"""What nodes do next and why a model is not served: as placement decides, and never without an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.demand.mesh_demand import DemandClaim, scores
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, ServedModel, SplitCandidate
from meshllm.core.serving import demand_text, placement
from meshllm.core.serving.demand_outlook import DemandOutlook, NextAct, Obstacle, OwnSituation, outlook
from meshllm.core.serving.demand_placement import DemandPlacement, PlacementFacts
from meshllm.core.serving.placement import MIB, PATIENCE_SECONDS, PlacementView
from tests.core.small_mesh import node_id

GIB = 1 << 30
OWN = 50
ASKER = 99
# The models that callers of this node ask for.
ASKED = (*"abcd", "a; rm -rf b")


def record(number: int, *disk: str, **fields: object) -> NodeRecord:
    base = NodeRecord(node_id(number), RecordVersion(1, 1), MeshId(bytes(16)), name=f"n{number}", on_disk=disk)
    return replace(base, **fields)  # type: ignore[arg-type]


def asking(**levels: int) -> NodeRecord:
    demand = keyed([DemandLevel(model, level) for model, level in levels.items()])
    return record(ASKER, demand=demand, idle=True)


def taken(model: str, *, movable: bool = True) -> ServedModel:
    return ServedModel(model, slots=4, size=GIB, on_demand=True, movable=movable)


def seen(*records: NodeRecord) -> PlacementView:
    owned = {each.node for each in records}
    claims = [DemandClaim(each, each.node, True) for each in records]
    return PlacementView(records, scores(claims, ASKED), owned)


def told(*records: NodeRecord, own: int = OWN, **situation: object) -> DemandOutlook:
    return outlook(seen(*records), records, node_id(own), OwnSituation(**situation))  # type: ignore[arg-type]


def acts(found: DemandOutlook) -> dict[str, tuple[NextAct, str]]:
    return {found.labels[step.node]: (step.act, step.model) for step in found.nodes}


MODELS = st.sets(st.sampled_from("abcd"))
HOSTED = st.sampled_from(["", "a", "b", "c"])
NODES = st.lists(st.tuples(MODELS, HOSTED, st.booleans()), max_size=7)


def mesh_of(nodes: list[tuple[set[str], str, bool]], wanted: dict[str, int]) -> list[NodeRecord]:
    hosts = [
        record(number, *sorted(disk), serves=(taken(served, movable=movable),) if served else ())
        for number, (disk, served, movable) in enumerate(nodes)
    ]
    return [asking(**wanted), *hosts]


@given(NODES, st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4)))
def test_outlook_says_what_placement_decides(nodes: list[tuple[set[str], str, bool]], wanted: dict[str, int]) -> None:
    records = mesh_of(nodes, wanted)
    view, found = seen(*records), acts(told(*records))
    for each in records:
        act, model = found[each.name]
        need, other = placement.choose(view, each, {}), placement.move(view, each)
        assert (act is NextAct.TAKES) == (need is not None)
        assert need is None or model == need.model
        assert (act is NextAct.MOVES) == (other is not None)
        assert other is None or model == other.model
        if act is NextAct.LAST_HOST:
            assert not placement.may_leave(view, each, model)


@given(NODES, st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4)), MODELS)
def test_outlook_has_an_answer_for_every_demanded_model(
    nodes: list[tuple[set[str], str, bool]], wanted: dict[str, int], dropped: set[str]
) -> None:
    records = mesh_of(nodes, wanted)
    found = told(*records, dropped=dict.fromkeys(dropped, 60.0))
    assert found.models.keys() == wanted.keys()
    served = {each.name for one in records for each in one.serves}
    for model in found.models.values():
        assert model.model in served or model.taker is not None or model.obstacles
        text = demand_text.model_text(model, found)
        assert text or model.model in served
        assert all(sentence[0].isupper() or sentence[0] in "'0123456789" for sentence in text.split(". ") if sentence)


def test_outlook_names_who_takes_a_model_and_who_follows() -> None:
    standbys = [record(number, "a") for number in range(4)]
    found = told(asking(a=1), *standbys)
    first, *rest = placement.ranked(standbys, "a")
    steps = {step.node: step for step in found.nodes}
    assert (steps[first].act, steps[first].seconds) == (NextAct.TAKES, 0.0)
    assert [(steps[node].act, steps[node].seconds, steps[node].other) for node in rest[:2]] == [
        (NextAct.FOLLOWS, PATIENCE_SECONDS, first),
        (NextAct.FOLLOWS, 2 * PATIENCE_SECONDS, first),
    ]
    assert steps[rest[2]].act is NextAct.FREE
    name = found.labels[first]
    assert demand_text.model_text(found.models["a"], found) == f"{name.capitalize()} takes a now."
    assert demand_text.node_text(steps[rest[0]], found) == f"takes a in 15 s if {name} does not"


def test_outlook_counts_the_time_that_a_need_is_known() -> None:
    standbys = [record(number, "a") for number in (OWN, 1)]
    second = placement.ranked(standbys, "a")[1]
    found = told(asking(a=1), *standbys, facts=PlacementFacts(waited={"a": 5.0}))
    (step,) = [step for step in found.nodes if step.node == second]
    assert step.seconds == PATIENCE_SECONDS - 5.0


def test_outlook_of_this_node_is_what_it_has_decided() -> None:
    host = record(OWN, "a", "b", serves=(taken("b"),))
    facts = PlacementFacts(moves_to="a", moves_in=4.0)
    found = told(asking(a=2), host, facts=facts)
    assert acts(found)[f"n{OWN}"] == (NextAct.MOVES, "a")
    assert demand_text.model_text(found.models["a"], found) == "This node moves to a in 4 s."
    # Others would have it move; it knows better.
    still = told(asking(a=2), host)
    assert acts(still)[f"n{OWN}"] == (NextAct.STAYS, "b")


def test_outlook_of_a_node_that_cannot_take_a_model() -> None:
    standby = record(OWN, "a")
    working = told(asking(a=1), standby, free=False, works_on="large")
    assert acts(working)[f"n{OWN}"] == (NextAct.WORKS, "large")
    assert [facts.kind for facts in working.models["a"].obstacles] == [Obstacle.BUSY]


def test_standby_with_an_unloaded_model_is_free() -> None:
    unloaded = replace(taken("b"), slots=0)
    found = told(asking(a=1), record(1, serves=(unloaded,)), record(2, serves=(replace(unloaded, on_demand=False),)))
    assert acts(found)["n1"] == (NextAct.FREE, "")
    assert acts(found)["n2"] == (NextAct.SERVES, "b")


SERVED = (ServedModel("other", slots=1, size=GIB),)


@pytest.mark.parametrize(
    ("nodes", "situation", "kinds", "text"),
    [
        ([record(1, "b")], {}, [Obstacle.NO_FILE], "No node offers it from its disk. 'mesh-llm download a' gets it."),
        (
            [
                record(1, "a", memory=2 * GIB, disk_sizes=(4 * GIB // MIB,)),
                record(2, "a", memory=3 * GIB, disk_sizes=(4 * GIB // MIB,)),
            ],
            {},
            [Obstacle.NO_MEMORY],
            "It needs at least 4.7 GB; of the nodes that have it, n2 has the most memory: 3.2 GB free.",
        ),
        (
            [record(1, "a", memory=2 * GIB, room=5 * GIB, disk_sizes=(4 * GIB // MIB,))],
            {},
            [Obstacle.NO_MEMORY],
            "It needs at least 4.7 GB; of the nodes that have it, n1 has the most memory: 2.1 GB free, 5.4 GB with the "
            "idle models that it unloads for a request: a request for it makes n1 load it.",
        ),
        (
            [record(1, "a", memory=2 * GIB, room=3 * GIB, disk_sizes=(4 * GIB // MIB,))],
            {},
            [Obstacle.NO_MEMORY],
            "It needs at least 4.7 GB; of the nodes that have it, n1 has the most memory: 2.1 GB free, 3.2 GB with the "
            "idle models that it unloads for a request.",
        ),
        ([record(1, "a", serves=SERVED)], {}, [Obstacle.BUSY], "N1 has it, and serves other models."),
        (
            [record(1, "a", idle=True)],
            {},
            [Obstacle.NOT_ALLOWED],
            "N1 has it, and takes no model by itself. Load it there with 'mesh-llm load a'.",
        ),
        (
            [record(OWN)],
            {"dropped": {"a": 7200.0}},
            [Obstacle.DROPPED],
            "The owner of this node dropped it: for 2 h this node does not load it for the mesh. "
            "'mesh-llm load a' brings it back.",
        ),
        (
            [record(OWN, "a")],
            {"facts": PlacementFacts(avoided={"a": ("The file is damaged.", 480.0)})},
            [Obstacle.FAILED],
            "This node could not serve it: The file is damaged. It tries again in 8 min.",
        ),
        (
            [record(1, "a", splits=(SplitCandidate("a", GIB, True),), wants=("a",))],
            {},
            [Obstacle.SPLIT],
            "It was requested with --split, and its host waits for enough nodes.",
        ),
        ([record(1, "a"), record(2, loading=("a",))], {}, [], "N2 loads it."),
    ],
)
def test_outlook_says_why_a_model_is_not_served(
    nodes: list[NodeRecord], situation: dict[str, object], kinds: list[Obstacle], text: str
) -> None:
    found = told(asking(a=1), *nodes, **situation)
    assert [facts.kind for facts in found.models["a"].obstacles] == kinds
    assert demand_text.model_text(found.models["a"], found) == text


def test_outlook_says_which_model_is_more_urgent() -> None:
    found = told(asking(a=1, b=3), record(1, "a", "b"))
    assert [(facts.kind, facts.model) for facts in found.models["a"].obstacles] == [(Obstacle.MORE_URGENT, "b")]


def test_outlook_shows_the_id_beside_equal_names() -> None:
    found = told(record(1), replace(record(2), name="n1"), record(3))
    names = [found.labels[node_id(number)] for number in (1, 2, 3)]
    assert names == [f"n1 ({node_id(1)[:5].hex()})", f"n1 ({node_id(2)[:5].hex()})", "n3"]


def test_commands_quote_the_names_of_models() -> None:
    found = told(record(ASKER, demand=keyed([DemandLevel("a; rm -rf b", 1)]), idle=True))
    assert "'mesh-llm download 'a; rm -rf b''" in demand_text.model_text(found.models["a; rm -rf b"], found)


def test_placement_remembers_the_cause_of_a_failure_while_it_avoids_the_model() -> None:
    decisions, own = DemandPlacement(), record(OWN, "a")
    for now in range(10):
        failed = {"a": "no memory"} if now > 2 else {}
        if decisions.decide(seen(asking(a=1), own), own, float(now), free=True, serving=(), failed=failed).release:
            break
    cause, seconds = decisions.facts(3.0).avoided["a"]
    assert (cause, seconds > 500) == ("no memory", True)
    assert decisions.facts(3.0 + seconds).avoided == {}
