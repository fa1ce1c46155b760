"""Real daemons on this machine form a mesh: joined, used, restarted, killed, refused; and no secret gets out."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock
import openai
import psutil
import pytest
from here import HERE, Site, client, joined, serves, site

from meshllm import paths
from meshllm.engine.build import recipe
from meshllm.wire.mesh import invite as invites
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM, Daemon
from tests.netlab.nodes import Node, Status

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def host(here: Site, home: str = "host", says: str = "alpha", *arguments: str, join: Node | None = None) -> Node:
    """A node that serves the model `m`, which answers with the word `says`."""
    fake = here.model("m", says)
    node = here.node(home, "--backend", fake.url, *arguments, join=join)
    node.fake = fake  # type: ignore[attr-defined]
    node.wait_for(lambda line: line["event"] == "backend" and line["healthy"], "the model")
    return node


def said(node: Node, model: str = "m") -> str:
    """What a whole and a streamed answer say; both must come from the same host."""
    whole = client(node).chat.completions.create(model=model, messages=HELLO, max_tokens=3)  # type: ignore[arg-type]
    stream: Any = client(node).chat.completions.create(
        model=model, messages=HELLO, max_tokens=3, stream=True  # type: ignore[arg-type]
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    return text


def processes(*nodes: Node) -> str:
    """The arguments of the nodes and of all that they have started."""
    every = [p for node in nodes for p in (psutil.Process(node.process.pid), *node.children())]
    return "\n".join(" ".join(process.cmdline()) for process in every)


def lines_of(node: Node) -> str:
    """All that a node that has ended has written."""
    return json.dumps(node.lines) + node.errors + json.dumps(list(iter(node._arriving.get, None)))


def first_event(node: Node) -> str:
    """What /api/events says at first."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", urlsplit(node.console_url).port or 0, timeout=OPEN_WAIT_SECONDS
    )
    try:
        connection.request("GET", "/api/events", headers=node.owner)
        with connection.getresponse() as response:
            return "".join(response.readline().decode() for _ in range(3))
    finally:
        connection.close()


@pytest.mark.parametrize("form", ["token", "file", "stdin"])
def test_joined_node_answers_through_the_host_and_leaks_no_secret(here: Site, form: str) -> None:
    server = host(here, "host", "alpha", "--verbose")
    token = server.invite()
    file = here.folder / "invite"
    file.write_text(f"  {token}\n")
    given = {"token": token, "file": f"@{file}", "stdin": "-"}[form]
    joiner = here.adopt(
        Node(HERE, here.folder / "joiner", "--join", given, "--verbose", environment=here.environment, stdin=token),
        at_once=True,
    )
    # At once: it is not known yet who serves this, nor whether anybody does.
    assert said(joiner) == "alpha0 alpha1 alpha2 "
    status = joiner.until(joined, "the join")
    assert [peer["models"] for peer in status["mesh"]["peers"]] == [["m"]]
    assert status["mesh"]["peers"][0]["transport"] in ("lane", "quic")
    card = client(joiner).models.retrieve("m").model_extra
    assert card is not None
    assert card["mesh"]["served_by"] == [
        f"{status['mesh']['peers'][0]['name']} ({status['mesh']['peers'][0]['id'][:10]})"
    ]

    seen = processes(server, joiner) + json.dumps(status) + json.dumps(server.status())
    seen += first_event(server) + first_event(joiner)
    assert server.stop() == joiner.stop() == 0
    seen += lines_of(server) + lines_of(joiner)
    kept = here.kept("host")
    for node in (server, joiner):
        for path in node.home.rglob("*"):
            if path.is_file() and path.name not in ("mesh.json", "node-key"):
                seen += path.read_text(errors="replace")
        for name in ("mesh.json", "node-key"):
            assert (node.home / name).stat().st_mode & 0o777 == 0o600
        seen_key = (node.home / "node-key").read_text().splitlines()[1]
        assert seen_key not in seen
    assert kept["private"] == here.kept("joiner")["private"] != ""
    assert "join" in seen
    for secret in (token, token[10:40], kept["private"], str(bytes.fromhex(kept["private"]))[2:-1]):
        assert secret not in seen


def test_requests_use_quic_when_lanes_are_off(here: Site) -> None:
    server = host(here)
    file = here.folder / "invite"
    file.write_text(server.invite())
    joiner = here.node("joiner", "--join", f"@{file}", environment={**here.environment, "MESH_LLM_LANES": "off"})
    joiner.until(serves("m"), "the host")
    assert said(joiner) == "alpha0 alpha1 alpha2 "
    assert [peer["transport"] for peer in joiner.status()["mesh"]["peers"]] == ["quic"]


def test_client_uses_the_mesh_and_is_no_member(here: Site) -> None:
    server = host(here)
    user = here.node("user", "--client", join=server)
    assert said(user) == "alpha0 alpha1 alpha2 "
    status = server.until(lambda status: status["mesh"]["clients"] == 1, "the client")
    assert status["mesh"]["peers"] == []
    assert user.status()["mesh"]["role"] == "client"
    refused = here.run("user", "invite")
    assert refused.returncode == 1
    assert "client" in refused.stderr
    assert user.stop() == 0
    server.until(lambda status: status["mesh"]["clients"] == 0, "the end of the client")
    # It comes back without an invite.
    assert said(here.node("user", "--client")) == "alpha0 alpha1 alpha2 "


def test_client_without_a_mesh_reports_the_reason(here: Site) -> None:
    user = here.node("user", "--client")
    assert "--join" in user.wait_for(lambda line: line["event"] == "no_mesh", "what it lacks")["reason"]
    with pytest.raises(openai.NotFoundError):
        client(user).chat.completions.create(model="m", messages=HELLO)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_restarted_node_rejoins_without_an_invite(here: Site, end: str) -> None:
    server = host(here)
    joiner = here.node("joiner", join=server)
    before = joiner.until(serves("m"), "the host")["mesh"]
    server.until(
        lambda status: status["mesh"]["peers"] and status["mesh"]["peers"][0]["status"] == "alive", "the joiner"
    )
    wait_for_file(here, "joiner")
    if end == "stop":
        assert joiner.stop() == 0
    else:
        joiner.kill()
    again = here.node("joiner")
    after = again.until(serves("m"), "the host, again")["mesh"]
    assert said(again) == "alpha0 alpha1 alpha2 "
    assert (after["node"], after["mesh"]) == (before["node"], before["mesh"])
    assert after["addresses"] == before["addresses"], "the port of last time is used again"
    assert after["incarnation"] > before["incarnation"]
    server.until(
        lambda status: [peer["status"] for peer in status["mesh"]["peers"]] == ["alive"], "the joiner, once, and alive"
    )


def wait_for_file(here: Site, home: str) -> None:
    """Until a node has written down whom it knows."""
    deadline = time.monotonic() + OPEN_WAIT_SECONDS
    while not here.kept(home)["peers"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # a file has no event


def test_sixteen_waiting_requests_are_answered_when_their_host_is_killed(here: Site) -> None:
    one = host(here)
    other = host(here, "other", join=one)
    joiner = here.node("joiner", join=one)
    joiner.until(lambda status: sum("m" in p["models"] for p in status["mesh"]["peers"]) == 2, "both hosts")
    fakes = [one.fake, other.fake]  # type: ignore[attr-defined]
    for fake in fakes:
        fake.before_first.clear()
    answers = [joiner.ask("m") for _ in range(16)]
    deadline = time.monotonic() + OPEN_WAIT_SECONDS
    while sum(len(fake.asked) for fake in fakes) < 16:
        assert time.monotonic() < deadline
        fakes[0].arrived.wait(0.05)
    assert fakes[0].asked, "some of them wait at the host that dies"
    one.kill()
    fakes[1].before_first.set()
    assert [answer.result(OPEN_WAIT_SECONDS).text for answer in answers] == ["alpha0 alpha1 alpha2 "] * 16


def test_dead_host_is_detected_and_its_callers_get_an_error(here: Site) -> None:
    server = host(here)
    joiner = here.node("joiner", join=server)
    joiner.until(serves("m"), "the host")
    server.kill()
    # Nobody has noticed yet.
    with pytest.raises(openai.APIStatusError) as refused:
        client(joiner).chat.completions.create(model="m", messages=HELLO)  # type: ignore[arg-type]
    assert refused.value.status_code in (404, 502, 503)
    assert refused.value.code
    joiner.until(lambda status: status["mesh"]["peers"][0]["status"] == "dead", "the death of the host")
    with pytest.raises(openai.APIStatusError):
        client(joiner).chat.completions.create(model="m", messages=HELLO)  # type: ignore[arg-type]
    shown = here.run("joiner", "status").stdout
    assert "dead" in shown


def changed(token: str, **changes: object) -> str:
    """An invite with something else in it."""
    return invites.encode(dataclasses.replace(invites.decode(token), **changes))  # type: ignore[arg-type]


def test_invite_with_a_wrong_secret_is_refused_with_the_reason(here: Site) -> None:
    server = host(here)
    own = here.node("joiner")
    assert own.stop() == 0
    before = here.kept("joiner")
    file = here.folder / "bad"
    file.write_text(changed(server.invite(), key=bytes(16)))
    # With a model of its own it goes on; without one it ends (`tests/attacks/test_members.py`).
    joiner = here.node("joiner", "--join", f"@{file}", "--backend", here.model("own", "joiner").url)
    refused = joiner.until(
        lambda s: s["mesh"]["join_attempts"] and s["mesh"]["join_attempts"][0]["state"] == "refused", "no"
    )
    reason = refused["mesh"]["join_attempts"][0]["reason"]
    assert "another mesh" in reason
    assert reason in " ".join(here.run("joiner", "status").stdout.split())
    assert server.status()["mesh"]["peers"] == []
    # A node that has not got in lets nobody in either.
    assert here.run("joiner", "invite").returncode == 1
    assert joiner.stop() == 0
    after = here.kept("joiner")
    assert (after["mesh"], after["key"]) == (before["mesh"], before["key"])
    assert not (joiner.home / "mesh.previous.json").exists()


def test_invite_of_another_mesh_replaces_the_mesh_and_keeps_the_old_state(here: Site) -> None:
    server = host(here)
    own = here.node("joiner")
    assert own.stop() == 0
    before = here.kept("joiner")
    joiner = here.node("joiner", join=server)
    joiner.until(serves("m"), "the host")
    assert joiner.stop() == 0
    assert here.kept("joiner")["key"] == here.kept("host")["key"] != before["key"]
    aside = json.loads((joiner.home / "mesh.previous.json").read_text())
    assert (aside["mesh"], aside["key"]) == (before["mesh"], before["key"])
    assert (joiner.home / "mesh.previous.json").stat().st_mode & 0o777 == 0o600


def test_invite_delivers_the_mesh_key(here: Site) -> None:
    host(here)
    done = here.run("host", "invite", "--expires", "1h")
    token = done.stdout.strip()
    assert invites.decode(token).terms.expires > 0
    secret = here.kept("host")["private"]
    assert invites.decode(token).key.hex() != secret
    file = here.folder / "invite"
    file.write_text(token)
    joiner = here.node("joiner", "--join", f"@{file}")
    joiner.until(serves("m"), "the host")
    # It is a member like any other: others come in by its invite.
    third = here.node("third", join=joiner)
    third.until(serves("m"), "the host")
    assert third.stop() == joiner.stop() == 0
    assert here.kept("joiner")["private"] == secret == here.kept("third")["private"]
    assert said(here.node("joiner")) == "alpha0 alpha1 alpha2 "


def test_invite_prints_it_alone_on_a_line(here: Site) -> None:
    node = here.node("node")
    # A start without a terminal makes none: nobody would read it.
    assert here.run("node", "invite", "--list").stdout.strip() == "This node has made no invite."
    done = here.run("node", "invite")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert done.stdout.strip() == done.stdout[:-1]
    assert invites.decode(done.stdout).ways[0].pin == bytes.fromhex(node.status()["mesh"]["node"])[:16]
    url = f"{node.console_url}/api/invite"
    for method, headers in (("GET", node.owner), ("POST", {}), ("POST", {"x-mesh-llm": "invite"})):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=30)
        with refused.value as answer:
            assert answer.status in (403, 405)


def test_first_node_prints_the_command_for_an_invite_where_there_is_no_terminal(here: Site) -> None:
    node = here.node("service")
    told = node.wait_for(lambda line: line["event"] == "invite", "the way to an invite")
    assert told["command"] == "mesh-llm invite"
    command = [str(PROGRAM), "--port", "0", "--console", "0", "--verbose"]
    environment = {**os.environ, **here.environment, "MESH_LLM_HOME": str(here.folder / "person")}
    person = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert person.stdout is not None
        shown = next(line for line in person.stdout if "mesh-llm invite" in line)
        person.send_signal(signal.SIGINT)
        rest, errors = person.communicate(timeout=OPEN_WAIT_SECONDS)
    finally:
        if person.poll() is None:
            person.kill()
            person.communicate()
    assert "mesh2-" not in shown + rest + errors


def test_taken_udp_port_is_refused_with_advice(here: Site) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as taken:
        taken.bind(("::", 0))
        port = str(taken.getsockname()[1])
        done = here.run("node", "--bind-port", port, "--port", "0", "--console", "0")
    assert done.returncode == 1
    assert port in done.stderr
    assert "--bind-port" in done.stderr
    assert "Traceback" not in done.stderr


def test_remembered_udp_port_that_is_taken_is_replaced(here: Site) -> None:
    node = here.node("node")
    port = int(node.until(lambda s: s["mesh"]["addresses"], "addresses")["mesh"]["addresses"][0].rpartition(":")[2])
    assert node.stop() == 0
    with contextlib.closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as taken:
        taken.bind(("::", port))
        again = here.node("node")
        status = again.until(lambda s: s["mesh"]["addresses"], "addresses")
        assert int(status["mesh"]["addresses"][0].rpartition(":")[2]) != port


def test_mesh_answers_while_the_local_model_loads(here: Site) -> None:
    fake = here.model(MODEL, "alpha")
    server = here.node("host", "--backend", fake.url)
    server.wait_for(lambda line: line["event"] == "backend" and line["healthy"], "the model")
    cache = here.folder / "cache"
    # The engine is not there, and somebody else seems to be building it: for good, as far as this node can see.
    locks = cache / "engine" / "locks"
    locks.mkdir(parents=True)
    with filelock.FileLock(locks / f"{recipe.current().key}.lock"):
        environment = {
            "MESH_LLM_CACHE": str(cache),
            "MESH_LLM_MODELS": str(paths.models()),
        }
        joiner = here.node("joiner", "--model", MODEL, join=server, environment=environment)
        assert said(joiner, MODEL) == "alpha0 alpha1 alpha2 "
        assert joiner.status()["models"][0]["phase"] != "serving"
        assert joiner.stop() == 0


def test_two_interrupts_end_a_node_without_waiting_for_its_callers(here: Site) -> None:
    server = host(here)
    joiner = here.node("joiner", join=server)
    joiner.until(serves("m"), "the host")
    server.fake.before_first.clear()  # type: ignore[attr-defined]
    waiting = joiner.ask("m")
    assert server.fake.arrived.wait(OPEN_WAIT_SECONDS)  # type: ignore[attr-defined]
    joiner.process.send_signal(signal.SIGINT)
    joiner.process.send_signal(signal.SIGINT)
    assert joiner.process.wait(OPEN_WAIT_SECONDS) == 0
    with contextlib.suppress(OSError):
        assert waiting.result(OPEN_WAIT_SECONDS).status == 503
    server.fake.before_first.set()  # type: ignore[attr-defined]
    server.until(lambda status: status["mesh"]["peers"][0]["status"] == "left", "its leave")


# -- with the real engine


@pytest.mark.engine
def test_real_model_answers_through_the_mesh(here: Site, served: Daemon) -> None:
    environment = {**os.environ, "MESH_LLM_HOME": str(served.home)}
    token = HERE.run([PROGRAM, "invite"], env=environment).stdout
    file = here.folder / "invite"
    file.write_text(token)
    joiner = here.node("joiner", "--join", f"@{file}")
    limits = {"max_tokens": 16, "temperature": 0, "seed": 1}
    stream = client(joiner).chat.completions.create(model=MODEL, messages=HELLO, stream=True, **limits)  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    with openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=OPEN_WAIT_SECONDS) as direct:
        whole = direct.chat.completions.create(model=MODEL, messages=HELLO, **limits)  # type: ignore[call-overload]
    assert text == whole.choices[0].message.content
    assert joiner.stop() == 0


@pytest.mark.engine
def test_joined_node_serves_a_requested_model_on_its_disk(here: Site) -> None:
    """`--model A --model B`: the first is served here; a node that has the other on its disk takes it."""
    file = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    store = here.folder / "models"
    shutil.copy(file, store / "wished.gguf")
    shutil.copy(file, store / "unwanted.gguf")
    environment = {"MESH_LLM_MODELS": str(paths.models())}
    words = ("--model", MODEL, "--model", str(store / "wished.gguf"), "--ctx-size", "1024")
    server = here.node("host", *words, environment=environment)
    server.wait_until_serving()
    assert [model["name"] for model in server.status()["models"]] == [MODEL]
    joiner = here.node("joiner", "--share", "all", join=server)
    joiner.wait_until_serving("wished")
    server.until(serves("wished"), "the wished model")
    answer = client(server).chat.completions.create(
        model="wished",
        messages=HELLO,
        max_tokens=5,
        temperature=0,  # type: ignore[arg-type]
    )
    assert answer.choices[0].message.content
    listed: Status = server.get("/v1/models")
    assert {MODEL, "wished"} <= {model["id"] for model in listed["data"]}
    assert [model["name"] for model in joiner.status()["models"]] == ["wished"]
