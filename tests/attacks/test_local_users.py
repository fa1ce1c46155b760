"""Another user of the machine asks a node's console and reads its files: it gets nothing that is the owner's.

The other user is user 65534 where the test runs as root. Elsewhere the files' modes are checked: the same user cannot
be kept from its own files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.console.scripted_backend import ScriptedBackend, running_backend
from tests.daemons import PROGRAM, Daemon, daemon

OTHER = 65534
# Every act that a console offers to its owner, and a status that names what is private.
ACTS = ("/api/invite", "/api/key", "/api/downloads")
# Run by the other user: what a curl and a cat give.
STRANGER = """
import encodings.idna, http.client, json, os, sys
port, home, temporary, acts, uid = json.loads(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
def ask(method, path, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, None if method == "GET" else b"{}", headers)
    answer = connection.getresponse()
    return [answer.status, answer.read().decode()]
found = {path: [ask("POST", path, headers) for headers in (
    {}, {"x-mesh-llm": path.rpartition("/")[2]}, {"x-mesh-llm-token": "guess"}, {"Authorization": "Bearer guess"},
)] for path in acts}
found["/api/status"] = [ask("GET", "/api/status", {})]
files = {}
for top in (home, temporary):
    for folder, names, leaves in os.walk(top):
        for name in leaves:
            try:
                files[os.path.join(folder, name)] = open(os.path.join(folder, name), "rb").read(1)[:1] is not None
            except OSError:
                pass
print(json.dumps([found, files]))
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node with a key."""
    with daemon(tmp_path_factory.mktemp("local") / "home", "--listen-all") as started:
        yield started


def stranger(node: Daemon) -> tuple[dict[str, list[tuple[int, str]]], dict[str, bool]]:
    """What the other user is answered, and which files of the node it can read."""
    told = [urlsplit(node.console_url).port, str(node.home), node._temporary.name, ACTS, OTHER]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, json.dumps(told)], capture_output=True, text=True, check=True, cwd="/"
    )
    answers, files = json.loads(done.stdout)
    return answers, files


def test_other_users_get_no_invite_no_key_and_no_act(node: Daemon) -> None:
    answers, files = stranger(node)
    secrets = ("mesh1-", (node.home / "api-key").read_text().strip(), node.token)
    for path in ACTS:
        for status, text in answers[path]:
            assert (status, json.loads(text)["error"]["code"]) == (403, "token_required"), path
            assert not [secret for secret in secrets if secret in text], path
    ((status, text),) = answers["/api/status"]
    told = json.loads(text)
    assert (status, told["read_only"], told["pid"]) == (200, True, 0)
    assert told["mesh"]["addresses"] == told["mesh"]["join_attempts"] == told["lan_urls"] == []
    assert str(node.home) not in text
    if os.geteuid() == 0:
        assert files == {}, "another user reads these files"


def test_files_and_sockets_of_a_node_are_for_its_user_only(node: Daemon) -> None:
    loose = []
    for top in (node.home, Path(node._temporary.name)):
        for path in (top, *top.rglob("*")):
            mode = path.lstat().st_mode & 0o777
            # A file is reached through its folder, which has no rights for others.
            if path.is_dir() and path.parent not in (node.home, *node.home.rglob("*")) and mode & 0o077:
                loose.append(f"{path} {mode:o}")
            if path.is_file() and path.parent == node.home and mode != 0o600:
                loose.append(f"{path} {mode:o}")
            if path.is_socket() and mode & 0o077 and path.parent.lstat().st_mode & 0o077:
                loose.append(f"{path} {mode:o}")
    assert loose == []


def test_token_is_in_no_argument_environment_log_or_output(node: Daemon) -> None:
    token = node.token
    shown = []
    for pid in (node.process.pid, *(child.pid for child in node.children())):
        for name in ("cmdline", "environ"):
            shown.append(Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace"))
    shown += [path.read_text(errors="replace") for path in node.home.rglob("*.log*")]
    shown.append(json.dumps(node.lines))
    assert not [text for text in shown if token in text]


def test_owner_still_has_all_of_it(node: Daemon) -> None:
    environment = {**os.environ, "MESH_LLM_HOME": str(node.home)}

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [str(PROGRAM), *arguments], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    assert command("invite").startswith("mesh1-")
    assert command("console").strip() == f"{node.console_url}/#token={node.token}"
    assert json.loads(command("status", "--json"))["pid"] == node.process.pid


def test_token_is_a_new_one_at_each_start(tmp_path: Path) -> None:
    tokens = set()
    for _ in range(2):
        with daemon(tmp_path / "home") as started:
            tokens.add(started.token)
    assert len(tokens) == 2
    assert all(len(token) >= 43 for token in tokens)
    assert not (tmp_path / "home" / "daemon.json").exists()


def test_home_that_every_user_may_write_into_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o1777)
    done = subprocess.run(
        [str(PROGRAM), "--port", "0", "--console", "0"],
        env={**os.environ, "MESH_LLM_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "Every user of this machine can write" in done.stderr
    assert list(home.iterdir()) == []


def test_status_of_a_node_with_another_home_is_the_public_part(node: Daemon, tmp_path: Path) -> None:
    port = str(urlsplit(node.console_url).port)
    done = subprocess.run(
        [str(PROGRAM), "status", "--node-port", port],
        env={**os.environ, "MESH_LLM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "set MESH_LLM_HOME to the home of that node" in " ".join(done.stdout.split())
    assert str(node.home) not in done.stdout


def test_prompts_are_in_no_file_of_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_backend(ScriptedBackend("scripted")) as backend, daemon(home, "--backend", backend.url) as started:
        started.wait_for(lambda line: line["event"] == "backend" and line["healthy"], "the backend")
        chat = [{"role": "user", "content": "prompt-7341-ALPHA"}]
        body = json.dumps({"model": "scripted", "messages": chat, "stream": True}).encode()
        request = urllib.request.Request(
            f"{started.base_url}/chat/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert b"[DONE]" in response.read()
        assert started.stop() == 0
    for path in home.rglob("*"):
        assert not path.is_file() or b"7341-ALPHA" not in path.read_bytes(), path
    assert "7341-ALPHA" not in json.dumps(started.lines) + started.errors
