"""The blackboard of an agent: offered where the node has one, left out where it has none or with `--no-board`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from meshllm.agents.board import BoardState, board_state
from meshllm.agents.description import known_agents
from meshllm.agents.node import NodeAddress
from tests.agents.fake_agent import install, run
from tests.agents.fake_board import TOKEN, FakeBoard, announce, fake_board
from tests.agents.fake_node import FakeNode, fake_node
from tests.daemons import PROGRAM

WITH_BOARD = sorted(name for name, agent in known_agents().items() if agent.board is not None)
WRITING = sorted(name for name, agent in known_agents().items() if agent.board_write is not None)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[FakeBoard]:
    """A node of this MESH_LLM_HOME with a model and a blackboard."""
    with fake_node(FakeNode(models=(("tiny", 65_536),))) as node, fake_board(FakeBoard()) as board:
        announce(tmp_path / "bin/mesh", node.port, board.port)
        yield board


def everything(folder: Path, stdout: str) -> str:
    """What an agent was started with, and every file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "daemon.json"]
    return stdout + "\n".join(path.read_text() for path in files)


def test_all_but_aider_have_a_blackboard() -> None:
    assert sorted(set(known_agents()) - set(WITH_BOARD)) == ["aider"]


@pytest.mark.parametrize("name", WITH_BOARD)
def test_agent_gets_the_server_by_the_path_of_this_program(name: str, tmp_path: Path, board: FakeBoard) -> None:
    agent = known_agents()[name]
    env = install(tmp_path / "bin", agent.programs[0])
    done = run(env, name)
    assert done.returncode == 0, done.stderr
    assert f"Blackboard: {agent.title} gets its tools as MCP server 'mesh'." in done.stderr
    found = everything(tmp_path / "bin", done.stdout)
    assert str(PROGRAM) in found
    assert "--mcp" in found
    assert str(tmp_path / "bin/mesh") in found
    assert TOKEN not in found
    shown = run(env, name, "--print")
    assert str(PROGRAM) in shown.stdout
    assert "--mcp" in shown.stdout


@pytest.mark.parametrize("name", WITH_BOARD)
def test_no_board_leaves_it_out_also_after_a_start_with_it(name: str, tmp_path: Path, board: FakeBoard) -> None:
    env = install(tmp_path / "bin", known_agents()[name].programs[0])
    assert run(env, name).returncode == 0
    board.asked.clear()
    done = run(env, name, "--no-board")
    assert done.returncode == 0, done.stderr
    assert "Blackboard" not in done.stderr
    assert not any("blackboard" in path for path, _ in board.asked)
    said = json.loads(done.stdout)
    started = json.dumps(said["argv"]) + json.dumps(said["env"])
    assert "--mcp" not in started
    files = [path for path in (tmp_path / "bin").rglob("*") if path.is_file() and path.name != "journal.json"]
    left = [path for path in files if "--mcp" in path.read_text()]
    # Files of ours that no argument names any more may stay.
    assert {path.name for path in left} <= {"mcp.json", "blackboard.js"}
    assert all(path.is_relative_to(tmp_path / "bin/mesh") and str(path) not in started for path in left)


@pytest.mark.parametrize("name", WRITING)
def test_written_blackboard_is_withdrawn_and_undone(name: str, tmp_path: Path, board: FakeBoard) -> None:
    env = install(tmp_path / "bin")
    user = tmp_path / "bin/home"
    assert run(env, name, "--write").returncode == 0
    assert "--mcp" in everything(user, "")
    done = run(env, name, "--write", "--no-board")
    assert done.returncode == 0, done.stderr
    assert "--mcp" not in everything(user, "")
    assert run(env, name, "--write").returncode == 0
    assert run(env, name, "--undo").returncode == 0
    assert not list(user.iterdir())


def test_agent_without_mcp_says_so(tmp_path: Path, board: FakeBoard) -> None:
    done = run(install(tmp_path / "bin", "aider"), "aider")
    assert "Blackboard: aider takes no MCP server." in done.stderr
    assert not any("blackboard" in path for path, _ in board.asked)


def test_blackboard_that_is_off_is_left_out_with_its_reason(tmp_path: Path, board: FakeBoard) -> None:
    board.enabled = False
    done = run(install(tmp_path / "bin", "claude"), "claude")
    assert done.returncode == 0, done.stderr
    assert "Blackboard: left out. This node was started with --no-blackboard." in done.stderr
    assert "--mcp-config" not in json.loads(done.stdout)["argv"]


def test_hooks_of_claude_are_for_the_session(tmp_path: Path, board: FakeBoard) -> None:
    done = run(install(tmp_path / "bin", "claude"), "claude")
    argv = json.loads(done.stdout)["argv"]
    assert argv[0] == "--mcp-config"  # it takes a list, which another option must end
    assert argv[2] == "--settings"
    hooks = json.loads(Path(argv[3]).read_text())["hooks"]
    assert sorted(hooks) == ["PostToolUse", "SessionStart", "Stop", "UserPromptSubmit"]
    commands = {hook["command"] for groups in hooks.values() for group in groups for hook in group["hooks"]}
    assert commands == {f"MESH_LLM_HOME={tmp_path / 'bin/mesh'} {PROGRAM} blackboard peek --hook claude || true"}
    assert not list((tmp_path / "bin/home").iterdir())


def test_agents_with_hooks_name_this_program_and_their_kind(tmp_path: Path, board: FakeBoard) -> None:
    for name, kind in (("codex", "codex"), ("qwen", "qwen"), ("pi", "pi")):
        folder = tmp_path / f"bin-{name}"
        announce(folder / "mesh", json.loads((tmp_path / "bin/mesh/daemon.json").read_text())["port"], board.port)
        done = run(install(folder, name), name)
        assert done.returncode == 0, done.stderr
        found = everything(folder, json.loads(done.stdout)["argv"].__repr__())
        assert "--hook" in found
        assert f"--hook {kind} || true" in found or f'"--hook", "{kind}"' in found


def test_extension_of_goose_stands_behind_its_commands_only(tmp_path: Path, board: FakeBoard) -> None:
    env = install(tmp_path / "bin", "goose")
    argv = json.loads(run(env, "goose").stdout)["argv"]
    line = f"MESH_LLM_HOME={tmp_path / 'bin/mesh'} {PROGRAM} blackboard --mcp"
    assert argv == ["session", "--with-extension", line]
    argv = json.loads(run(env, "goose", "--", "run", "-t", "hi").stdout)["argv"]
    assert argv == ["run", "-t", "hi", "--with-extension", line]
    assert json.loads(run(env, "goose", "--", "configure").stdout)["argv"] == ["configure"]


def test_state_says_why_there_is_no_blackboard() -> None:
    assert not board_state(NodeAddress(1)).enabled
    assert "another MESH_LLM_HOME" in board_state(NodeAddress(1)).reason
    with fake_board(FakeBoard()) as board:
        node = NodeAddress(1, board.port, TOKEN)
        assert board_state(node) == BoardState(True)
        assert not board_state(NodeAddress(1, board.port, "other")).enabled
        for wrong in (b"", b"[]", b'{"enabled": 1}', b"\xff", b"[" * 100_000):
            board.answer = (200, wrong)
            assert not board_state(node).enabled
        board.answer = (404, b"{}")
        assert board_state(node) == BoardState(False, "The version of the node has none.")
    assert "It does not answer" in board_state(node).reason


def test_blackboard_that_is_being_opened_is_waited_for() -> None:
    with fake_board(FakeBoard(enabled=False, reason="The node is starting.")) as board:
        opening = Timer(0.3, lambda: setattr(board, "enabled", True))
        opening.start()
        assert board_state(NodeAddress(1, board.port, TOKEN)) == BoardState(True)
        opening.join()
