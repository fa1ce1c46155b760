"""Nodes that launchers of agents start: they join the mesh, and end with the last launcher."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from meshllm.daemon.attachments import GRACE_SECONDS
from tests.agents.fake_agent import finish, install, run, start
from tests.e2e.here import Site, site
from tests.netlab.nodes import Node

# Longer than a node lives without a launcher.
OUTLIVED_SECONDS = GRACE_SECONDS + 2
# The bar: a node that was started for agents is gone so long after its last launcher.
GONE_SECONDS = 15.0


pytestmark = pytest.mark.slow


@dataclass
class Place:
    """A mesh with a host, and a user on another home of this machine."""

    host: Node
    env: dict[str, str]
    invite: Path
    site: Site

    def node(self) -> psutil.Process:
        """The node of the user."""
        return psutil.Process(json.loads((self.home / "daemon.json").read_text())["pid"])

    @property
    def home(self) -> Path:
        return Path(self.env["MESH_LLM_HOME"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with site(tmp_path) as here, ExitStack() as stack:
        host = here.node("host", "--backend", here.model("tiny", "hi").url)
        invite = tmp_path / "invite"
        invite.write_text(host.invite())
        env = install(tmp_path / "bin", "pi") | here.environment
        found = Place(host, env, invite, here)
        stack.callback(_end_left, found.home)
        yield found


def _end_left(home: Path) -> None:
    """End the node of a test that failed."""
    try:
        psutil.Process(json.loads((home / "daemon.json").read_text())["pid"]).kill()
    except (OSError, ValueError, psutil.NoSuchProcess):
        return


def api_of(agent: dict[str, Any]) -> str:
    """The URL of the API that an agent was given."""
    file = Path(agent["env"]["HOME"]) / ".pi/agent/models.json"
    return str(json.loads(file.read_text())["providers"]["mesh"]["baseUrl"])


def answers(api: str) -> bool:
    with urllib.request.urlopen(f"{api}/models") as response:
        return b"tiny" in response.read()


def test_node_lives_as_long_as_one_launcher_and_ends_after_the_last(place: Place) -> None:
    port = str(_free_port())
    first, one = start(place.env, "pi", "--port", port, "--join", f"@{place.invite}")
    node = place.node()
    second, two = start(place.env, "pi", "--port", port)
    assert place.node().pid == node.pid
    first.kill()
    psutil_wait(one["pid"])
    assert finish(first) == -signal.SIGKILL
    # The second launcher holds it: longer than it would live without one.
    with pytest.raises(psutil.TimeoutExpired):
        node.wait(OUTLIVED_SECONDS)
    assert answers(api_of(two))
    assert second.stdin is not None
    second.stdin.write("5\n")
    second.stdin.flush()
    assert finish(second) == 5
    node.wait(GONE_SECONDS)
    assert not (place.home / "daemon.json").exists()
    assert not (place.home / "agents" / "invite").exists()
    # The mesh is remembered: the next start needs no invite.
    done = run(place.env, "pi", "--port", port, stdin="3\n")
    assert done.returncode == 3, done.stderr
    psutil_wait_gone(place)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_node_ends_when_its_only_launcher_is_killed(place: Place, number: signal.Signals) -> None:
    launcher, agent = start(place.env, "pi", "--port", str(_free_port()), "--join", f"@{place.invite}")
    node = place.node()
    os.kill(launcher.pid, number)
    finish(launcher)
    node.wait(GONE_SECONDS)
    psutil_wait(agent["pid"])


def test_ctrl_c_of_the_terminal_does_not_reach_the_node(place: Place) -> None:
    launcher, agent = start(place.env, "pi", "--port", str(_free_port()), "--join", f"@{place.invite}")
    node = place.node()
    other, _ = start(place.env, "pi")
    os.killpg(launcher.pid, signal.SIGINT)
    finish(launcher)
    assert node.is_running()
    assert answers(api_of(agent))
    os.killpg(other.pid, signal.SIGINT)
    finish(other)
    node.wait(GONE_SECONDS)


def test_node_that_was_started_otherwise_is_used_and_stays(place: Place) -> None:
    env = place.env | {"MESH_LLM_HOME": str(place.host.home)}
    done = run(env, "pi", stdin="4\n")
    assert done.returncode == 4, done.stderr
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(place.host.process.pid).wait(OUTLIVED_SECONDS)
    assert answers(place.host.base_url)


def test_launcher_that_comes_while_the_node_ends_starts_another(place: Place) -> None:
    port = str(_free_port())
    run(place.env, "pi", "--port", port, "--join", f"@{place.invite}")
    node = place.node()
    node.send_signal(signal.SIGTERM)
    done = run(place.env, "pi", "--port", port, stdin="6\n")
    assert done.returncode == 6, done.stderr
    psutil_wait_gone(place)


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def psutil_wait(pid: int) -> None:
    """Until a process has ended."""
    try:
        psutil.Process(pid).wait(GONE_SECONDS)
    except psutil.NoSuchProcess:
        return


def psutil_wait_gone(place: Place) -> None:
    """Until the user's node has ended."""
    try:
        node = place.node()
    except (OSError, ValueError, psutil.NoSuchProcess):
        return
    node.wait(GONE_SECONDS)
