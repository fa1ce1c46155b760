"""POST /api/models/load and /drop: for the owner only, and with the node's own words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import aiohttp
import pytest
from web_rig import OWNER, TOKEN

from meshllm.core.memory.fit_preview import FitOutlook
from meshllm.core.snapshot import ModelState, Purpose, ServerPhase, Snapshot
from meshllm.errors import UnknownModel
from meshllm.web.console.endpoints import CatalogModelFacts, DiskModelFacts, LibraryAnswer
from meshllm.web.console.model_acts import LoadBegun
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus, StatusInputs, node_status
from meshllm.web.http.access_control import AccessPolicy


class FakeModels:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def load(self, text: str) -> LoadBegun:
        """As a node does."""
        self.asked.append(f"load {text}")
        return LoadBegun("Model", 7, serves=False)

    async def drop(self, text: str) -> str:
        """As a node that does not serve it."""
        self.asked.append(f"drop {text}")
        if text == "none":
            raise UnknownModel("This node does not serve none.", advice="Models here: a.")
        return "Model"

    async def library(self) -> LibraryAnswer:
        """One model of each kind."""
        self.asked.append("library")
        large = CatalogModelFacts(
            name="large",
            size=9,
            purpose=Purpose.GENERATE,
            vision=True,
            license="mit",
            fit=FitOutlook.SPLIT,
            context_length=4096,
            machines=3,
            on_disk=False,
            percent=12,
        )
        return LibraryAnswer(disk=[DiskModelFacts(name="a", size=5)], catalog=[large])


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
async def url(models: FakeModels) -> AsyncIterator[str]:
    def status() -> NodeStatus:
        raise AssertionError("it is not read")

    reading = cast(Callable[[], NodeStatus], status)
    console = Console(AccessPolicy(), reading, token=TOKEN, models=lambda: models)
    port = await console.start(("127.0.0.1",), 0)
    yield f"http://127.0.0.1:{port}/api/models/"
    await console.close()


async def post(url: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and body."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_owner_loads_and_drops(url: str, models: FakeModels) -> None:
    assert await post(url + "load", {"model": "m"}, OWNER) == (200, {"model": "Model", "snapshot": 7, "serves": False})
    assert await post(url + "drop", {"model": "m"}, OWNER) == (200, {"model": "Model"})
    status, answer = await post(url + "drop", {"model": "none"}, OWNER)
    assert (status, answer["error"]["code"]) == (409, "model_not_found")
    assert "Models here: a." in answer["error"]["message"]
    assert models.asked == ["load m", "drop m", "drop none"]


@pytest.mark.parametrize("act", ["load", "drop"])
@pytest.mark.parametrize("body", [{}, [], {"model": ""}, {"model": 1}, {"model": "x" * 5000}, {"name": "m"}])
async def test_body_without_a_model_is_refused(url: str, models: FakeModels, act: str, body: Any) -> None:
    status, answer = await post(url + act, body, OWNER)
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    assert models.asked == []


async def test_owner_lists_the_models_to_load_and_to_download(url: str) -> None:
    status, found = await post(url + "library", None, OWNER)
    assert (status, found["disk"]) == (200, [{"name": "a", "size": 5}])
    (large,) = found["catalog"]
    assert (large["name"], large["purpose"], large["fit"], large["machines"]) == ("large", "generate", "split", 3)
    assert (large["on_disk"], large["percent"], large["vision"]) == (False, 12, True)


@pytest.mark.parametrize("act", ["load", "drop", "library"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"x-mesh-llm-token": "wrong"}, {**OWNER, "origin": "http://evil.example"}, {**OWNER, "cookie": "a=b"}],
)
async def test_others_load_and_drop_nothing(url: str, models: FakeModels, act: str, headers: dict[str, str]) -> None:
    status, answer = await post(url + act, {"model": "m"}, headers)
    assert (status, answer["error"]["code"]) in [
        (403, "token_required"),
        (403, "not_for_pages"),
        (403, "origin_not_allowed"),
    ]
    assert models.asked == []


def test_status_says_when_an_idle_model_is_unloaded() -> None:
    idle = ModelState("m", server=ServerPhase.SERVING, idle_since=50.0)

    def of(model: ModelState, idle_unload: float | None, now: float) -> tuple[float | None, float | None]:
        snapshot = Snapshot(models=(model,), idle_unload=idle_unload)
        inputs = StatusInputs(snapshot=snapshot, name="n", version="1", pid=1, api="a", console="c", started=0.0)
        found = node_status(inputs, now).models[0]
        return found.idle_seconds, found.unload_seconds

    assert of(idle, 60.0, 70.0) == (20.0, 40.0)
    assert of(idle, 60.0, 120.0) == (70.0, 0.0), "it is about to be unloaded"
    assert of(idle, None, 70.0) == (20.0, None)
    assert of(replace(idle, idle_since=None), 60.0, 70.0) == (None, None), "it processes a request"
    assert of(replace(idle, server=ServerPhase.STOPPING), 60.0, 70.0) == (20.0, None)
