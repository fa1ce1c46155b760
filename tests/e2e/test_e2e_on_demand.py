"""Models on the disks of standbys: the first request loads them. Real daemons, the real engine, small models."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from here import Site, joined, serves, site

from tests import engine_shapes
from tests.netlab.nodes import Node

pytestmark = pytest.mark.engine

OPTIONS = ("--on-demand", "--share", "all", "--ctx-size", "256", "--no-speculation", "--threads", "1")


def disk(folder: Path, *names: str) -> dict[str, str]:
    """The environment of a node whose model folder has these small models."""
    folder.mkdir(parents=True)
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            dims = engine_shapes.SAMPLES["llama"].dims
            sample = engine_shapes.Sample("llama", engine_shapes.SAMPLES["llama"].layer, dims=dims, tied=False)
            patch.setitem(engine_shapes.SAMPLES, "made up", sample)
            engine_shapes.write(folder / f"{name}.gguf", "made up")
    return {"MESH_LLM_MODELS": str(folder)}


def card(node: Node, name: str) -> dict[str, Any]:
    """What `/v1/models` says of a model; {} if it is not listed."""
    return next((found for found in node.get("/models")["data"] if found["id"] == name), {})


def lists(node: Node, *names: str) -> None:
    """Wait until `node` lists the models as available."""
    node.until(lambda status: all(card(node, name) for name in names), f"{names} to be listed")


def standby(here: Site, home: str, first: Node, *models: str, options: tuple[str, ...] = ()) -> Node:
    """A node of the mesh of `first` with these models on its disk."""
    environment = disk(here.folder / f"models of {home}", *models)
    node = here.node(home, *OPTIONS, *options, join=first, environment=environment)
    node.until(joined, "the mesh")
    return node


def test_first_request_loads_a_model_that_only_a_standby_has(tmp_path: Path) -> None:
    with site(tmp_path / "mesh") as here:
        first = here.node("first")
        other = standby(here, "standby", first, "a", "b", "c")
        client = here.node("client", "--client", join=first)
        for node in (first, client, other):
            lists(node, "a", "b", "c")
            found = card(node, "a")
            assert (found["mesh"]["phase"], found["mesh"]["loaded"]) == ("available", False)
            assert found["status"] == {"value": "unloaded"}
        for node, model in ((first, "a"), (client, "b"), (other, "c")):
            begun = time.monotonic()
            answer = node.chat(model, stream=True)
            print(model, time.monotonic() - begun)
            assert (answer.status, answer.done) == (200, True)
        first.until(lambda status: card(first, "b")["mesh"]["loaded"], "it to be known as loaded")
        loaded = {model["name"] for model in other.status()["models"] if model["loaded"]}
        assert loaded == {"a", "b", "c"}, "they are served beside each other"


def test_requests_after_the_sudden_loss_of_the_only_host_are_answered(tmp_path: Path) -> None:
    with site(tmp_path / "mesh") as here:
        first = here.node("first")
        options = ("--model", "x.gguf", "--ctx-size", "256", "--no-speculation", "--threads", "1", "--share", "all")
        folder = disk(here.folder / "models of host", "x")
        host = here.node("host", *options, join=first, environment=folder)
        standby(here, "standby", first, "x")
        client = here.node("client", "--client", join=first)
        for node in (first, client):
            node.until(serves("x"), "the host")
            assert node.chat("x").status == 200
        host.process.kill()
        killed = time.monotonic()
        with ThreadPoolExecutor(20) as callers:
            asked = [
                callers.submit(node.chat, "x", stream=bool(number % 2))
                for number in range(10)
                for node in (first, client)
            ]
            answers = [each.result() for each in asked]
        print(f"all answered after {time.monotonic() - killed:.1f} s")
        assert [(answer.status, answer.done, answer.body.get("error")) for answer in answers] == [
            (200, True, None)
        ] * 20


def test_more_models_than_memory_holds_take_turns_and_none_is_stopped_while_it_answers(tmp_path: Path) -> None:
    names = [f"small{number}" for number in range(6)]
    rng = random.Random(7)
    cap = 0.12
    with site(tmp_path / "mesh") as here:
        first = here.node("first")
        other = standby(here, "standby", first, *names, options=("--max-vram", str(cap)))
        lists(first, *names)
        most = 0
        with ThreadPoolExecutor(3) as callers:
            asked = [
                callers.submit(
                    rng.choice((first, other)).chat, rng.choice(names), stream=True, tokens=rng.choice((3, 40))
                )
                for _ in range(20)
            ]
            while not all(each.done() for each in asked):
                engines = [model["engine"] for model in other.status()["models"] if model["engine"]]
                most = max(most, sum(engine["memory"] for engine in engines))
            answers = [each.result() for each in asked]
        assert [(answer.status, answer.done, answer.body) for answer in answers] == [(200, True, {})] * 20
        assert 0 < most <= cap * 1e9
        lists(first, *names)
