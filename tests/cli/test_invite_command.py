"""`mesh-llm invite` against a real node."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from meshllm.cli.invite import fetch
from meshllm.errors import EnvironmentFailure
from tests.daemons import daemon


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
