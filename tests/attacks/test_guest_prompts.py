"""Audit, rows 7, 8 and H5: over a real mesh a guest's guesses of prompts tell nothing of what others asked."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from tests.daemons import MODEL
from tests.e2e.here import Site, serves, site
from tests.netlab.nodes import Node

SECRET = "The number of the safe in the cellar of the old house by the river, which is secret, is 7341-"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def guest(here: Site, host: Node, name: str) -> Node:
    """A guest's node, by an invite of its own."""
    token = here.run(host.home.name, "invite", "--guest").stdout
    words = ("--node-name", name, "--join", "-")
    return here.adopt(Node(host.host, here.folder / name, *words, environment=here.environment, stdin=token))


def completion(node: Node, model: str, prompt: str, **more: Any) -> Any:
    """The answer of a node's API."""
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, **more}
    request = urllib.request.Request(
        f"{node.base_url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def cached(node: Node, word: str, secret: str = SECRET, **more: Any) -> int:
    """The cached tokens of the secret with that guess, by each figure that the answer has."""
    answer = completion(node, MODEL, secret + word, **more)
    details = answer["usage"].get("prompt_tokens_details") or {}
    return max(int(details.get("cached_tokens", 0)), int((answer.get("timings") or {}).get("cache_n", 0)))


@pytest.mark.engine
def test_guests_guesses_over_the_mesh_find_no_cached_prompt_of_others(here: Site) -> None:
    folder = here.folder / "host-models"
    folder.mkdir()
    real = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    shutil.copy(real, folder / real.name)
    words = ("--model", MODEL, "--ctx-size", "4096", "--no-speculation")
    host = here.node("host", *words, environment={"MESH_LLM_MODELS": str(folder), "HF_HOME": str(folder / "no")})
    host.wait_until_serving(MODEL)
    one, two = guest(here, host, "one"), guest(here, host, "two")
    for node in (one, two):
        node.until(serves(MODEL), "the host's model")
    assert cached(host, "ALPHA") == 0
    assert cached(host, "ALPHA") > 20, "the owner's prompts share a cache"
    assert cached(one, "BRAVO") == 0
    assert cached(one, "ALPHA") == cached(one, "DELTA"), "its own beginning is there, and no more for the right word"
    assert cached(two, "ALPHA") == 0, "another guest's guesses are not there"
    for slot, secret in enumerate(("Green is the key of the gate", "Monday is the day of the boats")):
        assert cached(host, "7", secret=secret * 5) == 0
        probe = {"id_slot": slot, "cache_prompt": True, "slot_id": slot}
        assert cached(two, "7", secret=secret * 5, **probe) == 0, "the owner's slot cannot be chosen"
        assert cached(host, "7", secret=secret * 5) > 20
    assert cached(host, "ALPHA") > 20


def test_fields_that_reach_into_slots_are_stripped_for_guests_only(here: Site) -> None:
    fake = here.model("Model", "host")
    host = here.node("host", "--backend", fake.url)
    other = here.node("other", "--node-name", "other", join=host)
    visitor = guest(here, host, "visitor")
    fields = {"id_slot": 2, "cache_prompt": True, "slot_id": 1, "slot_save_path": "x", "slot_anything": 3}
    message = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    for node in (visitor, other):
        node.until(serves("Model"), "the host's model")
        body = {"model": "Model", "max_tokens": 3, **message, **fields}
        request = urllib.request.Request(
            f"{node.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
    of_guest, of_owner = fake.asked
    assert not set(of_guest) & set(fields)
    assert of_guest["messages"] == message["messages"]
    assert {name: of_owner[name] for name in fields} == fields
