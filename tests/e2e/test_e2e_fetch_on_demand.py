"""A standby downloads a model that the mesh asks for and that no node could load. Real daemons, the real engine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from here import joined, serves, site
from test_e2e_on_demand import disk

pytestmark = pytest.mark.engine

OPTIONS = ("--share", "all", "--ctx-size", "256", "--no-speculation", "--threads", "1", "--fetch-on-demand")


def test_standby_with_an_empty_folder_downloads_from_a_peer_that_cannot_load_and_answers(tmp_path: Path) -> None:
    with site(tmp_path / "mesh") as here:
        folder = disk(here.folder / "models of first", "wanted", "unwanted")
        first = here.node("first", "--share", "all", environment=folder)  # it takes no model by itself
        client = here.node("client", "--client", join=first)
        client.until(joined, "the mesh")
        assert first.chat("wanted").status == 404, "it has the file, and no node loads it"
        empty = here.folder / "models of standby"
        options = (*OPTIONS, "--max-download", "0.01")  # room for one of the two
        standby = here.node("standby", *options, join=first, environment={"MESH_LLM_MODELS": str(empty)})
        standby.until(joined, "the mesh")
        size = (here.folder / "models of first" / "wanted.gguf").stat().st_size
        assert 0.5e7 < size < 1e7
        begun = time.monotonic()
        answer = first.chat("wanted", stream=True)
        print(f"answered after {time.monotonic() - begun:.1f} s")
        assert (answer.status, answer.done, answer.body) == (200, True, {})
        client.until(serves("wanted"), "it to be known")
        assert client.chat("wanted").status == 200
        assert (empty / "wanted.gguf").stat().st_size == size
        kept = json.loads((here.folder / "standby" / "demand-downloads.json").read_text())
        assert [(name, bytes) for name, bytes, _ in kept] == [("wanted.gguf", size)]
        first.until(lambda status: first.chat("unwanted").status == 404, "no room to be left for another one")
        assert [path.name for path in empty.glob("*.gguf")] == ["wanted.gguf"]
