"""Who was let in, who is thrown out, and what invites are good for; with real daemons."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshllm.core.membership.certificates import Right
from meshllm.wire.mesh.invite import decode, encode
from tests.daemons import PROGRAM, Daemon


class Mesh:
    """Daemons without models, by name."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root, self._stack = root, stack
        self.running: dict[str, Daemon] = {}

    def start(self, name: str, invite: str = "", *options: str) -> Daemon:
        """Start a daemon with the home of that name."""
        join = ("--join", "-") if invite else ()
        daemon = Daemon(self.root / name, "--node-name", name, *options, *join, stdin=f"{invite}\n" if invite else "")
        self._stack.callback(daemon.stop)
        self.running[name] = daemon
        return daemon.wait_until_listening()

    def refused(self, name: str, invite: str, why: str) -> None:
        """Start a daemon whose invite is void: it ends with an error."""
        daemon = Daemon(self.root / name, "--node-name", name, "--join", "-", stdin=f"{invite}\n")
        self._stack.callback(daemon.stop)
        daemon.process.wait(60.0)
        assert daemon.stop() == 2
        assert "The invite was refused: " in daemon.errors
        assert why in daemon.errors
        assert "mesh-llm --join INVITE" in daemon.errors

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
        """The names of living peers and clients in the status; none at a node whose invite was void: it has ended."""
        try:
            mesh = self.ask(name, "/api/status")["mesh"] or {"peers": []}
        except (OSError, http.client.HTTPException):
            assert self.running[name].process.wait(30) == 2
            return set()
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


def test_expelled_member_is_out_everywhere_and_for_ever(
    mesh: Mesh, record_property: Callable[[str, object], None]
) -> None:
    """How long that takes is recorded, for the report; `scripts/bench expel` measures it."""
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
    record_property("expelled_seconds", round(time.monotonic() - began, 3))
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
    mesh.refused("f", token, "was revoked")
    for name in names[:4]:
        assert mesh.alive(name) == set(names[:4]) - {name}
    assert mesh.alive("e") == set()


def test_invite_for_one_node_admits_one(mesh: Mesh) -> None:
    mesh.start("a")
    token = mesh.invite("a", once=True)
    mesh.start("b", token)
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh")
    mesh.refused("c", token, "was used already")
    assert mesh.alive("a") == {"b"}


def test_inviter_is_who_made_the_invite_whoever_admits_by_it(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("b", mesh.invite("a"))
    wait(lambda: mesh.alive("a") == {"b"}, "b in the mesh")
    made = decode(mesh.invite("a"))
    ways = decode(mesh.invite("b", once=True)).ways
    mesh.start("c", encode(dataclasses.replace(made, ways=ways)))
    wait(lambda: mesh.alive("c") == {"a", "b"}, "c in the mesh, by b")
    for name in ("a", "b", "c"):
        rows = mesh.members(name)
        assert rows["c"]["inviter"] == rows["a"]["node"], name
    home = {**os.environ, "MESH_LLM_HOME": str(mesh.root / "b"), "COLUMNS": "200"}
    table = subprocess.run([str(PROGRAM), "members"], env=home, capture_output=True, text=True, check=True).stdout
    (row,) = [line.split() for line in table.splitlines() if line.startswith("c ")]
    assert row[-2] == "a"


def test_member_that_missed_two_changes_of_the_mesh_key_comes_back_by_a_fresh_invite(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("b", mesh.invite("a"))
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh")
    wait(lambda: bool(json.loads((mesh.root / "b" / "mesh.json").read_text())["peers"]), "the mesh in the file of b")
    before = mesh.members("a")["b"]["node"]
    mesh.stop("b")
    for _ in range(2):
        mesh.ask("a", "/api/mesh/rotate-key", {})
    mesh.start("b")
    b = mesh.running["b"]
    assert b.wait_for(lambda line: "no membership certificate of this mesh" in json.dumps(line), "the refusal")
    mesh.stop("b")
    mesh.start("b", mesh.invite("a", once=True))
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh again")
    assert mesh.members("a")["b"]["node"] == before
    # And it stays: with its new certificate, whatever invite the service is started with.
    token = mesh.invite("a")
    mesh.stop("b")
    mesh.start("b", token)
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh once more")
    entry = next(
        row for row in mesh.ask("a", "/api/invites")["invites"] if row["serial"] == decode(token).terms.serial.hex()
    )
    assert entry["nodes"] == [], "it did not need that invite"


def test_list_of_invites_tells_which_are_good_for_something(mesh: Mesh) -> None:
    mesh.start("a")
    once, revoked = mesh.invite("a", once=True, label="used"), mesh.ask("a", "/api/invite", {"label": "revoked"})
    mesh.invite("a", label="short", expires=1)
    mesh.invite("a", label="good")
    mesh.ask("a", "/api/invites/revoke", {"serial": revoked["serial"]})
    mesh.start("b", once)
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh")

    def states() -> dict[str, str]:
        rows = mesh.ask("a", "/api/invites")["invites"]  # with the one that a founder makes at its start
        return {row["label"]: row["state"] for row in rows if row["label"]}

    wait(lambda: states()["short"] == "expired", "the expiry")
    home = {**os.environ, "MESH_LLM_HOME": str(mesh.root / "a"), "COLUMNS": "200"}

    def listed(*words: str) -> str:
        command = [str(PROGRAM), "invite", "--list", *words]
        return subprocess.run(command, env=home, capture_output=True, text=True, check=True).stdout

    assert states() == {"used": "used", "revoked": "revoked", "short": "expired", "good": "open"}
    last = [line.split()[-1] for line in listed().splitlines()]
    assert ("good" in last, set(last) & {"used", "revoked", "short"}) == (True, set())
    assert {"good", "used", "revoked", "short"} <= {line.split()[-1] for line in listed("--all").splitlines()}
    mesh.ask("a", "/api/mesh/rotate-key", {})
    wait(lambda: states()["good"] == "void", "the new key")
    assert listed() == "No invite of this node is open.\n"
    assert "void: the mesh has a new key" in listed("--all")


def test_node_whose_invite_is_void_goes_on_where_it_has_something_to_do(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("other")
    used = mesh.invite("other", once=True)
    revoked = mesh.ask("other", "/api/invite", {})
    mesh.ask("other", "/api/invites/revoke", {"serial": revoked["serial"]})
    mesh.start("c", used)
    wait(lambda: mesh.alive("c") == {"other"}, "a user of the invite")
    # A member goes on in the mesh that it is in.
    mesh.start("b", mesh.invite("a"))
    wait(lambda: mesh.alive("b") == {"a"}, "b in its mesh")
    wait(lambda: bool(json.loads((mesh.root / "b" / "mesh.json").read_text())["peers"]), "the mesh in the file of b")
    mesh.stop("b")
    mesh.start("b", used).wait_until_listening()  # it starts again
    wait(lambda: mesh.alive("b") == {"a"}, "b in its mesh again")
    log = (mesh.root / "b" / "logs" / "daemon.log").read_text()
    assert "was used already" in log
    assert "goes on in the mesh that it was in" in log
    # A node that serves goes on, says it once and dials no more.
    mesh.start("d", revoked["invite"], "--backend", "http://127.0.0.1:9")
    wait(lambda: (mesh.ask("d", "/api/status")["mesh"] or {"phase": ""})["phase"] == "refused", "the refusal")
    assert "was revoked" in mesh.ask("d", "/api/status")["mesh"]["reason"]
    log_of_d, last = mesh.root / "d" / "logs" / "daemon.log", "This node serves its own models, and dials no more"
    wait(lambda: last in log_of_d.read_text(), "the line that says so")
    assert log_of_d.read_text().count(last) == 1


def test_guest_gets_use_only_and_cannot_invite(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("guest", mesh.invite("a", rights=["use"]))
    wait(lambda: mesh.alive("guest") == {"a"}, "the guest linked")
    row = mesh.members("guest")["guest"]
    assert row["rights"] == ["use"]
    assert mesh.alive("a") == set()  # no record of it: it is a client, though it did not say so
    assert "may not admit" in mesh.ask("guest", "/api/invite", {})["error"]["message"]
    # The key of the mesh that it founded before is forgotten, and it got no other.
    state = mesh.root / "guest" / "mesh.json"
    wait(lambda: json.loads(state.read_text())["private"] == "", "no private key in the file")


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
    (notice,) = mesh.ask("a", "/api/status")["notices"]
    assert "rotate-key --mesh" in notice
    assert mesh.running["a"].wait_for(lambda line: "rotate-key --mesh" in str(line.get("message")), "the notice")
    listed = subprocess.run([str(PROGRAM), "members"], env=home, capture_output=True, text=True, check=True).stdout
    assert "rotate-key --mesh" in listed


def replaced(mesh: Mesh, name: str) -> tuple[str, str]:
    """Give a node a new key, and wait until it runs with it: its old and its new id."""
    old = mesh.members(name)[name]["node"]
    new = mesh.ask(name, "/api/node/rotate-key", {})["node"]
    mesh.running[name].wait_until_listening()
    wait(lambda: mesh.ask(name, "/api/members").get("members", [{}])[0].get("node") == new, f"{name} as its new id")
    return old, new


def address_pair(text: str) -> list[str | int]:
    """An address as `mesh.json` has it."""
    host, _, port = text.rpartition(":")
    return [host.strip("[]"), int(port)]


def test_new_node_key_keeps_the_membership_and_voids_the_old_one(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("b", mesh.invite("a"))
    mesh.start("c", mesh.invite("a", rights=["use", "serve"], once=True))
    for name in "abc":
        wait(lambda name=name: mesh.alive(name) == {*"abc"} - {name}, f"{name} knowing all")  # type: ignore[misc]
    # Of a member that needs another to sign, and of one that holds the mesh key.
    for name in ("c", "a"):
        kept = {key: mesh.members(name)[name][key] for key in ("rights", "expires", "inviter", "invite", "name")}
        stolen = (mesh.root / name / "node-key").read_bytes()
        certificate = json.loads((mesh.root / name / "mesh.json").read_text())["certificate"]
        old, new = replaced(mesh, name)
        assert old != new
        if kept["inviter"] == old:
            kept["inviter"] = new  # a founder invited itself
        for other in "abc":
            wait(lambda other=other: mesh.alive(other) == {*"abc"} - {other}, f"{other} knowing all")  # type: ignore[misc]
            row = mesh.members(other)[name]
            assert {key: row[key] for key in kept} == kept
            assert old not in {row["node"] for row in mesh.ask(other, "/api/members")["members"]}
        assert (mesh.root / name / "node-key").stat().st_mode & 0o777 == 0o600
        assert not (mesh.root / name / "node-key.next").exists()
        # A thief of the old key is refused by all, and told why.
        thief = mesh.root / f"thief of {name}"
        thief.mkdir(mode=0o700)
        (thief / "node-key").write_bytes(stolen)
        state = json.loads((mesh.root / ("b" if name == "a" else "a") / "mesh.json").read_text())
        live = [peer for peer in mesh.ask("b", "/api/status")["mesh"]["peers"] if peer["status"] == "alive"]
        peers = [{"node": peer["id"], "addresses": [address_pair(text) for text in peer["addresses"]]} for peer in live]
        state.update(certificate=certificate, private="", statements=[], peers=peers)
        (thief / "mesh.json").write_text(json.dumps(state))
        mesh.start(thief.name)
        said = mesh.running[thief.name].wait_for(lambda line: "expelled" in json.dumps(line), "the refusal")
        assert said
        assert mesh.alive(thief.name) == set()
        mesh.stop(thief.name)
    # All of it survives a restart of everyone.
    for name in "abc":
        mesh.stop(name)
    for name in "abc":
        mesh.start(name)
    for name in "abc":
        wait(lambda name=name: mesh.alive(name) == {*"abc"} - {name}, f"{name} knowing all")  # type: ignore[misc]


def test_new_node_key_is_refused_without_a_member_that_can_sign_it(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("guest", mesh.invite("a", rights=["use"]))
    wait(lambda: mesh.alive("guest") == {"a"}, "the guest linked")
    mesh.stop("a")
    wait(lambda: mesh.alive("guest") == set(), "a gone")
    before = {path.name: path.read_bytes() for path in (mesh.root / "guest").iterdir() if path.name == "node-key"}
    answer = mesh.ask("guest", "/api/node/rotate-key", {})
    assert "Nothing has changed" in answer["error"]["message"]
    assert {
        path.name: path.read_bytes() for path in (mesh.root / "guest").iterdir() if path.name == "node-key"
    } == before
    request = urllib.request.Request(mesh.running["guest"].console_url + "/api/node/rotate-key", data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    # Once the member is back, the command works.
    mesh.start("a")
    wait(lambda: mesh.alive("guest") == {"a"}, "the guest linked again")
    old = mesh.members("guest")["guest"]["node"]
    home = {**os.environ, "MESH_LLM_HOME": str(mesh.root / "guest")}
    said = subprocess.run(
        [str(PROGRAM), "rotate-key", "--yes"], env=home, capture_output=True, text=True, check=True
    ).stdout
    mesh.running["guest"].wait_until_listening()
    wait(lambda: mesh.alive("guest") == {"a"}, "the guest linked with its new key")
    row = mesh.members("guest")["guest"]
    assert row["node"] != old
    assert row["node"][:10] in said
    assert row["rights"] == ["use"]
    nodes = {row["node"] for row in mesh.ask("a", "/api/members")["members"]}
    assert row["node"] in nodes
    assert old not in nodes


@pytest.mark.parametrize("learnt", [False, True])
def test_node_that_crashed_while_its_key_was_replaced_is_a_member(mesh: Mesh, learnt: bool) -> None:
    mesh.start("a")
    mesh.start("b", mesh.invite("a", rights=["use", "serve"]))
    wait(lambda: mesh.alive("a") == {"b"}, "b in the mesh")
    home = mesh.root / "b"
    wait(lambda: bool(json.loads((home / "mesh.json").read_text())["peers"]), "the mesh in the file of b")
    before = {name: (home / name).read_bytes() for name in ("node-key", "mesh.json")}
    _, new = replaced(mesh, "b")
    wait(lambda: mesh.alive("a") == {"b"}, "b back")
    mesh.stop("b")
    # As a crash left it: the statement is out, but the next key has not become the node's; nor, unless it had learnt
    # of the statement, does its state file say anything of it.
    (home / "node-key").replace(home / "node-key.next")
    (home / "node-key").write_bytes(before["node-key"])
    if not learnt:
        (home / "mesh.json").write_bytes(before["mesh.json"])
    mesh.start("b")
    if not learnt:
        mesh.running["b"].wait_until_listening()  # it starts again once a has shown it the statement
    wait(lambda: mesh.alive("b") == {"a"} and mesh.alive("a") == {"b"}, "b in the mesh again")
    assert mesh.members("b")["b"]["node"] == mesh.members("a")["b"]["node"] == new
    assert not (home / "node-key.next").exists()


def test_member_without_the_mesh_key_has_its_invites_made_by_another(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("other", mesh.invite("a"))
    mesh.start("b", mesh.invite("a", rights=["use", "serve", "invite"]))
    wait(lambda: mesh.alive("b") == {"a", "other"}, "b in the mesh")
    wait(lambda: mesh.alive("a") == {"b", "other"}, "all known at a")
    # The maker is a member chosen at random: with one linked, it is known which.
    mesh.stop("other")
    wait(lambda: mesh.alive("b") == {"a"}, "b linked to a alone")
    home = {**os.environ, "MESH_LLM_HOME": str(mesh.root / "b")}

    def invite(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(PROGRAM), "invite", *options], env=home, capture_output=True, text=True, check=False)

    said = invite("--once", "--label", "for c")
    assert said.returncode == 0, said.stderr
    assert "use,serve" in said.stderr
    token = said.stdout.strip()
    terms = decode(token).terms
    assert (terms.rights, terms.once, terms.maker_only) == (Right.USE | Right.SERVE, True, True)
    assert "for c" in invite("--list").stdout
    mesh.start("c", token)
    wait(lambda: mesh.alive("c") == {"a", "b"}, "c in the mesh")
    row, inviter = mesh.members("a")["c"], mesh.members("b")["b"]["node"]
    assert (row["rights"], row["inviter"]) == (["use", "serve"], inviter)
    # It admits one node; and more than it has, no member can give.
    mesh.refused("d", token, "was used already")
    refused = invite("--rights", "use,admit")
    assert refused.returncode != 0
    assert "may not give the rights admit" in refused.stderr
    # An invite for several nodes admits at its maker only: elsewhere its users would count for nobody.
    wide = invite("--rights", "use").stdout.strip()
    assert [way.pin for way in decode(wide).ways] == [bytes.fromhex(mesh.members("a")["a"]["node"])[:16]]
    mesh.start("other")
    wait(lambda: "a" in mesh.alive("other"), "the other one back")
    elsewhere = dataclasses.replace(decode(wide), ways=decode(mesh.invite("other", once=True)).ways)
    mesh.refused("f", encode(elsewhere), "belongs to another mesh")
    for name in ("a", "other"):
        mesh.stop(name)
    wait(lambda: mesh.alive("b") & {"a", "other"} == set(), "no member that may admit")
    refused = invite()
    assert refused.returncode != 0
    assert "no member that may admit others is linked" in refused.stderr
    assert "Run 'mesh-llm invite' on a machine that may admit" in refused.stderr


def test_expired_invite_does_not_keep_a_member_from_starting_again(mesh: Mesh) -> None:
    mesh.start("a")
    file = mesh.root / "invite"
    file.write_text(mesh.invite("a", expires=40))
    mesh.start("b", "", "--join", f"@{file}")
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh")
    wait(lambda: bool(json.loads((mesh.root / "b" / "mesh.json").read_text())["peers"]), "the mesh in the file of b")
    mesh.stop("b")
    wait(lambda: not decode(file.read_text()).terms.valid_at(datetime.now(UTC).timestamp()), "the expiry")
    mesh.start("b", "", "--join", f"@{file}")
    wait(lambda: mesh.alive("b") == {"a"}, "b in the mesh again")
    (notice,) = mesh.ask("b", "/api/status")["notices"]
    assert "this invite expired" in notice
    assert "is a member already" in notice
    said = [line for line in mesh.running["b"].lines if line["event"] == "log" and "expired" in line["message"]]
    assert len(said) == 1
    # One that is no member is refused, as before.
    refused = subprocess.run(
        [str(PROGRAM), "--join", f"@{file}"],
        env={**os.environ, "MESH_LLM_HOME": str(mesh.root / "c")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "this invite expired" in refused.stderr


def test_expelled_node_says_so_and_does_not_retry(mesh: Mesh) -> None:
    mesh.start("a")
    mesh.start("b", mesh.invite("a"))
    mesh.start("off", mesh.invite("a", rights=["use", "serve"]))
    wait(lambda: mesh.alive("a") == {"b", "off"}, "all in the mesh")
    wait(lambda: mesh.alive("off") == {"a", "b"}, "all known")
    mesh.stop("off")
    for name in ("b", "off"):
        mesh.ask("a", "/api/members/expel", {"node": name})

    def told(name: str) -> None:
        wait(lambda: (mesh.ask(name, "/api/status")["mesh"] or {}).get("phase") == "expelled", f"{name} knowing it")
        (notice,) = mesh.ask(name, "/api/status")["notices"]
        assert "was expelled" in notice
        assert "does not retry" in notice
        assert "fresh invite" in notice
        home = {**os.environ, "MESH_LLM_HOME": str(mesh.root / name)}
        shown = subprocess.run([str(PROGRAM), "status"], env=home, capture_output=True, text=True, check=True).stdout
        assert "was expelled from its mesh. It does not retry" in " ".join(shown.split())
        assert mesh.running[name].wait_for(lambda line: "does not retry" in str(line.get("message")), "the notice")

    told("b")
    # A node that was off learns it from the first member that refuses it; and each of them knows it at the next start.
    mesh.start("off")
    told("off")
    for name in ("b", "off"):
        mesh.stop(name)
        mesh.start(name)
        told(name)


def test_restart_after_a_change_of_the_mesh_key_parts_nobody(mesh: Mesh) -> None:
    mesh.start("a")
    for name in ("b", "c"):
        mesh.start(name, mesh.invite("a", rights=["use", "serve"]))
    for name in "abc":
        wait(lambda name=name: mesh.alive(name) == {*"abc"} - {name}, f"{name} knowing all")  # type: ignore[misc]

    def saved(name: str, what: str) -> str:
        return str(json.loads((mesh.root / name / "mesh.json").read_text())[what])

    # Who was met is saved after some seconds.
    for name, other in (("b", "c"), ("c", "b")):
        path, node = mesh.root / name / "mesh.json", mesh.members(other)[other]["node"]
        wait(lambda path=path, node=node: node in path.read_text(), f"{other} in the file of {name}")  # type: ignore[misc]
    before = saved("b", "key")
    assert mesh.ask("a", "/api/mesh/rotate-key", {}) == {"rotated": True}
    wait(lambda: before not in (saved("b", "key"), saved("c", "key")), "the new key at both")
    # The only member that could give them certificates of it is gone before it does, as a rule.
    for name in "abc":
        mesh.running.pop(name).kill()
    for name in ("b", "c"):
        mesh.start(name)
    wait(lambda: "c" in mesh.alive("b") and "b" in mesh.alive("c"), "both together again")
    # Once that member is back they get them.
    mesh.start("a")
    for name in ("b", "c"):
        wait(lambda name=name: {"a"} <= mesh.alive(name), f"{name} with a")  # type: ignore[misc]
        wait(
            lambda name=name: saved(name, "certificate")[2:10] == saved("a", "key")[:8],
            f"a certificate of the new key at {name}",
        )  # type: ignore[misc]
