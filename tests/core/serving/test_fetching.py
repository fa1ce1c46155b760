"""Who downloads a demanded model: one of the nodes that may, only what is known, and only if no node could load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.demand.mesh_demand import DemandClaim, scores
from meshllm.core.ids import NodeId
from meshllm.core.node import DROPPED_SECONDS
from meshllm.core.records import NodeRecord, ServedModel
from meshllm.core.routing import routes
from meshllm.core.routing.routes import Availability
from meshllm.core.serving import demand_text
from meshllm.core.serving.demand_placement import AVOID_SECONDS
from meshllm.core.serving.fetching import DOWNLOAD_CLAIM_SECONDS, DOWNLOAD_PATIENCE_SECONDS, FetchFacts, choose
from meshllm.core.serving.placement import MIB, PATIENCE_SECONDS, PlacementView
from meshllm.core.snapshot import FilePhase, ModelFacts
from tests.core.serving.test_follow_demand import ServingMesh
from tests.core.serving.test_placement import GIB, record
from tests.core.small_mesh import node_id

SIZE = 4 << 30
CATALOG = {"m": SIZE, "other": SIZE}
LONG = {"m": DOWNLOAD_PATIENCE_SECONDS + PATIENCE_SECONDS, "peer file": DOWNLOAD_PATIENCE_SECONDS}


def downloader(number: int, **fields: object) -> NodeRecord:
    """A standby with an empty disk whose owner lets it download 8 GiB."""
    return record(number, **{"memory": 8 * GIB, "download_room": 8 * GIB, **fields})  # type: ignore[arg-type]


def asker(*models: str, number: int = 99) -> NodeRecord:
    return record(number, demand=keyed([DemandLevel(model, 3) for model in models]), idle=True)


def chosen(
    *records: NodeRecord,
    own: int,
    catalog: Mapping[str, int] = CATALOG,
    foreign: tuple[NodeId, ...] = (),
    waited: Mapping[str, float] = LONG,
    refused: tuple[str, ...] = (),
    avoided: tuple[str, ...] = (),
) -> str:
    """What node `own` of these nodes downloads."""
    owned = {each.node for each in records} - set(foreign)
    claims = [DemandClaim(each, each.node, each.node in owned) for each in records]
    view = PlacementView(records, scores(claims, catalog), owned)
    mine = next(each for each in records if each.node == node_id(own))
    need = choose(view, mine, FetchFacts(records, catalog, refused), waited, avoided)
    return need.model if need is not None else ""


def choices(*records: NodeRecord, count: int) -> list[str]:
    return [chosen(*records, own=number, waited={"m": DOWNLOAD_PATIENCE_SECONDS}) for number in range(count)]


def test_one_of_several_nodes_downloads_a_model_of_the_catalogue() -> None:
    nodes = [downloader(number) for number in range(5)]
    assert sorted(choices(asker("m"), *nodes, count=5)) == ["", "", "", "", "m"]
    first = choices(asker("m"), *nodes, count=5).index("m")
    assert choices(*reversed(nodes), asker("m"), count=5).index("m") == first, "in whatever order they are known"


def test_second_node_downloads_if_the_first_one_does_not() -> None:
    nodes = [downloader(number) for number in range(2)]
    assert [chosen(asker("m"), *nodes, own=number) for number in range(2)] == ["m", "m"]
    first = choices(asker("m"), *nodes, count=2).index("m")
    nodes[first] = replace(nodes[first], loading=("m",))
    assert chosen(asker("m"), *nodes, own=1 - first) == "", "the first one says that it does"


def test_nothing_is_downloaded_before_the_demand_has_lasted() -> None:
    nodes = asker("m"), downloader(0)
    assert chosen(*nodes, own=0, waited={"m": DOWNLOAD_PATIENCE_SECONDS - 1}) == ""
    assert chosen(*nodes, own=0, waited={"m": DOWNLOAD_PATIENCE_SECONDS}) == "m"
    assert chosen(downloader(0), own=0) == "", "nobody asks"


@pytest.mark.parametrize(
    "fields",
    [
        {"download_room": 0},
        {"download_room": SIZE - 1},
        {"memory": SIZE},  # no memory for its context
        {"memory": 0},  # not known
        {"idle": True},
        {"leaving": True},
        {"wants": ("other",)},
        {"serves": (ServedModel("other", slots=4),)},
    ],
)
def test_node_that_may_not_or_could_not_serve_it_downloads_nothing(fields: dict[str, object]) -> None:
    assert chosen(asker("m"), downloader(0), own=0) == "m"
    assert chosen(asker("m"), downloader(0, **fields), own=0) == ""


def test_model_that_another_node_serves_or_could_load_is_not_downloaded() -> None:
    disk = {"disk_sizes": (SIZE // MIB,)}
    others = {
        "serves it": record(1, serves=(ServedModel("m", slots=1),)),
        "loads it": record(1, loading=("m",)),
        "loads it for a request": record(1, "m", room=8 * GIB, **disk, serves=(ServedModel("x", slots=1),)),
        "takes it from its disk": record(1, "m", memory=8 * GIB, **disk),
        "was started with it": record(1, wants=("m",), memory=8 * GIB),
    }
    for what, other in others.items():
        assert chosen(asker("m"), downloader(0), other, own=0) == "", what
    others = {
        "is idle": record(1, "m", memory=8 * GIB, idle=True, **disk),
        "has no memory": record(1, "m", memory=SIZE // 2, room=SIZE // 2, **disk),
        "was started with it, in vain": record(1, wants=("m",), memory=SIZE // 2),
    }
    for what, other in others.items():
        assert chosen(asker("m"), downloader(0), other, own=0) == "m", what


def test_only_names_of_the_catalogue_and_of_the_owners_disks_are_downloaded() -> None:
    assert chosen(asker("made up"), downloader(0), own=0, waited={"made up": 1e6}) == ""
    holder = record(1, "peer file", disk_sizes=(SIZE // MIB,), idle=True)
    assert chosen(asker("peer file"), downloader(0), holder, own=0) == "peer file"
    assert chosen(asker("peer file"), downloader(0), holder, own=0, foreign=(node_id(1),)) == ""
    unknown = replace(holder, disk_sizes=())
    assert chosen(asker("peer file"), downloader(0), unknown, own=0) == "", "its size is not known"
    larger = replace(holder, disk_sizes=(9 * GIB // MIB,))
    assert chosen(asker("peer file"), downloader(0, memory=16 * GIB), larger, own=0) == ""


def test_demand_of_a_guest_alone_makes_no_node_download() -> None:
    guest = asker("m", number=98)
    assert chosen(guest, downloader(0), own=0, foreign=(guest.node,)) == ""
    assert chosen(guest, asker("m"), downloader(0), own=0, foreign=(guest.node,)) == "m"


def test_dropped_and_failed_models_are_not_downloaded() -> None:
    nodes = asker("m"), downloader(0)
    assert chosen(*nodes, own=0, refused=("m",)) == ""
    assert chosen(*nodes, own=0, avoided=("m",)) == ""


def test_node_that_downloads_one_model_leaves_another_one_to_the_others() -> None:
    nodes = [downloader(number) for number in range(6)]
    catalog = dict.fromkeys("abcdef", SIZE)
    waited = dict.fromkeys(catalog, DOWNLOAD_PATIENCE_SECONDS)
    found = [chosen(asker(*catalog), *nodes, own=number, catalog=catalog, waited=waited) for number in range(6)]
    assert sorted(found) == sorted(catalog)


def test_node_that_could_not_serve_it_holds_no_other_one_back() -> None:
    for fields in ({"serves": (ServedModel("x", slots=1),)}, {"memory": SIZE}, {"download_room": 1}):
        nodes = [downloader(number) for number in range(2)]
        first = choices(asker("m"), *nodes, count=2).index("m")
        nodes[first] = replace(nodes[first], **fields)  # type: ignore[arg-type]
        assert choices(asker("m"), *nodes, count=2)[1 - first] == "m"


# -- nodes of a small mesh


class DownloadingMesh(ServingMesh):
    """Its nodes know the catalogue; a download lasts until the test ends it."""

    catalog = CATALOG

    def _carry_out(self, number: int, command: c.Command) -> None:
        match command:
            case c.FetchModel():
                self.commands.append((number, command))
            case c.AllowDownload() | c.ForgetModel():
                self.commands.append((number, command))
            case _:
                super()._carry_out(number, command)

    def downloading(self) -> list[int]:
        """The nodes that download "m"."""
        return [
            number
            for number, core in self.cores.items()
            if (found := core.snapshot().model("m")) is not None and found.file is FilePhase.FETCHING
        ]


def mesh_of(count: int) -> DownloadingMesh:
    """Node 0 is asked and takes nothing, the others may download."""
    mesh = DownloadingMesh()
    mesh.start(0, idle=True)
    for number in range(1, count):
        mesh.start(number, [mesh.way(0)])
    mesh.until(mesh.whole, within=30)
    for number in range(1, count):
        mesh.tell(number, e.MachineObserved(8 << 30, models=(), download_room=8 << 30))
    mesh.run(6)
    mesh.tell(0, e.ModelsAsked((("m", 5),)))
    return mesh


def test_standby_with_an_empty_disk_downloads_and_serves_a_demanded_model() -> None:
    mesh = mesh_of(4)
    assert routes.route(mesh.cores[0].snapshot(), "m").availability is Availability.COMING
    assert routes.route(mesh.cores[0].snapshot(), "made up").availability is Availability.UNKNOWN
    mesh.run(DOWNLOAD_PATIENCE_SECONDS - 2)
    assert mesh.downloading() == []
    said = mesh.cores[1].demand_outlook(mesh.now)
    assert said is not None
    taker = said.models["m"].taker
    assert taker is not None
    assert demand_text.node_text(taker, said).startswith("downloads m")
    mesh.until(lambda: bool(mesh.downloading()), within=10)
    (node,) = mesh.downloading()
    assert node_id(node) == taker.node, "as was said"
    assert [command for number, command in mesh.commands if number == node][-2:] == [
        c.AllowDownload("m", int(mesh.record(node).memory / 1.1)),
        c.FetchModel("m"),
    ]
    mesh.run(DOWNLOAD_CLAIM_SECONDS / 4)
    assert mesh.downloading() == [node], "one node, however long it takes"
    (target,) = routes.route(mesh.cores[0].snapshot(), "m").targets
    assert target.address == node_id(node).hex(), "callers wait there"
    mesh.tell(node, e.FileReady("m", ModelFacts("/m", SIZE, "llama", 8192)))
    mesh.until(lambda: mesh.serving("m") == [node], within=10)


def test_failed_download_is_left_to_others_for_a_while() -> None:
    mesh = mesh_of(2)
    mesh.until(lambda: mesh.downloading() == [1], within=30)
    mesh.tell(1, e.FileFailed("m", "no peer answers"))
    mesh.run(AVOID_SECONDS - 60)
    assert mesh.cores[1].snapshot().model("m") is None
    assert (1, c.ForgetModel("m")) in mesh.commands
    mesh.tell(0, e.ModelsAsked((("m", 5),)))
    mesh.until(lambda: mesh.downloading() == [1], within=120)


def test_drop_ends_a_download_and_keeps_the_model_away() -> None:
    mesh = mesh_of(2)
    mesh.until(lambda: mesh.downloading() == [1], within=30)
    mesh.tell(1, e.DropWanted("m"))
    assert (1, c.ForgetModel("m")) in mesh.commands
    for _ in range(20):
        mesh.tell(0, e.ModelsAsked((("m", 5),)))
        mesh.run(60)
        assert mesh.downloading() == []
    ((model, until),) = mesh.cores[1].snapshot().dropped
    assert model == "m"
    assert until > mesh.now + DROPPED_SECONDS / 2
