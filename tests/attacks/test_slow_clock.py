"""An invite that has expired stays so when the clock of the node is set back (or starts in the past)."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM, Daemon, daemon

HOUR = 3600


def test_expired_invite_is_refused_when_the_clock_was_set_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with daemon(home) as node:
        done = subprocess.run(
            [str(PROGRAM), "invite", "--expires", "30m"],
            env={**os.environ, "MESH_LLM_HOME": str(home)},
            capture_output=True,
            text=True,
            check=True,
            timeout=OPEN_WAIT_SECONDS,
        )
    # The node has run until an hour after now; since then its clock was set back to now.
    (home / "clock").write_text(f"{int(datetime.now(UTC).timestamp()) + HOUR}\n")
    with daemon(home) as node:
        joiner = Daemon(tmp_path / "late", "--join", "-", stdin=done.stdout)
        try:
            line = joiner.wait_for(lambda line: line.get("state") in ("refused", "linked"), "the answer to the invite")
            assert (line["state"], "expired" in line["reason"]) == ("refused", True)
        finally:
            joiner.stop()
        assert node.stop() == 0
    events = [json.loads(line) for line in (home / "audit.log").read_text().splitlines()]
    refused = [event for event in events if event["event"] == "link_refused"]
    assert {event["reason"] for event in refused} == {"expired_invite"}
    assert not [event for event in events if event["event"] == "link_admitted"]
