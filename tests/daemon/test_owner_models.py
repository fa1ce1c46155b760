"""The owner's words to a running node: which model a name means, and what is posted to the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from meshllm.core import events as e
from meshllm.core.membership.views import MeshView
from meshllm.core.memory.devices import MachineMemory
from meshllm.core.memory.fit_preview import FitOutlook
from meshllm.core.records import BootstrapAddress, PeerAddress
from meshllm.core.snapshot import ModelState, ServerPhase, Snapshot
from meshllm.daemon.mesh_state import MeshState
from meshllm.daemon.owner_models import OwnerModels
from meshllm.daemon.settings import Settings
from meshllm.daemon.supervisor import Supervisor
from meshllm.errors import AmbiguousModel, UnknownModel, UsageError
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.web.console.model_acts import LoadBegun
from tests import engine_samples
from tests.core.small_mesh import SmallMesh

NAME = "SmolLM2-135M-Instruct"
MACHINE = MachineMemory(32 << 30, 20 << 30, known=True)


class Rig:
    """A node with these models; the core and the supervisor only remember."""

    def __init__(
        self,
        folder: Path,
        *models: ModelState,
        wants: tuple[str, ...] = (),
        client: bool = False,
        mesh: MeshView | None = None,
    ) -> None:
        self.sources: dict[str, Wanted | None] = {}
        self.posted: list[e.Event] = []
        snapshot = Snapshot(version=9, models=models, wants=wants, mesh=mesh)
        settings = Settings(folder, client=client)
        self.owner = OwnerModels(
            settings, cast(Supervisor, self), self.posted.append, lambda: snapshot, lambda: MACHINE
        )

    def request(self, name: str, source: Wanted | None) -> None:
        self.sources[name] = source

    def source(self, name: str) -> Wanted | None:
        return self.sources.get(name)


@pytest.fixture(autouse=True)
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))


@pytest.mark.parametrize("text", ["smollm2", NAME, NAME.lower(), "SmolLM2 135M Instruct"])
async def test_load_takes_names_in_any_spelling(tmp_path: Path, text: str) -> None:
    rig = Rig(tmp_path)
    assert await rig.owner.load(text) == LoadBegun(NAME, 9, serves=False)
    assert rig.posted == [e.LoadWanted(NAME)]
    assert isinstance(rig.sources[NAME], CatalogEntry)


def mesh_of(*served: str) -> MeshView:
    """A mesh whose other node serves these models."""
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, [mesh.way(1)])
    for model in served:
        mesh.serve(2, model)
    mesh.until(mesh.whole)
    mesh.tell(1, e.MeshModelRequested("wished"))
    mesh.run(5)
    return mesh.view(1)


@pytest.mark.parametrize(
    ("text", "name"),
    [("toy", "toy.Q4_1"), ("TOY:q4_1", "toy.Q4_1"), ("toy.Q4_1", "toy.Q4_1"), ("other", "Other-Q8_0")],
)
async def test_load_takes_what_the_mesh_has_under_a_name(tmp_path: Path, text: str, name: str) -> None:
    rig = Rig(tmp_path, mesh=mesh_of("toy.Q4_1", "Other-Q8_0"))
    assert (await rig.owner.load(text)).model == name
    assert rig.sources == {name: None}, "another node has it"


async def test_load_of_a_catalogue_name_is_not_what_the_mesh_has_in_another_quantization(tmp_path: Path) -> None:
    rig = Rig(tmp_path, mesh=mesh_of(f"{NAME}-Q8_0"))
    assert (await rig.owner.load(NAME)).model == NAME


@pytest.mark.parametrize("text", ["toy-typo", "toi", "wished", "nothing at all"])
async def test_load_of_a_name_that_nobody_has_is_refused(tmp_path: Path, text: str) -> None:
    others = (BootstrapAddress(b"a" * 32, (PeerAddress("192.0.2.1", 9),)),)
    MeshState.open(tmp_path).save_peers(others)  # so that a start would leave the name to the mesh
    rig = Rig(tmp_path, mesh=mesh_of("toy.Q4_1", "toy2.Q4_1"))
    with pytest.raises(UnknownModel, match="No node of the mesh has it") as caught:
        await rig.owner.load(text)
    assert "toy.Q4_1" in caught.value.advice
    assert (rig.posted, rig.sources) == ([], {})


async def test_load_of_a_name_for_several_models_names_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path, mesh=mesh_of("toy.Q4_1", "toy.Q8_0"))
    with pytest.raises(AmbiguousModel) as caught:
        await rig.owner.load("toy")
    assert caught.value.candidates == ("toy.Q4_1", "toy.Q8_0")


async def test_load_takes_a_file_and_refuses_another_one_of_the_same_name(tmp_path: Path) -> None:
    file = engine_samples.model_without_needed_tensors(tmp_path / "mine.gguf")
    rig = Rig(tmp_path, ModelState("other"))
    assert (await rig.owner.load(str(file))).model == "mine"
    assert rig.sources == {"mine": file}
    (tmp_path / "elsewhere").mkdir()
    other = engine_samples.model_without_needed_tensors(tmp_path / "elsewhere" / "mine.gguf")
    served = Rig(tmp_path, ModelState("mine"))
    served.sources["mine"] = file
    with pytest.raises(UsageError, match="Two different models are both called mine"):
        await served.owner.load(str(other))
    assert served.posted == []


async def test_load_of_a_model_here_keeps_its_file(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ModelState(NAME, server=ServerPhase.SERVING))
    assert await rig.owner.load(NAME.upper()) == LoadBegun(NAME, 9, serves=True)
    assert rig.sources == {}


async def test_unknown_models_are_refused_with_what_there_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ModelState(NAME), ModelState("gone", wanted=False), wants=("b",))
    for text in ("no such model", "./missing.gguf"):
        with pytest.raises(UnknownModel):
            await rig.owner.load(text)
    for text in ("no such model", "gone", "Qwen3-8B"):
        with pytest.raises(UnknownModel, match="This node does not serve") as caught:
            await rig.owner.drop(text)
        assert caught.value.advice == f"Models here: {NAME}, b."
    with pytest.raises(UnknownModel) as caught:
        await rig.owner.drop(NAME.replace("Instruct", "Instrct"))
    assert caught.value.advice == f"Did you mean {NAME}? Models here: {NAME}, b."
    with pytest.raises(UsageError, match="client"):
        await Rig(tmp_path, client=True).owner.load(NAME)
    assert rig.posted == []


@pytest.mark.parametrize(("text", "name"), [("smollm2", NAME), (NAME.lower(), NAME), ("b", "b"), ("MINE", "mine")])
async def test_drop_takes_names_in_any_spelling(tmp_path: Path, text: str, name: str) -> None:
    rig: Any = Rig(tmp_path, ModelState(NAME), ModelState("mine"), wants=("b",))
    assert await rig.owner.drop(text) == name
    assert rig.posted == [e.DropWanted(name)]


async def test_library_lists_the_disk_and_the_catalogue(tmp_path: Path) -> None:
    file = engine_samples.model_without_needed_tensors(tmp_path / "mine.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    found = await Rig(tmp_path).owner.library()
    assert [(model.name, model.size) for model in found.disk] == [("mine", file.stat().st_size)]
    small = next(model for model in found.catalog if model.name == NAME)
    assert (small.fit, small.machines, small.on_disk, small.percent) == (FitOutlook.FITS, 1, False, 0)
    assert {model.fit for model in found.catalog} > {FitOutlook.FITS}, "some are larger than the machine"
    assert [model.size for model in found.catalog] == sorted(model.size for model in found.catalog)
