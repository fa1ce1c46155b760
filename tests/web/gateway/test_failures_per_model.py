"""Failures are recorded for a model at a target; only a target that is down fails with all of its models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from web_rig import Bench, Call, Town, ask, backend, host, node_id, served, town, well

from meshllm.core.routing.routes import Target, TargetKind
from meshllm.web.gateway import target as target_module
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.client import UpstreamPool

ONE, TWO = node_id(1), node_id(2)


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Three gateways; the first one is asked."""
    async with town(folder) as made:
        yield made


async def reset(call: Call) -> None:
    """Breaks the connection instead of a response."""
    call.reset()


def resting(bench: Bench, now: float) -> set[str]:
    """The ids of targets that rest."""
    return {queue.id for queue in bench.gateway.target_queues() if queue.resting(queue.target.model or "m", now)}


async def prepared(place: Town) -> set[bytes]:
    """Two models at each of two peers, and twenty conversations about `b` at the first peer."""
    for number in (1, 2):
        bench = place.benches[number]
        bad = await bench.engine(reset if number == 1 else well)
        good = await bench.engine(well)
        bench.publish(served("a", bad.address), served("b", good.address))
    place.here.meet(host(ONE, "a", "b"), host(TWO, "a", "b", rtt=5.0))
    for number in range(20):
        response = await place.here.call(ask(model="b", user=f"user {number}"))
        assert response.headers["x-mesh-llm-host"] == f"peer {ONE.hex()[:10]}"
    affinity = place.here.gateway._table.affinity
    keys = set(affinity._keys[TargetKind.PEER, ONE.hex()])
    assert len(keys) == 20
    return keys


async def test_broken_connection_of_one_model_rests_that_model_alone(
    place: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module, "REST_BASE_SECONDS", 30.0)
    keys = await prepared(place)
    # Connections to the first peer break under requests for `a`: its gateway answers nothing.
    gateway_start = place.benches[1].gateway._proxy.start

    def start(connection: object, request: object, *arguments: object, **options: object) -> object:
        if b'"model": "a"' in request.body:  # type: ignore[attr-defined]
            connection.abort()  # type: ignore[attr-defined]
            return None
        return gateway_start(connection, request, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(place.benches[1].gateway._proxy, "start", start)
    response = await place.here.call(ask(model="a", user="somebody"))
    assert (response.status, response.headers["x-mesh-llm-host"]) == (200, f"peer {TWO.hex()[:10]}")
    now = asyncio.get_running_loop().time()
    assert resting(place.here, now) == {f"peer:{ONE.hex()[:10]}/a"}
    assert place.here.gateway._table.affinity._keys[TargetKind.PEER, ONE.hex()] == keys
    response = await place.here.call(ask(model="b", user="user 3"))
    assert response.headers["x-mesh-llm-host"] == f"peer {ONE.hex()[:10]}"


async def test_peer_that_cannot_be_reached_rests_with_all_models(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "REST_BASE_SECONDS", 30.0)
    await prepared(place)
    place.roads.kill(ONE)
    response = await place.here.call(ask(model="b", user="user 3"))
    assert (response.status, response.headers["x-mesh-llm-host"]) == (200, f"peer {TWO.hex()[:10]}")
    now = asyncio.get_running_loop().time()
    assert resting(place.here, now) >= {f"peer:{ONE.hex()[:10]}/b"}
    assert (TargetKind.PEER, ONE.hex()) not in place.here.gateway._table.affinity._keys


async def test_failure_of_one_model_of_a_backend_rests_that_model_alone(
    table: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend has one queue for all of its models."""
    monkeypatch.setattr(target_module, "REST_BASE_SECONDS", 30.0)

    async def first(call: Call) -> None:
        call.reset() if call.json["model"] == "a" else call.answer({"choices": [], "from": 1})

    async def second(call: Call) -> None:
        call.answer({"choices": [], "from": 2})

    one, two = await table.backend(first), await table.backend(second)
    table.publish(backends=(backend(one.address, "a", "b"), backend(two.address, "a", "b")))
    assert (await table.call(ask(model="a"))).json["from"] == 2
    assert (await table.call(ask(model="b"))).json["from"] == 1
    assert (await table.call(ask(model="a"))).json["from"] == 2
    assert len([call for call in one.calls if call.json["model"] == "a"]) == 1


async def test_target_queue_bounds_the_models_whose_failures_it_remembers() -> None:
    pool = UpstreamPool(Target(TargetKind.BACKEND, "http://x"), asyncio.get_running_loop())
    queue = TargetQueue(pool.target, pool)
    for number in range(1000):
        queue.failed(1.0, f"m{number}")
    assert len(queue._model_rests) == target_module.MAX_RESTING_MODELS
    assert queue.resting("m999", 1.1)
    assert not queue.resting("m0", 1.1)
    queue.answered("m999")
    assert not queue.resting("m999", 1.1)
    queue.failed(2.0)
    assert queue.resting("other", 2.1)
    queue.answered("m1")
    assert not queue.resting("other", 2.1)
