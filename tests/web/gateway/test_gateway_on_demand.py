"""Requests for a model that no node has in memory: one node is asked to load it, and the others hear why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from web_rig import Town, ask, bench, broken, host, node_id, request, served, town, well

from meshllm.core.membership.views import PeerView
from meshllm.core.records import ServedModel
from meshllm.core.serving.placement import rendezvous_weight
from meshllm.core.snapshot import ModelOrigin, ModelState, ServerPhase
from meshllm.web.gateway.target import LOADING_SLOTS

ONE, TWO = node_id(1), node_id(2)
UNLOADED = ServedModel("m", context_length=4096, size=100, on_demand=True)


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Three nodes; the first is asked and serves nothing."""
    async with town(folder) as made:
        yield made


def on_disk(peer: PeerView, *models: str) -> PeerView:
    """The same peer, which loads these models for requests."""
    return replace(peer, record=replace(peer.record, on_disk=models, room=1 << 30))


def loading() -> ModelState:
    """A model that is being loaded for requests."""
    state = served("m", "/none")
    return replace(state, server=ServerPhase.STARTING, server_facts=None, origin=ModelOrigin.MESH)


@pytest.mark.parametrize("stream", [True, False])
async def test_all_requests_make_one_node_load_the_model_and_are_answered(place: Town, stream: bool) -> None:
    for number in (1, 2):
        place.benches[number].publish(loading())
    place.here.meet(on_disk(host(ONE), "m"), on_disk(host(TWO), "m"))
    number = max(1, 2, key=lambda number: rendezvous_weight(node_id(number), "m"))
    first, other = place.benches[number], place.benches[3 - number]
    callers = [await place.here.caller() for _ in range(30)]
    for caller in callers:
        caller.send(ask(stream=stream))
    await first.gateway.watch.until(lambda: first.gateway.peer_requests == LOADING_SLOTS)
    engine = await first.serve()
    place.here.meet(host(node_id(number), "m"), on_disk(host(node_id(3 - number)), "m"))
    answers = await asyncio.gather(*(caller.response() for caller in callers))
    assert [answer.status for answer in answers] == [200] * 30
    assert all(b"Hello" in answer.body for answer in answers)
    assert len(engine.calls) == 30
    assert other.gateway.tunnels == 0, "it was not asked"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stream", [True, False])
async def test_caller_hears_why_no_node_could_load_the_model(place: Town, stream: bool) -> None:
    for number in (1, 2):
        place.benches[number].publish(replace(broken("m"), origin=ModelOrigin.MESH))
    place.here.meet(on_disk(host(ONE), "m"), on_disk(host(TWO), "m"))
    response = await place.here.call(ask(stream=stream))
    assert "The disk is full." in response.body.decode()
    assert "model_unavailable" in response.body.decode()
    assert all(bench.gateway.peer_outcomes == ["failed"] for bench in place.benches[1:]), "each was asked once"


@pytest.mark.usefixtures("quick")
async def test_another_node_loads_it_if_the_first_one_cannot(place: Town) -> None:
    place.benches[1].publish(replace(broken("m"), origin=ModelOrigin.MESH))
    await place.serve(2)
    place.here.meet(replace(on_disk(host(ONE), "m"), owned=True), on_disk(host(TWO), "m"))
    assert (await place.here.call(ask())).status == 200


async def test_models_on_disks_are_listed_as_available(place: Town) -> None:
    place.here.meet(on_disk(host(ONE, UNLOADED), "m", "n"), on_disk(host(TWO), "n"))
    cards = {card["id"]: card for card in (await place.here.call(request("GET", "/v1/models", None))).json["data"]}
    auto = cards.pop("auto")
    assert auto["status"] == {"value": "unloaded"}
    assert set(cards) == {"m", "n"}
    for name, card in cards.items():
        assert (card["mesh"]["phase"], card["mesh"]["loaded"], card["status"]) == (
            "available",
            False,
            {"value": "unloaded"},
        )
        assert (await place.here.call(request("GET", f"/v1/models/{name}", None))).json == card
    assert len(cards["n"]["mesh"]["on_disk_of"]) == 2


async def test_aliases_are_listed_and_several_candidates_are_named(folder: Path) -> None:
    async with bench(folder, aliases={"mine": "Big-Model", "lost": "no-such-model"}) as table:
        engine = await table.engine(well)
        table.publish(served("Big-Model.Q4_1", engine.address))
        cards = {card["id"]: card for card in (await table.call(request("GET", "/v1/models", None))).json["data"]}
        assert set(cards) == {"Big-Model.Q4_1", "mine", "auto"}
        assert cards["mine"]["mesh"]["alias_of"] == "Big-Model.Q4_1"
        assert (await table.call(request("GET", "/v1/models/mine", None))).json == cards["mine"]
        for name in ("mine", "big-model", "Big-Model.Q4_1"):
            assert (await table.call(ask(model=name))).status == 200
        response = await table.call(ask(model="unknown"))
        assert response.status == 404
        assert "mine (alias of Big-Model)" in response.json["error"]["message"]
        assert table.gateway.unknown_aliases() == {"lost": "no-such-model"}
        table.publish(served("Big-Model.Q4_1", engine.address), served("Big-Model-Q8_0", engine.address))
        response = await table.call(ask(model="Big-Model"))
        assert response.status == 404
        assert "can mean Big-Model-Q8_0, Big-Model.Q4_1" in response.json["error"]["message"]
