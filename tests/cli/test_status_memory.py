"""Memory options, and memory and placement in the status and its command."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from meshllm.cli import entry, start, view
from meshllm.cli import status as status_command
from meshllm.core import events as e
from meshllm.core.memory.devices import Device, MachineMemory
from meshllm.core.node import NodeCore
from meshllm.core.snapshot import ModelFacts, ServerFacts
from meshllm.core.split.host import MeasuredModel
from meshllm.daemon.settings import Settings
from meshllm.errors import UsageError
from meshllm.web.console.status import StatusInputs, node_status

GB = 10**9
FIT = "3 of 4 layers on CUDA0: 5.1 GB of 6.0 GB; the rest on the processor: 2.0 GB of 20.0 GB; context 4096 of 8192"
MACHINE = MachineMemory(
    32 * GB, 20 * GB, limited=True, cap=5 * GB, known=True, used=("CUDA0",),
    devices=(
        Device("CUDA0", "H200", "CUDA", 8 * GB, 6 * GB), Device("Vulkan1", "Iris", "Vulkan", 16 * GB, 9 * GB, True),
    ),
)  # fmt: skip


def serving(*, template: bool = True) -> NodeCore:
    mesh = NodeCore()
    for event in (
        e.ModelWanted("m"),
        e.EngineReady("1"),
        e.FileReady("m", ModelFacts("/m.gguf", 100, "llama", 8192, template=template)),
        e.ModelMeasured("m", MeasuredModel(fits_locally=True, free_bytes=GB)),
        e.ServerReady("m", 1, ServerFacts("/s.sock", 1, 1, 4096, 7 << 30, placement_text=FIT)),
    ):
        mesh.handle(event, 0.0)
    return mesh


def settings(monkeypatch: pytest.MonkeyPatch, *options: str) -> Settings:
    taken: list[Settings] = []
    monkeypatch.setattr(start, "run", lambda given, **_: taken.append(given))
    result = CliRunner().invoke(entry.app, list(options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return taken[0]


def test_memory_options_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings(monkeypatch)
    assert (plain.max_memory, plain.devices) == (None, ())
    given = settings(monkeypatch, "--max-vram", "5.5", "--device", "CUDA0, CUDA1", "--device", "Vulkan0")
    assert (given.max_memory, given.devices) == (5_500_000_000, ("CUDA0", "CUDA1", "Vulkan0"))
    assert CliRunner().invoke(entry.app, ["--max-vram", "0"]).exit_code == 2
    with pytest.raises(UsageError, match="--split needs a --model"):
        settings(monkeypatch, "--split")
    for option in ("--max-vram=5", "--device=CUDA0"):
        with pytest.raises(UsageError, match="a client serves no models"):
            settings(monkeypatch, "--client", option)


def test_viewer_shows_the_placement_of_a_served_model() -> None:
    out = io.StringIO()
    viewer = view.LineViewer(view.PlainConsole(out))
    viewer.snapshot(serving().snapshot())
    assert f"serving m (1 request at a time, 4,096 tokens each): {FIT}\n" in out.getvalue()


def inputs(core: NodeCore, machine: MachineMemory) -> StatusInputs:
    return StatusInputs(
        snapshot=core.snapshot(), name="n", version="1", pid=1, api="a", console="c", started=0.0, machine=machine
    )


def told(*, template: bool = True) -> dict[str, Any]:
    status = node_status(inputs(serving(template=template), MACHINE), 1.0)
    found: dict[str, Any] = orjson.loads(status.model_dump_json())
    return found


def test_status_contains_memory_devices_and_placement() -> None:
    status = told()
    assert status["models"][0]["engine"]["placement_text"] == FIT
    machine = status["machine"]
    assert (machine["memory_total"], machine["memory_limited"], machine["cap"]) == (32 * GB, True, 5 * GB)
    assert machine["offered"] == 5 * GB
    assert [(device["name"], device["used"], device["shared"]) for device in machine["devices"]] == [
        ("CUDA0", True, False),
        ("Vulkan1", False, True),
    ]


def test_status_devices_are_null_until_the_engine_lists_them() -> None:
    status = node_status(inputs(NodeCore(), MachineMemory(32 * GB, 20 * GB)), 1.0)
    assert status.machine is not None
    assert status.machine.devices is None


def test_status_command_shows_memory_devices_and_placement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_command, "fetch", lambda port: orjson.dumps(told()))
    monkeypatch.setenv("COLUMNS", "200")
    status_command.show(3131, as_json=False)
    shown = capsys.readouterr().out
    assert "memory 20.0 GB of 32.0 GB free, limited by a cgroup; 5.0 GB for models (--max-vram 5.0 GB)" in shown
    assert "CUDA0 (H200): 6.0 GB of 8.0 GB free, dedicated\n" in shown
    assert "Vulkan1 (Iris): 9.0 GB of 16.0 GB free, shared with main memory; not used" in shown
    assert f"m: {FIT}" in shown


@pytest.mark.parametrize("template", [True, False])
def test_status_command_warns_of_a_model_without_chat_template(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], template: bool
) -> None:
    monkeypatch.setattr(status_command, "fetch", lambda port: orjson.dumps(told(template=template)))
    status_command.show(3131, as_json=False)
    assert ("m has no chat template: it continues texts" in capsys.readouterr().out) == (not template)


def test_status_command_hides_an_unused_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = told()
    monkeypatch.setattr(status_command, "fetch", lambda port: orjson.dumps(status))
    status_command.show(3131, as_json=False)
    assert "\nengine ready 1" in capsys.readouterr().out
    status["engine"]["phase"] = "unknown"
    status_command.show(3131, as_json=False)
    assert "\nengine" not in capsys.readouterr().out


def test_status_command_prints_a_reason_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = told()
    status["models"][0] |= {"phase": "failed", "reason": "it takes 6.0 GB", "advice": "Add a [node]."}
    status["models"][0]["engine"] = None
    split = {"model": "m", "shares": [], "reason": "it takes 6.0 GB"}
    status["splits"] = [split]
    monkeypatch.setattr(status_command, "fetch", lambda port: orjson.dumps(status))
    monkeypatch.setenv("COLUMNS", "80")
    status_command.show(3131, as_json=False)
    assert capsys.readouterr().out.count("m: it takes 6.0 GB") == 1
    status["models"][0]["reason"] = ""
    status["splits"] = [split | {"reason": "others are asked"}]
    status_command.show(3131, as_json=False)
    assert "\nm: others are asked\n" in capsys.readouterr().out
