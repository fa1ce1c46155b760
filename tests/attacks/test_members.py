"""Who was let in, who is thrown out, and what invites are good for; with real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import PROGRAM, Daemon


class Mesh:
    """Daemons without models, by name."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root, self._stack = root, stack
        self.running: dict[str, Daemon] = {}

    def start(self, name: str, invite: str = "", *options: str) -> Daemon:
        """Start a daemon with the home of that name."""
        join = ("--join", "-") if invite else ()
        daemon = Daemon(self.root / name, "--name", name, *options, *join, stdin=f"{invite}\n" if invite else "")
        self._stack.callback(daemon.stop)
        self.running[name] = daemon
        return daemon.wait_until_listening()

    def ask(self, name: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What a console answers to its owner."""
        daemon = self.running[name]
        data = json.dumps(body).encode() if body is not None else None
        headers = {**daemon.owner, "content-type": "application/json"}
        request = urllib.request.Request(daemon.console_url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def invite(self, name: str, **wish: Any) -> str:
        """A token."""
        answer: dict[str, Any] = {}

        def made() -> bool:
            answer.update(self.ask(name, "/api/invite", wish))
            return "invite" in answer

        wait(made, "an invite")
        return str(answer["invite"])

    def alive(self, name: str) -> set[str]:
        """The names of living peers and clients in the status."""
        mesh = self.ask(name, "/api/status")["mesh"] or {"peers": []}
        return {peer["name"] for peer in mesh["peers"] if peer["status"] == "alive"}

    def members(self, name: str) -> dict[str, dict[str, Any]]:
        """The rows of `mesh-llm members` by name."""
        return {row["name"]: row for row in self.ask(name, "/api/members")["members"]}

    def stop(self, name: str) -> None:
        """Stop a daemon."""
        self.running.pop(name).stop()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield Mesh(tmp_path, stack)


def wait(fact: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
    """Poll until the fact holds; returns how long that took."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < seconds, f"timed out waiting for {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def test_expelled_member_is_out_everywhere_and_for_ever(mesh: Mesh) -> None:
    names = ["a", "b", "c", "d", "e"]
    mesh.start("a")
    token = mesh.invite("a")
    for name in names[1:]:
        mesh.start(name, token)
    for name in names:
        wait(lambda name=name: mesh.alive(name) == set(names) - {name}, f"{name} knowing all")  # type: ignore[misc]
    answer = mesh.ask("a", "/api/members/expel", {"node": "e"})
    began = time.monotonic()
    assert answer["rotated"] is True
    for name in names[:4]:
        wait(lambda name=name: "e" not in mesh.alive(name), f"{name} without e")  # type: ignore[misc]
    assert time.monotonic() - began < 10.0
    wait(lambda: mesh.alive("e") == set(), "e alone")
    # The others get certificates of the new key and stay together.
    for name in names[:4]:
        wait(lambda name=name: mesh.alive(name) == set(names[:4]) - {name}, f"{name} knowing the rest")  # type: ignore[misc]
    wait(lambda: all("invite" in mesh.ask(n, "/api/invite", {}) for n in names[:4]), "new keys everywhere")
    # After a restart of all, and with its old invite, it is refused.
    for name in names:
        mesh.stop(name)
    for name in names[:4]:
        mesh.start(name)
    for name in names[:4]:
        wait(lambda name=name: mesh.alive(name) == set(names[:4]) - {name}, f"{name} after the restart")  # type: ignore[misc]
    mesh.start("e", token)
    mesh.start("f", token)
    for name in names[:4]:
        assert mesh.alive(name) == set(names[:4]) - {name}
    assert mesh.alive("e") == mesh.alive("f") == set()


def test_invite_for_one_node_admits_one(mesh: Mesh) -> None:
    mesh.start("a")
    token = mesh.invite("a", once=True)
    mesh.start("b", token)
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh")
    mesh.start("c", token)
    refused = mesh.running["c"].wait_for(lambda line: "used" in json.dumps(line), "the refusal")
    assert refused
    assert mesh.alive("a") == {"b"}


def test_guest_gets_use_only_and_cannot_invite(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("guest", mesh.invite("a", rights=["use"]))
    wait(lambda: mesh.alive("guest") == {"a"}, "the guest linked")
    row = mesh.members("guest")["guest"]
    assert row["rights"] == ["use"]
    assert mesh.alive("a") == set()  # no record of it: it is a client, though it did not say so
    assert "may not admit" in mesh.ask("guest", "/api/invite", {})["error"]["message"]
    assert json.loads((mesh.root / "guest" / "mesh.json").read_text())["private"] == ""


def test_member_that_was_off_gets_the_new_mesh_key(mesh: Mesh) -> None:
    mesh.start("a")
    token = mesh.invite("a")
    mesh.start("b", token)
    wait(lambda: mesh.alive("a") == {"b"}, "b in the mesh")
    mesh.stop("b")
    assert mesh.ask("a", "/api/mesh/rotate-key", {}) == {"rotated": True}
    mesh.start("b")
    wait(lambda: mesh.alive("b") == {"a"} and mesh.alive("a") == {"b"}, "b back")
    wait(lambda: "invite" in mesh.ask("b", "/api/invite", {}), "the new key at b")
    mesh.start("c", token)
    assert mesh.alive("c") == set()


def test_upgrade_from_a_secret_needs_no_invite(mesh: Mesh) -> None:
    nodes, ports = {}, {}
    for name in ("a", "b"):
        mesh.start(name)
        mesh.invite(name)  # the mesh part is up
        nodes[name] = mesh.members(name)[name]["node"]
        mesh.stop(name)
        ports[name] = json.loads((mesh.root / name / "mesh.json").read_text())["port"]
    for name, other in (("a", "b"), ("b", "a")):
        old = {
            "version": 1,
            "mesh": "ab" * 16,
            "secret": "cd" * 16,
            "incarnation": 1,
            "port": ports[name],
            "peers": [{"node": nodes[other], "addresses": [["127.0.0.1", ports[other]]]}],
            "founded": name == "a",
        }
        (mesh.root / name / "mesh.json").write_text(json.dumps(old))
    mesh.start("a")
    mesh.start("b")
    wait(lambda: mesh.alive("a") == {"b"} and mesh.alive("b") == {"a"}, "both together")
    assert mesh.ask("a", "/api/members")["upgraded"] is True
    assert "secret" not in json.loads((mesh.root / "a" / "mesh.json").read_text())
    home = {**os.environ, "MESH_LLM_HOME": str(mesh.root / "a")}
    listed = subprocess.run([str(PROGRAM), "members"], env=home, capture_output=True, text=True, check=True).stdout
    assert "rotate-key --mesh" in listed
