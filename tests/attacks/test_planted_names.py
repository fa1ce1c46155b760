"""Audit, C2 and row 4: a file on the disk that has the name of a known model and another content."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from meshllm.models.catalog.catalog import load
from meshllm.models.library.store import Store
from meshllm.models.p2p.seed_index import StoreSeedIndex
from meshllm.models.p2p.seeder import Seeder
from meshllm.models.p2p.share_policy import Share, SharePolicy
from meshllm.net.base import StreamKind
from meshllm.wire.mesh import files as w
from meshllm.wire.mesh.invite import decode
from tests.attacks.hostile_member import invited
from tests.daemons import MODEL
from tests.e2e.here import Site, joined, site
from tests.netlab.nodes import Node, Status

KNOWN = "Qwen3-8B"
ALONE = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


@pytest.fixture
def real() -> Path:
    """The file of the real model."""
    return next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))


def around(folder: Path) -> dict[str, str]:
    """The environment of a node whose models are in `folder`."""
    folder.mkdir(exist_ok=True)
    return {"MESH_LLM_MODELS": str(folder), "HF_HOME": str(folder / "no"), **ALONE}


def on_disk(status: Status, name: str) -> Any:
    """The models that the peer of that name says it has."""
    return next((peer["on_disk"] for peer in status["mesh"]["peers"] if peer["name"] == name), None)


def listed(here: Site, home: str, folder: Path) -> dict[str, Any]:
    """The models of `mesh-llm models`, by name."""
    done = here.run(home, "models", "--json", environment=around(folder))
    return {item["name"]: item for item in json.loads(done.stdout)}


def test_planted_files_are_not_offered_under_a_known_name(here: Site, real: Path) -> None:
    """Under the file's name, under the model's name, and with the size of the catalogue's file."""
    folder = here.folder / "planted"
    environment = around(folder)
    for name in ("Qwen3-8B-Q4_K_M.gguf", f"{KNOWN}.gguf"):
        shutil.copy(real, folder / name)
    evil = folder / real.name
    evil.write_bytes(real.read_bytes()[:-4] + b"evil")
    # A model of the owner's own name shows when the node has looked at its disk.
    shutil.copy(real, folder / "mine.gguf")
    victim = here.node("victim", "--node-name", "victim", "--share", "all", environment=environment)
    other = here.node("other", join=victim)
    other.until(joined, "the mesh")
    status = other.until(lambda status: on_disk(status, "victim"), "the victim's models")
    assert on_disk(status, "victim") == ["mine"]

    def is_hashed(status: Status) -> bool:
        return not status["sharing"]["checks"] and listed(here, "victim", folder)[evil.stem]["sha256"] is not None

    victim.until(is_hashed, "the digest of the file of the right size")
    assert on_disk(other.status(), "victim") == ["mine"]
    for name, item in listed(here, "victim", folder).items():
        if name != "mine":
            assert item["state"] == "other-content", name
            assert f"--model {item['files'][0]}" in item["reason"]
    text = here.run("victim", "models", environment=environment).stdout
    assert text.count("and other content (") == 3
    assert victim.stop() == 0
    assert "is not offered to other nodes" in (here.folder / "victim" / "logs" / "daemon.log").read_text()


def test_right_file_is_offered_after_its_digest_was_checked(here: Site, real: Path) -> None:
    folder = here.folder / "right"
    environment = around(folder)
    shutil.copy(real, folder / real.name)
    holder = here.node("holder", "--node-name", "holder", environment=environment)
    other = here.node("other", join=holder)
    other.until(lambda status: joined(status) and MODEL in (on_disk(status, "holder") or ()), f"{MODEL} being offered")
    assert listed(here, "holder", folder)[MODEL]["state"] == "verified"
    entry = next((folder / ".mesh-llm" / "manifests").glob("*.json"))
    read_at = entry.stat().st_mtime_ns
    assert holder.stop() == 0
    again = here.node("holder", "--node-name", "holder", environment=environment)
    other.until(
        lambda status: joined(status) and MODEL in (on_disk(status, "holder") or ()), "the same after a restart"
    )
    assert entry.stat().st_mtime_ns == read_at, "an unchanged file is not hashed again"
    assert again.stop() == 0


class _Lying(StoreSeedIndex):
    """Says of its only file that it is the model that is asked for."""

    async def find(self, name: str) -> w.FoundModels | w.FileRefusal:
        found = await super().find("any")
        if isinstance(found, w.FileRefusal):
            return found
        return w.FoundModels(tuple(replace(model, name=name) for model in found.models))


def test_members_word_is_no_digest_of_the_catalogue(here: Site, real: Path) -> None:
    """Of a model whose digest only the hub knows, the mesh knows none either: without the hub it is not fetched."""
    folder, mine = here.folder / "victim", here.folder / "hostile-models"
    mine.mkdir()
    shutil.copy(real, mine / "any.gguf")
    wanted = next(entry.name for entry in load().entries if entry.hub is not None and not entry.sha256)
    host = here.node("host")

    async def attack() -> Status:
        store = Store(mine)
        index = _Lying(store, lambda: False, SharePolicy(Share.ALL, store))
        seeder = Seeder(index, lambda: None)
        async with invited(here.folder / "hostile", decode(host.invite())) as member:
            member.serve = lambda kind: seeder.serve("victim") if kind is StreamKind.FILES else None
            member.publish(name="hostile", on_disk=(wanted,))
            try:
                # With an invite that names the host alone: the hostile member admits nobody.
                token = here.run("host", "invite", "--once").stdout
                words = ("--model", wanted, "--join", "-")
                node = Node(host.host, here.folder / "v", *words, environment=around(folder), stdin=token)
                victim = await asyncio.to_thread(here.adopt, node)
                await asyncio.to_thread(victim.until, lambda status: on_disk(status, "hostile"), "the hostile member")
                return await asyncio.to_thread(
                    victim.until,
                    lambda status: status["models"] and _is_refused_or_here(status),
                    "the end of the search",
                )
            finally:
                await seeder.close()
                await index.close()

    status = asyncio.run(attack())
    assert status["models"][0]["file"] is None
    assert list(folder.glob("*.gguf")) == []


def _is_refused_or_here(status: Status) -> bool:
    """Whether the model's files are here, or the mesh will not be asked for them."""
    model = status["models"][0]
    waits = "no other node" in model["reason"]  # it is asked again: the hostile member was not known yet
    return (bool(model["reason"]) and not waits) or model["file"] is not None


@pytest.mark.engine
def test_planted_file_is_served_by_its_path_only(here: Site, real: Path) -> None:
    folder = here.folder / "planted"
    environment = around(folder)
    planted = folder / f"{KNOWN}.gguf"
    shutil.copy(real, planted)
    words = ("--ctx-size", "512", "--no-speculation")
    by_name = here.node("victim", "--model", KNOWN, *words, environment=environment)
    status = by_name.until(lambda status: status["models"] and status["models"][0]["reason"], "that it is not here")
    assert status["models"][0]["phase"] != "serving"
    assert by_name.stop() == 0
    by_path: Node = here.node("victim", "--model", str(planted), *words, environment=environment)
    by_path.wait_until_serving(KNOWN)
    assert by_path.chat(KNOWN).status == 200
