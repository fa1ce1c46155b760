"""Starting agents: the command as a process, a fake agent and a fake node."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from meshllm.agents.description import known_agents
from tests.agents.fake_agent import WAIT_SECONDS, finish, install, run, start
from tests.agents.fake_node import FakeNode, fake_node

KEY = "secret-key-of-the-node"


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with fake_node(FakeNode(models=(("tiny", 8192), ("large/model", 65_536)))) as node:
        yield node


@pytest.mark.parametrize("name", sorted(known_agents()))
def test_each_agent_is_started_with_the_chosen_model(name: str, tmp_path: Path, node: FakeNode) -> None:
    agent = known_agents()[name]
    env = install(tmp_path / "bin", agent.programs[0])
    done = run(env, name, "--port", str(node.port), "--", "more", "--model", "x", stdin="7\n")
    assert done.returncode == 7, done.stderr
    said = json.loads(done.stdout)
    assert said["argv"][-3:] == ["more", "--model", "x"]
    assert "large/model: the best of 2 models (nothing is known about its tools, context 65,536)." in done.stderr
    files = "".join(path.read_text() for path in (tmp_path / "bin").rglob("*") if path.is_file())
    everything = json.dumps(said) + files
    assert "large/model" in everything
    assert f"http://127.0.0.1:{node.port}" in everything
    assert name == "cline" or "65536" in everything  # its own settings have no place for a context


@pytest.mark.parametrize("name", sorted(known_agents()))
def test_key_reaches_the_agent_by_environment_or_private_files_only(name: str, tmp_path: Path, node: FakeNode) -> None:
    node.key = KEY
    agent = known_agents()[name]
    env = install(tmp_path / "bin", agent.programs[0])
    done = run(env | {"MESH_LLM_API_KEY": KEY}, name, "--port", str(node.port))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert KEY not in " ".join(said["argv"]) + done.stderr
    assert said["env"]["MESH_LLM_AGENT_KEY"] == KEY
    holding = [path for path in (tmp_path / "bin").rglob("*") if path.is_file() and KEY in path.read_text()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in holding)


def test_key_is_asked_for_and_never_shown(tmp_path: Path, node: FakeNode) -> None:
    node.key = KEY
    env = install(tmp_path / "bin", "pi")
    done = run(env, "pi", "--port", str(node.port))
    assert done.returncode == 1
    assert "asks for an API key" in done.stderr
    for option in ("--print", "--write"):
        shown = run(env | {"MESH_LLM_API_KEY": KEY}, "qwen", "--port", str(node.port), option)
        assert shown.returncode == 0, shown.stderr
        assert KEY not in shown.stdout + shown.stderr


def test_model_that_is_asked_for_is_used_or_refused(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "pi")
    done = run(env, "pi", "--port", str(node.port), "--model", "TINY")
    assert json.loads(done.stdout)["argv"] == ["--provider", "mesh", "--model", "tiny"]
    assert "tiny serves 8,192 tokens of context" in done.stderr
    done = run(env, "pi", "--port", str(node.port), "--model", "tinny")
    assert done.returncode == 2
    assert "No model is called 'tinny' in the mesh. Did you mean tiny?" in done.stderr


def test_model_with_less_context_than_the_agent_needs_is_reported(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "claude")
    done = run(env, "claude", "--port", str(node.port), "--model", "tiny")
    assert "Claude Code alone needs about 20,300. Serve it with more: --ctx-size 32768." in done.stderr


def test_auto_is_a_model_for_an_agent(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "claude")
    node.models = (("tiny", 4096), ("long", 65_536))
    done = run(env, "claude", "--port", str(node.port), "--model", "auto", "--print")
    assert done.returncode == 0, done.stderr
    assert "--model auto" in done.stdout
    assert "tokens of context" not in done.stderr


def test_model_that_calls_tools_is_chosen_and_others_are_reported(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "pi")
    node.models = (("tiny", 65_536), ("large/model", 65_536), ("base", 65_536))
    node.mesh = {
        "tiny": {"calls_tools": True, "size": 10**8},
        "large/model": {"calls_tools": False, "size": 10**10},
        "base": {"calls_tools": False, "size": 10**11, "chat_template": False},
    }
    done = run(env, "pi", "--port", str(node.port))
    assert "tiny: the best of 3 models (it calls tools, context 65,536, 0.1 GB)." in done.stderr
    assert "Warning" not in done.stderr
    done = run(env, "pi", "--port", str(node.port), "--model", "large/model")
    assert "large/model made no tool call when it was tested" in done.stderr
    done = run(env, "pi", "--port", str(node.port), "--model", "base")
    assert "base has no chat template" in done.stderr


def test_missing_agent_says_how_to_install_it(tmp_path: Path) -> None:
    done = run(install(tmp_path / "bin"), "opencode", "--port", "1")
    assert done.returncode == 1
    assert "OpenCode is not installed: no program 'opencode' in PATH." in done.stderr
    assert "npm install -g opencode-ai" in done.stderr


def test_port_of_another_program_is_refused(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "pi")
    node.server_name = "nginx"
    done = run(env, "pi", "--port", str(node.port))
    assert done.returncode == 1
    assert f"Port {node.port} is used by another program." in done.stderr


def test_node_without_a_mesh_is_not_waited_for(tmp_path: Path) -> None:
    env = install(tmp_path / "bin", "pi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run(env, "pi", "--port", str(port))
    assert done.returncode == 1
    assert "this client knows no mesh" in done.stderr
    assert "--join INVITE" in done.stderr


def test_auto_says_what_it_does_now(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "pi")
    done = run(env, "pi", "--port", str(node.port), "--auto", stdin="3\n")
    assert done.returncode == 3
    assert "A node runs already: --auto is not used." in done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run(env, "pi", "--port", str(port), "--auto")
    assert done.returncode == 2
    assert "--auto: this version knows no public meshes" in done.stderr
    assert not (tmp_path / "bin" / "mesh" / "daemon.json").exists()


def test_print_starts_nothing_and_writes_nothing(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "codex")
    shown = run(env, "codex", "--port", str(node.port), "--print", "--", "exec", "it's")
    assert "--config=model_context_window=65536" in shown.stdout
    assert shown.stdout.rstrip().endswith("""exec 'it'"'"'s'""")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = free.getsockname()[1]
    without = run(env, "pi", "--port", str(unused), "--print")
    assert "No node answers: MODEL" in without.stdout
    assert not list((tmp_path / "bin" / "home").iterdir())


def test_what_write_would_write_is_shown(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin")
    done = run(env, "codex", "--port", str(node.port), "--print", "--write")
    folder = tmp_path / "bin/home/.codex"
    assert f"# added to {folder / 'config.toml'}" in done.stdout
    assert f"# {folder / 'mesh.config.toml'}" in done.stdout
    assert done.stdout.endswith("# then: codex --profile mesh\n")
    assert not list((tmp_path / "bin" / "home").iterdir())


def test_write_and_undo_say_what_they_did(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin")
    done = run(env, "codex", "--port", str(node.port), "--write")
    folder = tmp_path / "bin/home/.codex"
    provider, profile = folder / "config.toml", folder / "mesh.config.toml"
    assert done.stdout.splitlines() == [
        f"Written: {provider}",
        f"Written: {profile}",
        "Start it: codex --profile mesh",
        "Take it back: mesh-llm codex --undo",
    ]
    assert provider.exists()
    assert profile.exists()
    assert run(env, "codex", "--undo").stdout == f"{profile} removed\n{provider} removed\n"
    assert run(env, "codex", "--undo").stdout == "Nothing was written for Codex CLI.\n"
    assert not list((tmp_path / "bin" / "home").iterdir())
    assert run(env, "codex", "--undo", "--write").returncode == 2


def test_agents_are_listed_with_version_files_and_last_start(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "pi", "cn")
    run(env, "pi", "--port", str(node.port))
    rows = {row["name"]: row for row in json.loads(run(env, "agents", "--json").stdout)["agents"]}
    assert sorted(rows) == sorted(known_agents())
    assert rows["pi"]["version"] == "pi 1.2.3 (fake)"
    assert rows["pi"]["files"] == [str(tmp_path / "bin/home/.pi/agent/models.json")]
    assert rows["pi"]["last_launch"]["model"] == "large/model"
    assert rows["continue"]["program"] == str(tmp_path / "bin/cn")
    assert rows["codex"]["program"] is None
    assert "1.2.3" in run(env, "agents").stdout


def test_ctrl_c_is_for_the_agent(tmp_path: Path, node: FakeNode) -> None:
    process, agent = start(install(tmp_path / "bin", "pi"), "pi", "--port", str(node.port))
    process.send_signal(signal.SIGINT)  # to the launcher alone
    assert process.stdin is not None
    process.stdin.write("9\n")
    process.stdin.flush()
    assert finish(process) == 9
    process, agent = start(install(tmp_path / "bin", "pi"), "pi", "--port", str(node.port))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert finish(process) == 1 or not psutil.pid_exists(agent["pid"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_status_of_a_killed_agent_is_passed_on(number: signal.Signals, tmp_path: Path, node: FakeNode) -> None:
    process, agent = start(install(tmp_path / "bin", "pi"), "pi", "--port", str(node.port))
    os.kill(agent["pid"], number)
    assert finish(process) == 128 + number


def test_stop_of_the_launcher_stops_the_agent(tmp_path: Path, node: FakeNode) -> None:
    process, agent = start(install(tmp_path / "bin", "pi"), "pi", "--port", str(node.port))
    process.terminate()
    assert finish(process) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(agent["pid"])


def test_agent_ends_with_a_launcher_that_is_killed(tmp_path: Path, node: FakeNode) -> None:
    process, agent = start(install(tmp_path / "bin", "pi"), "pi", "--port", str(node.port))
    running = psutil.Process(agent["pid"])
    process.kill()
    # Its standard input is open: only the signal can end it.
    running.wait(WAIT_SECONDS)
    finish(process)


def test_proxy_is_not_used_for_the_node(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "pi") | {"HTTP_PROXY": "http://proxy:1", "no_proxy": "corp"}
    done = run(env, "pi", "--port", str(node.port))
    assert json.loads(done.stdout)["env"]["NO_PROXY"] == "corp,localhost,127.0.0.1,::1"


def test_command_of_the_user_replaces_the_usual_one(tmp_path: Path, node: FakeNode) -> None:
    env = install(tmp_path / "bin", "goose")
    usual = run(env, "goose", "--port", str(node.port), "--print").stdout
    assert usual.splitlines()[3].endswith("goose session")
    done = run(env, "goose", "--port", str(node.port), "--", "run", "-t", "Say hi")
    assert json.loads(done.stdout)["argv"] == ["run", "-t", "Say hi"]
