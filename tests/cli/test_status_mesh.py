"""What `mesh-llm status` says of the mesh, against a real node."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.daemons import PROGRAM, daemon


def test_client_without_a_mesh_says_what_to_do_at_its_start_and_in_its_status(tmp_path: Path) -> None:
    with daemon(tmp_path, "--client") as node:
        told = node.wait_for(lambda line: line["event"] == "no_mesh", "the start of the mesh part")
        port = urlsplit(node.console_url).port
        command = [PROGRAM, "status", "--node-port", str(port)]
        done = subprocess.run(
            command, env={**os.environ, "MESH_LLM_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
        )
    shown = " ".join(done.stdout.split())
    assert "'mesh-llm invite' at a node of the mesh prints an invite" in told["reason"]
    assert f"Running without a mesh: {told['reason']}" in shown
    assert "start it with --client --join INVITE" in shown
    assert "has no other node yet" not in shown
