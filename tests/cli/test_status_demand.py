"""The demand of the mesh in the status and its command."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from meshllm.cli import status as status_command
from meshllm.core import events as e
from meshllm.core.memory.devices import MachineMemory
from meshllm.web.console.status import StatusInputs, node_status
from tests.core.small_mesh import SmallMesh

MACHINE = MachineMemory(32 << 30, 20 << 30)


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
    snapshot = mesh.cores[0].snapshot()
    inputs = StatusInputs(
        snapshot=snapshot, name="n", version="1", pid=1, api="a", console="c", started=0.0, machine=MACHINE
    )
    status = node_status(inputs, mesh.now)
    found: dict[str, Any] = orjson.loads(status.model_dump_json())
    return found


def test_status_adds_up_the_demand_of_the_mesh() -> None:
    assert told()["mesh"]["demand"] == [
        {"model": "served", "requests": 4 + 256, "nodes": 2, "wishes": 1, "hosts": 1},
        {"model": "[absent]", "requests": 2, "nodes": 2, "wishes": 1, "hosts": 0},
    ]


def test_status_command_shows_the_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status_command, "fetch", lambda port: orjson.dumps(told()))
    monkeypatch.setenv("COLUMNS", "200")
    status_command.show(3131, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["demand", "requests", "lately", "asked", "on", "started", "with", "it", "hosts"] in lines
    assert ["served", "260", "2", "nodes", "1", "node", "1"] in lines
    assert ["[absent]", "2", "2", "nodes", "1", "node", "none"] in lines
