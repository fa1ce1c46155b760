"""`mesh-llm download`: the list, the bar and the lines, and what an interruption says."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from meshllm.cli import models as command
from meshllm.errors import UnknownModel
from meshllm.models.catalog import load
from meshllm.models.progress import Progress, Stage
from meshllm.models.store import Store

ENTRY = load().entries[0]
FILE = ENTRY.files[0]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / "models"))
    return Store(tmp_path / "models")


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(command.download)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list(store: Store) -> None:
    assert "SmolLM2-135M-Instruct  98.4 MB  no  Apache-2.0" in run()
    store.prepare()
    with store.partial(FILE).open("wb") as file:
        file.truncate(FILE.size // 2)
    assert "  50 %  " in run()
    with store.path(FILE).open("wb") as file:
        file.truncate(FILE.size)
    assert "  not verified  " in run()
    store.record(store.path(FILE), FILE.sha256)
    assert "  yes  " in run()
    listed = json.loads(run("--json"))
    assert listed[0]["on_disk"] is True
    assert listed[0]["files"][0]["sha256"] == FILE.sha256


def test_the_list_as_a_table(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command.show_catalog(as_json=False)
    printed = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct" in printed
    assert "135M" in printed


def test_an_unknown_name_is_left_to_the_edge(store: Store) -> None:
    with pytest.raises(UnknownModel, match="SmolLM2-135M-Instruct"):
        run("SmolLM-135M-Instruct")


STEPS = [
    Progress(Stage.CONNECTING, "m.gguf", "the hub", 0, 100),
    Progress(Stage.FAILED_SOURCE, "m.gguf", note="It [b]failed[/b]."),
    Progress(Stage.WAITING, "m.gguf"),
    *(Progress(Stage.DOWNLOADING, "m.gguf", "a package", done, 100) for done in range(0, 101, 5)),
    Progress(Stage.EXTRACTING, "m.gguf", "a package", 7, 10),
    Progress(Stage.VERIFYING, "m.gguf", "", 0, 0),
    Progress(Stage.READY, "m.gguf", done=100, total=100),
]


def test_lines_are_few() -> None:
    text = io.StringIO()
    view = command._Lines(Console(file=text, width=80))
    with view:
        for step in STEPS:
            view.report(step)
    lines = text.getvalue().splitlines()
    assert lines[0] == "m.gguf: connecting from the hub"
    assert lines[1] == "It [b]failed[/b]."
    assert lines[3:5] == ["m.gguf: downloading from a package 0 %", "m.gguf: downloading from a package 10 %"]
    assert lines[-1] == "m.gguf: verifying"
    assert len(lines) == 16


def test_the_bar() -> None:
    text = io.StringIO()
    view = command._Bar(Console(file=text, force_terminal=True, width=100))
    with view:
        for step in STEPS:
            view.report(step)
            view._bar.refresh()
    printed = text.getvalue()
    assert "It [b]failed[/b]." in printed
    assert "downloading" in printed
    assert "verifying" in printed


INTERRUPTED = """
import sys, typer
from meshllm.cli.models import download
typer.run(download)
"""


def test_an_interruption_says_what_is_kept(store: Store, tmp_path: Path) -> None:
    """The whole command, with Ctrl-C while pip runs and with a part of the file from an earlier start."""
    store.prepare()
    with store.partial(FILE).open("wb") as file:
        file.truncate(5_000_000)
    os.mkfifo(tmp_path / "pip")  # pip's place is taken by a program that waits for ever
    fake = tmp_path / "fake"
    (fake / "pip").mkdir(parents=True)
    (fake / "pip" / "__init__.py").write_text("")
    pids = str(tmp_path / "pip")
    (fake / "pip" / "__main__.py").write_text(f"import signal; open({pids!r}, 'w').close(); signal.pause()")
    environment = {
        **os.environ,
        "PYTHONPATH": str(fake),
        "HF_HUB_OFFLINE": "1",
        "MESH_LLM_MODELS": str(store.folder),
    }
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, ENTRY.name],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            (tmp_path / "pip").read_text()  # returns when the program is there
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert output == ""
    assert "HF_HUB_OFFLINE" in errors
    assert "5.0 MB are kept; the same command goes on from there." in errors
    assert "Traceback" not in errors
