"""A new node on a disk that takes nothing: an error that says what to do, and no process left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM


@pytest.mark.parametrize("existing", [False, True])
def test_new_node_on_a_full_disk_gets_a_typed_error(tmp_path: Path, existing: bool) -> None:
    home = tmp_path / "home"
    if existing:
        home.mkdir(mode=0o700)
    # A limit of 0 bytes for each file fails where a full disk does: at the first byte that is written.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$0" --port 0 --console 0', str(PROGRAM)],
        env={**os.environ, "MESH_LLM_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=OPEN_WAIT_SECONDS,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert f"mesh-llm: {home}" in done.stderr
    assert "Free disk space" in done.stderr
