"""`mesh-llm invite` against a real node."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from meshllm.cli.invite import fetch
from meshllm.errors import EnvironmentFailure
from tests.daemons import PROGRAM, daemon


def test_invite_of_a_client_names_what_can_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path))
    with daemon(tmp_path, "--client") as node:
        node.wait_for(lambda line: line["event"] == "no_mesh", "the start of the mesh part")
        port = urlsplit(node.console_url).port
        assert port is not None
        with pytest.raises(EnvironmentFailure, match=r"accepts no links.* on a node of the mesh") as caught:
            fetch(port, 0)
        assert "doctor" not in caught.value.advice
        # Of a node with another home this user has no token.
        monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path / "other"))
        with pytest.raises(EnvironmentFailure, match="for its owner only") as caught:
            fetch(port, 0)
        assert "MESH_LLM_HOME" in caught.value.advice


@pytest.mark.parametrize("option", ["--revoke", "--rights", "--expires"])
def test_option_without_a_value_is_refused_and_makes_no_invite(tmp_path: Path, option: str) -> None:
    """An unset variable of a shell: `--revoke "$SERIAL"`."""
    home = {**os.environ, "MESH_LLM_HOME": str(tmp_path)}
    told = subprocess.run([PROGRAM, "invite", option, ""], env=home, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert f"{option} has no value" in told.stderr


def test_wrong_serial_and_wrong_name_are_answered_with_what_to_do(tmp_path: Path) -> None:
    home = {**os.environ, "MESH_LLM_HOME": str(tmp_path)}
    with daemon(tmp_path) as node:
        node.wait_for(lambda line: line["event"] == "invite" or (tmp_path / "mesh.json").exists(), "the mesh part")
        for words, advice in (
            (("invite", "--revoke", "00ff"), "mesh-llm invite --list --all"),
            (("expel", "nobody", "--yes"), "mesh-llm members"),
        ):
            told = subprocess.run([PROGRAM, *words], env=home, capture_output=True, text=True, check=False)
            assert told.returncode == 2, told.stderr
            assert advice in told.stderr
            assert "doctor" not in told.stderr
