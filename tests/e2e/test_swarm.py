"""Real daemons give each other model files: by lanes and by QUIC, by digest and by name, and only where they may."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from here import Site, client, joined, site

from meshllm import paths
from meshllm.models.library.store import Store
from tests.daemons import MODEL
from tests.netlab.nodes import Node, Status

HELLO = [{"role": "user", "content": "Say hello."}]
# No hub, and no packages: what does not come from a peer does not come.
ALONE = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def real() -> Path:
    """The file of the real model."""
    return next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))


def environment(folder: Path, **more: str) -> dict[str, str]:
    """For a node with a model folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"MESH_LLM_MODELS": str(folder), "HF_HOME": str(folder / "no-hub-cache"), **ALONE, **more}


def holder(here: Site, real: Path, name: str, *arguments: str, file: str = "", join: Node | None = None) -> Node:
    """A node that has the real model's file on its disk, verified, and serves nothing."""
    folder = here.folder / f"{name}-models"
    around = environment(folder)
    path = folder / (file or real.name)
    shutil.copy(real, path)
    if not file:
        store = Store(folder)
        store.prepare()
        store.record(path, hashlib.sha256(path.read_bytes()).hexdigest())
    return here.node(name, *arguments, join=join, environment=around)


def answer(node: Node, model: str) -> str:
    """What a node's own engine says."""
    node.wait_until_serving(model)
    reply: Any = client(node).chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=5,
        temperature=0,  # type: ignore[arg-type]
    )
    return str(reply.choices[0].message.content)


def given(node: Node) -> int:
    """Bytes that the node has given away."""
    return int(node.status()["sharing"]["uploaded_bytes"])


@pytest.mark.engine
@pytest.mark.parametrize("lanes", ["on", "off"])
def test_model_is_downloaded_from_peers(here: Site, real: Path, lanes: str) -> None:
    first = holder(here, real, "first")
    second = holder(here, real, "second", join=first)
    second.until(joined, "its mesh")
    folder = here.folder / "taker-models"
    words = ("--model", MODEL, "--ctx-size", "1024")
    taker = here.node("taker", *words, join=first, environment=environment(folder, MESH_LLM_LANES=lanes))
    assert answer(taker, MODEL)
    assert (folder / real.name).read_bytes() == real.read_bytes()
    size = real.stat().st_size
    # Towards the end a chunk may be fetched from both.
    assert size <= given(first) + given(second) <= 1.5 * size
    assert taker.status()["sharing"]["banned"] == []
    assert {peer["transport"] for peer in taker.status()["mesh"]["peers"]} <= {
        None,
        "lane" if lanes == "on" else "quic",
    }


@pytest.mark.engine
def test_model_known_only_to_a_peer_is_found_by_name(here: Site, real: Path) -> None:
    host = holder(here, real, "host", "--share", "all", file="Our-Own-Model.gguf")
    folder = here.folder / "taker-models"
    words = ("--model", "Our-Own-Model", "--ctx-size", "1024")
    taker = here.node("taker", *words, join=host, environment=environment(folder))
    assert answer(taker, "Our-Own-Model")
    assert (folder / "Our-Own-Model.gguf").read_bytes() == real.read_bytes()
    assert taker.stop() == 0
    again = here.node("taker", *words, environment=environment(folder))
    assert answer(again, "Our-Own-Model")


@pytest.mark.engine
def test_download_command_gets_the_model_from_the_mesh_without_the_hub(here: Site, real: Path) -> None:
    host = holder(here, real, "host")
    folder = here.folder / "taker-models"
    taker = here.node("taker", join=host, environment=environment(folder))
    taker.until(joined, "its mesh")
    done = here.run("taker", "download", MODEL, environment=environment(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / real.name).read_bytes() == real.read_bytes()
    assert str(folder / real.name) in done.stdout
    assert given(host) >= real.stat().st_size


@pytest.mark.engine
def test_download_command_gets_a_model_that_only_a_peer_knows_by_name(here: Site, real: Path) -> None:
    host = holder(here, real, "host", "--share", "all", file="Our-Own-Model.gguf")
    folder = here.folder / "taker-models"
    taker = here.node("taker", join=host, environment=environment(folder))
    taker.until(joined, "its mesh")
    done = here.run("taker", "download", "Our-Own-Model", environment=environment(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / "Our-Own-Model.gguf").read_bytes() == real.read_bytes()


def test_download_command_fails_when_neither_mesh_nor_hub_has_the_model(here: Site) -> None:
    folder = here.folder / "taker-models"
    host = here.node("host")
    here.node("taker", join=host, environment=environment(folder)).until(joined, "its mesh")
    done = here.run("taker", "download", MODEL, environment=environment(folder))
    assert done.returncode != 0
    assert "The running node could not download it" in done.stderr
    assert "could not be fetched" in done.stderr


def test_download_command_says_that_no_node_runs(here: Site) -> None:
    done = here.run("nobody", "download", MODEL, environment=environment(here.folder / "m"))
    assert done.returncode != 0
    assert "No node runs here, so the mesh cannot be asked" in done.stderr


def fetch_failed(status: Status) -> bool:
    """Whether the node has given up to fetch its model for now."""
    return any("could not be fetched" in model["reason"] for model in status["models"])


def test_node_without_uploads_serves_no_files(here: Site, real: Path) -> None:
    host = holder(here, real, "host", "--share", "none")
    folder = here.folder / "taker-models"
    taker = here.node("taker", "--model", MODEL, join=host, environment=environment(folder))
    status = taker.until(fetch_failed, "the end of the fetch")
    assert "uploads are disabled there" in status["models"][0]["reason"]
    assert given(host) == 0
    assert host.status()["sharing"]["upload_enabled"] is False


def test_unknown_name_is_reported_with_the_number_of_nodes(here: Site) -> None:
    host = here.node("host")
    taker = here.node("taker", "--model", "Nobody-Has-This", join=host, environment=environment(here.folder / "m"))
    status = taker.until(
        lambda s: s["models"] and "no other node of the mesh has it (asked 1)" in s["models"][0]["reason"], "the answer"
    )
    assert "Nobody-Has-This" in status["models"][0]["reason"]


def test_upload_limit_is_shown_in_the_status(here: Site) -> None:
    node = here.node("node", "--upload-limit", "2.5")
    assert node.status()["sharing"]["upload_limit"] == 2_500_000
