"""The command that starts a node again: no invites, absolute files, the folders of the node, and how it was started."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from meshllm.cli import view
from meshllm.cli.start_command import start_command
from meshllm.daemon.settings import StartCommand

ROOT = Path(__file__).resolve().parents[2]
INVITE = "mesh2-" + "A" * 80


def words(text: str) -> list[str]:
    """The words of a shell text."""
    return shlex.split(text)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--model", "Qwen3-8B", "--ctx-size", "4096"], ["--model", "Qwen3-8B", "--ctx-size", "4096"]),
        (["--join", INVITE, "--client"], ["--client"]),
        ([f"--join={INVITE}", "--client"], ["--client"]),
        (["--client", "--join", "@file", "--join", "-"], ["--client"]),
        (["--client", "--join"], ["--client"]),
        (["--node-name", "my laptop's"], ["--node-name", "my laptop's"]),
        (["--model", "no/such/file.gguf"], ["--model", "no/such/file.gguf"]),
        (["--model"], ["--model"]),
    ],
)
def test_options_of_the_start_are_kept_without_invites(given: list[str], kept: list[str]) -> None:
    command = start_command(["/opt/bin/mesh-llm", *given], {})
    assert list(command.arguments) == kept
    assert words(command.text) == ["/opt/bin/mesh-llm", *kept]


def test_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a model.gguf").touch()
    for given in (["--model", "./a model.gguf"], ["--draft", "a model.gguf"]):
        assert start_command(["/x/mesh-llm", *given], {}).arguments == (given[0], str(tmp_path / "a model.gguf"))
    assert start_command(["/x/mesh-llm", "--model=a model.gguf"], {}).arguments == (
        f"--model={tmp_path / 'a model.gguf'}",
    )


def test_folders_of_the_node_are_set_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"MESH_LLM_HOME": "a home", "MESH_LLM_MODELS": "", "MESH_LLM_API_KEY": "a secret of this node"}
    command = start_command(["/x/mesh-llm"], environment)
    assert words(command.program) == [f"MESH_LLM_HOME={tmp_path / 'a home'}", "/x/mesh-llm"]
    assert "secret" not in command.text


def test_program_on_the_path_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mesh-llm"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start_command([str(program)], {}).program == "mesh-llm"
    assert start_command(["/elsewhere/mesh-llm"], {}).program == "/elsewhere/mesh-llm"
    module = start_command(["/x/meshllm/cli/program.py"], {})
    assert module.program == f"{sys.executable} -P -m meshllm.cli.program"
    done = subprocess.run([*module.program.split(), "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("mesh-llm ")


def test_script_of_a_checkout_is_used_if_it_started_the_node(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "mesh-llm"
    script.parent.mkdir()
    for exists in (False, True):
        if exists:
            script.touch(0o755)
        command = start_command(["/venv/bin/mesh-llm"], {"MESH_LLM_PROGRAM": str(script)})
        assert (command.program, command.elsewhere) == (
            (str(script), "scripts/mesh-llm") if exists else ("/venv/bin/mesh-llm", "mesh-llm")
        )


def test_script_says_its_own_path_to_what_it_starts(tmp_path: Path) -> None:
    # A virtual environment that is complete as far as the script checks it. Its program tells what it was given.
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    program = venv / "bin" / "mesh-llm"
    program.write_text('#!/bin/sh\necho "$MESH_LLM_PROGRAM $*"\n')
    program.chmod(0o755)
    stamp = f'source scripts/bootstrap.sh; mesh_fingerprint runtime "{sys.executable}" requirements.lock'
    environment = {**os.environ, "MESH_LLM_VENV": str(venv)}
    made = subprocess.run(["bash", "-c", stamp], cwd=ROOT, env=environment, capture_output=True, check=True)
    (venv / ".mesh-runtime").write_bytes(made.stdout)
    found = subprocess.run(
        ["bash", "-c", "scripts/mesh-llm status"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{ROOT}/scripts/mesh-llm status\n"


def test_terminal_shows_the_commands_of_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    command = StartCommand(program="/src/scripts/mesh-llm", elsewhere="scripts/mesh-llm")
    lines = view.LineViewer(view.PlainConsole(sys.stdout), command, idle=True)
    lines._shows_secrets = True
    lines.models_hint(rejoins=False)
    lines.invite(INVITE)
    shown = capsys.readouterr().out
    assert "  /src/scripts/mesh-llm --model SmolLM2-135M-Instruct " in shown
    assert f"\n  scripts/mesh-llm --join {INVITE}\n" in shown
    assert " mesh-llm --" not in shown
