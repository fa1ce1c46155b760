"""The demand of the mesh in the status and its command."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from meshllm.cli import status as status_command
from meshllm.core import events as e
from meshllm.core.memory.devices import MachineMemory
from meshllm.core.records import ModelLoad, Role
from meshllm.web.console.status import StatusInputs, node_status
from tests.core.small_mesh import SmallMesh

MACHINE = MachineMemory(32 << 30, 20 << 30)


def status_of(mesh: SmallMesh, number: int) -> dict[str, Any]:
    core = mesh.cores[number]
    inputs = StatusInputs(
        snapshot=core.snapshot(),
        name=f"n{number}",
        version="1",
        pid=1,
        api="a",
        console="c",
        started=0.0,
        machine=MACHINE,
        outlook=core.demand_outlook(mesh.now),
    )
    found: dict[str, Any] = orjson.loads(node_status(inputs, mesh.now).model_dump_json())
    return found


def told() -> dict[str, Any]:
    """The status of a node whose callers asked for two models, of which the mesh serves one."""
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.until(mesh.whole, within=20)
    mesh.serve(1, "served")
    mesh.tell(0, e.MeshModelRequested("[absent]"))
    mesh.run(1)
    for number, count in ((0, 5), (1, 300)):
        mesh.tell(number, e.ModelsAsked((("served", count), ("[absent]", 1))))
    mesh.run(1)
    return status_of(mesh, 0)


def shown(
    status: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int = 200
) -> str:
    """What the command prints for `status`."""
    monkeypatch.setattr(status_command, "fetch", lambda port: orjson.dumps(status))
    monkeypatch.setenv("COLUMNS", str(columns))
    status_command.show(3131, as_json=False)
    return capsys.readouterr().out


NO_FILE = "No node offers it from its disk. 'mesh-llm download '[absent]'' gets it."


def test_status_adds_up_the_demand_of_the_mesh() -> None:
    served, absent = told()["mesh"]["demand"]
    figures = ("requests", "nodes", "wishes", "hosts", "loading", "active", "waiting", "outlook", "obstacles")
    assert [served[name] for name in figures] == [4 + 256, 2, 1, 1, 0, 0, 0, "", []]
    assert [absent[name] for name in figures] == [2, 2, 1, 0, 0, 0, 0, NO_FILE, ["no file"]]


def test_status_says_what_each_node_does_next() -> None:
    found = told()
    plans = [(plan["name"], plan["act"], plan["text"]) for plan in found["mesh"]["plans"]]
    assert plans == [
        ("n0", "asks", "was started with [absent], and does not serve it yet"),
        ("n1", "serves", "keeps served: its owner asked for it"),
    ]
    assert found["mesh"]["plans"][0]["node"] == found["mesh"]["node"]


def test_status_counts_the_requests_that_wait_at_hosts() -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.until(mesh.whole, within=20)
    mesh.serve(1, "served")
    mesh.tell(1, e.LoadsChanged((ModelLoad("served", 4, 3),)))
    mesh.run(1)
    mesh.tell(0, e.ModelsAsked((("served", 5),)))
    mesh.until(lambda: [entry["waiting"] for entry in status_of(mesh, 0)["mesh"]["demand"]] == [3], within=200)
    assert status_of(mesh, 0)["mesh"]["demand"][0]["active"] == 4


def test_status_of_a_client_has_the_demand_without_an_outlook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)], role=Role.CLIENT)
    mesh.serve(0, "served")
    mesh.until(lambda: bool(mesh.view(1).peers), within=20)
    mesh.tell(0, e.ModelsAsked((("served", 5),)))
    mesh.until(lambda: bool(status_of(mesh, 1)["mesh"]["demand"]), within=200)
    found = status_of(mesh, 1)
    assert found["mesh"]["plans"] == []
    out = shown(found, monkeypatch, capsys)
    assert "(this is client" in out or "this is client" in out
    assert "clients" not in out, "a client has none"
    assert "0 client" not in out


def test_status_command_shows_the_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(told(), monkeypatch, capsys)
    lines = [line.split() for line in out.splitlines()]
    assert ["demand", "asked", "lately", "asked", "on", "started", "on", "hosts", "loading", "waiting"] in lines
    assert ["served", "260+", "2", "nodes", "1", "node", "1"] in lines
    assert ["[absent]", "2+", "2", "nodes", "1", "node", "none"] in lines
    assert f"[absent]: {NO_FILE}" in out
    assert "next: this node was started with [absent], and does not serve it yet" in out


def test_status_command_cuts_no_name_in_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = told()
    (peer,) = status["mesh"]["peers"]
    peer |= {"name": "n0", "memory_planned": 12_300_000_000, "memory_used": 11_200_000_000, "rtt": 0.1234}
    peer |= {"models": ["A-rather-long-name-of-a-model-Q4_K_M"], "active": 12, "waiting": 34, "transport": "lane"}
    out = shown(status, monkeypatch, capsys, 80)
    table = out[out.index("\nnode ") + 1 : out.index("\ndemand ")]
    assert "…" not in out
    assert all(len(line) <= 80 for line in table.splitlines())
    names = "".join(line[: table.index("status")] for line in table.splitlines()[1:])
    assert names.replace(" ", "") == f"n0({peer['id'][:10]})"
    at = slice(table.index("models"), table.index("memory"))
    assert "".join(line[at] for line in table.splitlines()[1:]).replace(" ", "") == peer["models"][0]
    for figure in ("123.4 ms lane", "11.2 GB of 12.3 GB"):
        assert figure in table


def test_status_command_shows_ids_beside_equal_names_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = told()
    (peer,) = status["mesh"]["peers"]
    assert f"({peer['id'][:10]})" not in shown(status, monkeypatch, capsys)
    status["mesh"]["peers"].append({**peer, "id": "ab" * 32})
    out = shown(status, monkeypatch, capsys)
    assert f"n1 ({peer['id'][:10]})" in out
    assert f"n1 ({'ab' * 5})" in out


def test_status_command_tells_what_the_owner_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.serve(0, "served")
    mesh.tell(0, e.DropWanted("served"))
    found = status_of(mesh, 0)
    assert found["dropped"] == [{"model": "served", "seconds": 86_400}]
    line = "served: The owner of this node dropped it: for 24 h this node does not load it for the mesh."
    assert line in shown(found, monkeypatch, capsys)
    mesh.tell(0, e.LoadWanted("served"))
    assert status_of(mesh, 0)["dropped"] == []
