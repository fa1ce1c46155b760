"""Terminal and JSON output of a running daemon."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest
from rich.console import Console

from meshllm.cli import view
from meshllm.core import events as e
from meshllm.core.node import NodeCore
from meshllm.core.snapshot import ModelFacts, ServerFacts
from meshllm.core.split.host import MeasuredModel
from meshllm.daemon.viewer import Listening
from meshllm.util.progress import Progress

LISTENING = Listening("http://localhost:1/v1", "http://localhost:2")
STORY = [
    e.ModelWanted("m[red]odel"),
    e.EngineProgress(Progress.at("engine: compile", 0.5, "ggml.c [x]")),
    e.FileProgress("m[red]odel", Progress("downloading")),
    e.FileProgress("m[red]odel", Progress.at("downloading", 0.5)),
    e.FileProgress("m[red]odel", Progress.at("verifying", 0.5)),
    e.FileReady("m[red]odel", ModelFacts("/m.gguf", 100, "llama", 8192)),
    e.EngineReady("1.0"),
    e.ModelMeasured("m[red]odel", MeasuredModel(fits_locally=True, free_bytes=1 << 30)),
    e.ServerProgress("m[red]odel", 1, Progress.at("loading", 0.9)),
    e.ServerReady("m[red]odel", 1, ServerFacts("/s.sock", 1, 4, 8192, 300 << 20)),
    e.BackendAdded("http://b"),
    e.BackendSilent("http://b", "refused"),
    e.BackendAnswered("http://b", ("x",)),
    e.ServerGone("m[red]odel", 1, "it was killed by SIGKILL"),
]


def play(viewer: view.LineViewer | view.JsonViewer) -> None:
    mesh = NodeCore()
    viewer.listening(LISTENING)
    viewer.models_hint(rejoins=False)
    for now, event in enumerate(STORY):
        mesh.handle(event, float(now))
        viewer.snapshot(mesh.snapshot())
        viewer.snapshot(mesh.snapshot())
    viewer.close()


def test_viewers_show_the_urls_for_other_machines() -> None:
    homes = [(f"http://192.0.2.{host}:1/v1", f"http://192.0.2.{host}:2") for host in range(1, 9)]
    out = io.StringIO()
    lines = view.LineViewer(view.PlainConsole(out))
    lines.listening(LISTENING)
    assert "machines" not in out.getvalue()
    lines.listening(Listening(LISTENING.api, LISTENING.console, "/home/[x]/api-key", tuple(homes)))
    told = out.getvalue()
    assert "From other machines, with the key in /home/[x]/api-key (the console is read-only there):" in told
    assert "  API      http://192.0.2.1:1/v1\n  Console  http://192.0.2.1:2\n" in told
    assert "192.0.2.8" not in told
    lines.listening(Listening(LISTENING.api, LISTENING.console, "$MESH_LLM_API_KEY"))
    assert out.getvalue().endswith("Other machines need the key in $MESH_LLM_API_KEY\n")
    services = io.StringIO()
    view.JsonViewer(services).listening(Listening(LISTENING.api, LISTENING.console, "$K", tuple(homes[:1])))
    assert json.loads(services.getvalue())["lan_urls"] == ["http://192.0.2.1:2"]


def test_viewers_show_the_url_for_clients_of_ollama() -> None:
    listening = Listening(LISTENING.api, LISTENING.console, ollama="http://localhost:11434")
    for url, shown in ((listening.ollama, listening), ("", LISTENING)):
        out, services = io.StringIO(), io.StringIO()
        view.LineViewer(view.PlainConsole(out)).listening(shown)
        assert ("Ollama   http://localhost:11434\n" in out.getvalue()) == bool(url)
        view.JsonViewer(services).listening(shown)
        assert json.loads(services.getvalue()).get("ollama", "") == url


@pytest.mark.parametrize("kind", ["plain", "lines", "terminal"])
def test_line_viewer_shows_each_change_once(kind: str) -> None:
    out = io.StringIO()
    terminal = kind == "terminal"
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    lines = view.LineViewer(view.PlainConsole(out) if kind == "plain" else console, idle=True)
    play(view.LiveViewer(console, idle=True) if terminal else lines)
    told = out.getvalue()
    assert "http://localhost:1/v1" in told
    assert "This node serves no model" in told
    assert max(map(len, view.IDLE.splitlines())) <= 80
    assert told.count("serving m[red]odel (4 requests at a time, 8,192 tokens each): 0.31 GB") == 1
    assert told.count("http://b does not answer: refused") == 1
    assert told.count("http://b serves x") == 1
    assert "SIGKILL" in told
    if not terminal:
        assert told.index("checking m[red]odel") < told.index("fetching m[red]odel")
        assert (told.count("checking m[red]odel"), told.count("fetching m[red]odel")) == (1, 1)
    assert ("restarting" if terminal else "compile") in told  # bars are drawn only so often
    if terminal:
        assert "━" in told


def test_line_viewer_tells_a_member_that_it_reconnects_to_its_mesh() -> None:
    out = io.StringIO()
    lines = view.LineViewer(view.PlainConsole(out), idle=True)
    lines.listening(LISTENING)
    lines.models_hint(rejoins=True)
    told = out.getvalue()
    assert "It reconnects to its mesh" in told
    assert "--join" not in told
    assert max(map(len, view.IDLE_REJOINS.splitlines())) <= 80
    view.LineViewer(view.PlainConsole(out)).models_hint(rejoins=True)
    assert out.getvalue() == told


def test_live_viewer_removes_its_bars_without_progress() -> None:
    viewer = view.LiveViewer(Console(file=io.StringIO(), force_terminal=True))
    mesh = NodeCore()
    for event in STORY[:9]:
        mesh.handle(event, 0.0)
        viewer.snapshot(mesh.snapshot())
    assert viewer._bars is not None
    mesh.handle(STORY[9], 1.0)
    viewer.snapshot(mesh.snapshot())
    assert viewer._bars is None


def test_json_viewer_writes_one_object_per_line_and_change() -> None:
    out = io.StringIO()
    viewer = view.JsonViewer(out)
    play(viewer)
    logger = logging.Logger("a.b")
    logger.addHandler(view.JsonLogHandler(viewer))
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("it %s", "failed")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0]["event"] == "listening"
    assert [line["phase"] for line in lines if line["event"] == "model"] == [
        "fetching",
        "waiting",
        "loading",
        "serving",
        "restarting",
    ]
    assert lines[-1]["message"] == "it failed"
    assert "ValueError" in lines[-1]["traceback"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
