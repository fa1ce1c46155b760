"""`mesh-llm engine`: output, progress, and Ctrl-C."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from meshllm.cli import engine as command
from meshllm.engine.build import builder, recipe
from tests.engine.build.build_kit import HAS_COMPILER, NO_COMPILER, Bench

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason=NO_COMPILER)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The commands build a tiny engine in a cache of its own."""
    monkeypatch.setenv("MESH_LLM_CACHE", str(tmp_path))
    made = Bench(tmp_path)
    monkeypatch.setattr(recipe, "current", lambda: made.recipe)
    monkeypatch.setattr(builder, "ensure", functools.partial(builder.ensure, fetch=made.index.fetch))
    return made


def run(*words: str) -> str:
    result = CliRunner().invoke(command.app, [*words])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_engine_command_shows_builds_and_cleans(bench: Bench) -> None:
    assert "not built" in run()
    assert json.loads(run("--json"))["engine"] is None
    assert "Engine ready after" in run("build")
    assert "The engine is already built" in run("build")
    assert bench.index.fetched == 1
    shown = run()
    for expected in ("built, current", "llama.cpp abcdef0 of package 1.0"):
        assert expected in shown
    facts = json.loads(run("--json"))
    assert facts["engine"]["current"]
    assert facts["engine"]["key"] == facts["wanted"]["key"] == bench.recipe.key
    assert "Nothing to remove" in run("clean")
    assert "Engine ready after" in run("rebuild")
    assert "freed" in run("clean", "--all")
    assert "not built" in run()


async def test_build_progress_in_lines_and_on_a_terminal(bench: Bench) -> None:
    plain = io.StringIO()
    engine = await command.build_with_progress(Console(file=plain, force_terminal=False, width=60))
    for word in ("Downloading", "Unpacking", "Configuring", "Compiling", "Installing", "Engine ready after"):
        assert word in plain.getvalue()
    assert "\x1b" not in plain.getvalue()
    terminal = io.StringIO()
    again = await command.build_with_progress(Console(file=terminal, force_terminal=True, width=100), again=True)
    assert dataclasses.replace(again, info=engine.info) == engine
    assert "\x1b" in terminal.getvalue()
    assert "Compiling" in terminal.getvalue()
    quiet = io.StringIO()
    assert await command.build_with_progress(Console(file=quiet)) == again
    assert quiet.getvalue() == ""


async def test_interrupted_build_can_be_resumed(bench: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = f"""
import functools, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the caller of the tests may ignore it
from meshllm.cli import engine
from meshllm.engine.build import builder, recipe
from tests.engine.build.build_kit import Bench
bench = Bench(pathlib.Path({str(tmp_path)!r}))
recipe.current = lambda: bench.recipe
builder.ensure = functools.partial(builder.ensure, fetch=bench.index.fetch)
engine.PLAIN_SECONDS = 0.0
sys.argv = ["engine", "build"]
engine.app()
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "FAKE_GATE": str(gate)},
        cwd=Path(__file__).parents[2],
    )
    assert process.stderr is not None
    while b"Compiling 1/" not in (line := await process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    rest = (await process.stderr.read()).decode()
    assert await process.wait() == 130
    assert "resumes from here" in " ".join(rest.split())
    assert "Traceback" not in rest
    assert "an interrupted build can be resumed" in await asyncio.to_thread(run)
    assert "Engine ready after" in await asyncio.to_thread(run, "build")
    assert bench.index.fetched == 0


def test_unpack_writes_the_patched_source(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshllm.engine.build import pin, source

    monkeypatch.setattr(pin, "read_source", lambda _: bench.recipe.source)
    monkeypatch.setattr(source, "fetch_with_pip", bench.index.fetch)
    assert "abcdef0" in run("unpack", str(tmp_path / "tree"))
    assert (tmp_path / "tree/src/llama.cpp").is_file()
    assert CliRunner().invoke(command.app, ["unpack", str(tmp_path / "tree")]).exit_code != 0
