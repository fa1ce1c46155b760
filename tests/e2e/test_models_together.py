"""Several models on one node: the real engine, SmolLM2, and small made-up models beside it."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from here import client, site

from meshllm import paths
from tests import engine_shapes
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM
from tests.engine_samples import embedder
from tests.netlab.nodes import Node, Status

pytestmark = pytest.mark.engine

# Its weights (the two tables of 50,000 words) are 102 MB.
LARGE_LLAMA = engine_shapes.Dims(512, 1408, 64, 8, 4, 8, tokens=50_000)
TINY = "tiny-embedder"
CONTEXT = 512
# Memory of a process and its pages of files, against the plan.
TOLERANCE = 0.03


def made_up(path: Path, dims: engine_shapes.Dims = LARGE_LLAMA) -> Path:
    """A model with random weights, of an architecture that the engine knows."""
    with pytest.MonkeyPatch.context() as patch:
        sample = engine_shapes.Sample("llama", engine_shapes.SAMPLES["llama"].layer, dims=dims, tied=False)
        patch.setitem(engine_shapes.SAMPLES, "made up", sample)
        return engine_shapes.write(path, "made up")


@pytest.fixture
def environment() -> dict[str, str]:
    """The model folder of this user: SmolLM2 is not fetched again."""
    return {"MESH_LLM_MODELS": str(paths.models())}


def serve_together(*names: str) -> Any:
    """Whether a status has these models in memory."""
    return lambda status: {model["name"] for model in status["models"] if model["loaded"]} >= set(names)


def engine_of(status: Status, name: str) -> dict[str, Any]:
    """The engine process of a model."""
    return next(model["engine"] for model in status["models"] if model["name"] == name)


def fill(node: Node, model: str) -> int:
    """Let `model` fill the context of each of its slots, all at the same time. Returns the tokens of the longest."""
    rng = random.Random(model)

    def ask(words: int) -> int:
        prompt = " ".join(rng.choice(string.ascii_lowercase) for _ in range(words))
        answer = client(node).completions.create(model=model, prompt=prompt, max_tokens=4, temperature=0)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    words = 100 * (CONTEXT - 32) // ask(100)
    with ThreadPoolExecutor(4) as callers:
        return max(callers.map(ask, [words] * 4))


def used(pid: int) -> int:
    """Bytes of RAM that an engine process takes, with all of its model's file: the pages that were not needed yet,
    such as words that nobody has said, come with the next requests."""
    regions = psutil.Process(pid).memory_maps(grouped=True)
    models = [Path(region.path) for region in regions if region.path.endswith(".gguf")]
    assert len(models) == 1
    others = sum(region.rss for region in regions if not region.path.endswith(".gguf"))
    return others + models[0].stat().st_size


def command(node: Node, *words: str) -> str:
    """What `mesh-llm` prints for the owner of `node`, with success."""
    environment = {**os.environ, "MESH_LLM_HOME": str(node.home)}
    found = subprocess.run(
        [str(PROGRAM), *words], env=environment, capture_output=True, text=True, timeout=OPEN_WAIT_SECONDS
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def card(node: Node, model: str) -> dict[str, Any]:
    """What /v1/models says of it."""
    found: dict[str, Any] = node.get(f"/v1/models/{model}")["mesh"]
    return found


@pytest.fixture
def both(tmp_path: Path, environment: dict[str, str]) -> Iterator[Node]:
    """A node with SmolLM2 and a second chat model, from one command line."""
    second = made_up(tmp_path / "second.gguf")
    with site(tmp_path / "mesh") as here:
        arguments = ("--model", MODEL, "--model", str(second), "--serve-all", "--ctx-size", str(CONTEXT))
        node = here.node("one", *arguments, "--no-speculation", "--threads", "2", environment=environment)
        node.until(serve_together(MODEL, "second"), "both models")
        yield node


def test_two_models_take_the_memory_that_was_planned_for_both(both: Node) -> None:
    for model in (MODEL, "second"):
        assert fill(both, model) > 0.9 * CONTEXT
    status = both.status()
    engines = [engine_of(status, name) for name in (MODEL, "second")]
    # The prompt cache is planned in full, and two prompts do not fill it.
    planned = sum(engine["memory"] - engine["memory_parts"].get("prompt cache", 0) for engine in engines)
    measured = sum(used(engine["pid"]) for engine in engines)
    print(f"planned {planned / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB: {measured / planned - 1:+.2%}")
    assert abs(measured / planned - 1) < TOLERANCE


def test_chat_and_embeddings_on_one_node_and_the_owners_acts(tmp_path: Path, environment: dict[str, str]) -> None:
    tiny = embedder(tmp_path / f"{TINY}.gguf")
    with site(tmp_path / "mesh") as here:
        arguments = ("--model", MODEL, "--model", str(tiny), "--ctx-size", "1024", "--no-speculation")
        node = here.node("one", *arguments, environment=environment)
        node.until(serve_together(MODEL, TINY), "both models, the second one after 10 s")
        vector = client(node).embeddings.create(model=TINY, input="hello").data[0].embedding
        assert node.chat(MODEL).done
        assert vector
        rows = {row["model"]: row for row in json.loads(command(node, "ps", "--json"))["models"]}
        assert all(row["loaded"] and row["memory"] > 0 and row["slots"] == 4 for row in rows.values())
        assert MODEL in command(node, "ps")
        # The answer in progress goes on to its end, and no other one begins.
        dropped: list[str] = []

        def drop(pieces: int) -> None:
            if pieces == 2 and not dropped:
                dropped.append(command(node, "drop", MODEL.lower()))

        answer = node.chat(MODEL, tokens=200, stream=True, each=drop, question="Tell me a long story.")
        assert dropped[0].startswith(f"{MODEL} is dropped")
        assert answer.done
        assert answer.body == {}
        assert answer.pieces > 20
        node.until(lambda status: [model["name"] for model in status["models"]] == [TINY], "its end")
        assert node.chat(MODEL).status == 404
        assert "SmolLM2-135M-Instruct is served" in command(node, "load", "smollm2")
        assert node.chat(MODEL).done


def test_more_models_than_memory_holds_take_turns_and_are_unloaded_when_idle(tmp_path: Path) -> None:
    small = engine_shapes.SAMPLES["llama"].dims
    names = [f"small{number}" for number in range(3)]
    files = [made_up(tmp_path / f"{name}.gguf", small) for name in names]
    models = [word for file in files for word in ("--model", str(file))]
    with site(tmp_path / "mesh") as here:
        cap = 0.12
        arguments = ("--serve-all", "--ctx-size", "256", "--no-speculation", "--max-vram", str(cap))
        node = here.node("one", *models, *arguments, "--idle-unload", "0.2")
        node.until(serve_together("small0"), "the first model")
        rng = random.Random(5)
        together = 0
        for _ in range(15):
            assert node.ask(rng.choice(names)).result().status == 200
            engines = [model["engine"] for model in node.status()["models"] if model["loaded"]]
            assert sum(engine["memory"] for engine in engines) <= cap * 1e9
            together = max(together, len(engines))
        assert together == 2, "memory holds two of them"
        idle = node.until(lambda status: any(model["idle_seconds"] for model in status["models"]), "an idle model")
        known = {model["name"]: model["unload_seconds"] for model in idle["models"] if model["idle_seconds"]}
        assert all(0 <= seconds <= 12 for seconds in known.values()), known
        node.until(lambda status: {model["phase"] for model in status["models"]} == {"available"}, "all to be idle")
        assert not any(card(node, name)["loaded"] for name in names)
        answer = node.chat("small1", stream=True)
        assert (answer.status, answer.done) == (200, True)
        assert card(node, "small1")["loaded"]
