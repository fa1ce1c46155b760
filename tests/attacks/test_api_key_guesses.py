"""Another machine guesses the API key of a node that listens for others."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM, daemon
from tests.lan_address import lan_address


def test_weak_key_is_not_accepted(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(PROGRAM), "--listen-all", "--port", "0", "--console", "0"],
        env={**os.environ, "MESH_LLM_HOME": str(tmp_path / "home"), "MESH_LLM_API_KEY": "a"},
        capture_output=True,
        text=True,
        check=False,
        timeout=OPEN_WAIT_SECONDS,
    )
    assert done.returncode == 2
    assert "too short" in done.stderr
    assert "openssl rand -hex 16" in done.stderr


def test_guesses_are_limited_at_both_ports_and_recorded(tmp_path: Path) -> None:
    home, address = tmp_path / "home", lan_address()
    with daemon(home, "--listen-all") as node:
        key = (home / "api-key").read_text().strip()

        def ask(url: str, path: str, sent: str) -> int:
            connection = http.client.HTTPConnection(address, urlsplit(url).port or 0, timeout=OPEN_WAIT_SECONDS)
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {sent}"})
                return connection.getresponse().status
            finally:
                connection.close()

        answers = [ask(node.base_url, "/v1/models", f"guess-{number}") for number in range(15)]
        assert answers[:9] == [401] * 9
        assert answers[-1] == 429
        # The console counts with the API, and the right key is no news to a guesser.
        assert ask(node.console_url, "/api/status", "guess") == 429
        assert ask(node.base_url, "/v1/models", key) == 429
        assert node.stop() == 0
    events = [json.loads(line) for line in (home / "audit.log").read_text().splitlines()]
    wrong = [event for event in events if event["event"] == "api_key_wrong"]
    assert {event.get("address", address) for event in wrong} == {address}
    assert (
        sum(1 + event.get("not_written", 0) for event in wrong if "address" in event)
        + sum(event["not_written"] for event in wrong if "address" not in event)
        >= 16
    )
