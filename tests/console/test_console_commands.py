"""The copyable commands of the page run as they stand: each is copied in the browser and run against a real node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import Visitor
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM, Daemon, daemon

pytestmark = pytest.mark.engine

# What a person's programs do with the settings of the copied line: a request with them.
GOOSE = """#!/bin/sh
[ "$GOOSE_PROVIDER $*" = "openai session" ] || exit 1
MESSAGES='"messages": [{"role": "user", "content": "Hi"}]'
exec curl -sSf "$OPENAI_HOST/v1/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \
  -d "{\\"model\\": \\"$GOOSE_MODEL\\", \\"max_tokens\\": 4, $MESSAGES}"
"""
CLAUDE = """#!/bin/sh
[ "$ANTHROPIC_SMALL_FAST_MODEL" = "$ANTHROPIC_MODEL" ] || exit 1
MESSAGES='"messages": [{"role": "user", "content": "Hi"}]'
exec curl -sSf "$ANTHROPIC_BASE_URL/v1/messages" -H "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" \
  -d "{\\"model\\": \\"$ANTHROPIC_MODEL\\", \\"max_tokens\\": 4, $MESSAGES}"
"""
ARGUMENTS = """#!/bin/sh
for one in "$@"; do echo "$one"; done
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Daemon]:
    """A node that serves a model with options of its own."""
    with daemon(tmp_path / "a home", "--model", MODEL, "--ctx-size", "2048", "--node-name", "work bench") as started:
        yield started.wait_until_serving()


def copied(block: Locator) -> str:
    """What the copy button of a block puts onto the clipboard."""
    page = block.page
    block.locator("xpath=..").get_by_role("button", name="Copy").click()
    expect(block.locator("xpath=..").get_by_role("button", name="Copied")).to_be_visible()
    return str(page.evaluate("navigator.clipboard.readText()"))


def shell(text: str, folder: Path, programs: Path | None = None) -> str:
    """Run a command as a person does: in a shell, in a folder that is not the node's, without its environment."""
    path = f"{programs}:{os.environ['PATH']}" if programs is not None else os.environ["PATH"]
    environment = {name: value for name, value in os.environ.items() if name != "MESH_LLM_HOME"}
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=OPEN_WAIT_SECONDS,
    )
    assert done.returncode == 0, (text, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def running(text: str, folder: Path, stdin: str = "", **environment: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run a command that starts a node with --json. Yields a function that waits for an event of the node."""
    inherited = {name: value for name, value in os.environ.items() if name != "MESH_LLM_HOME"}
    process = subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env={**inherited, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stdin)
    process.stdin.close()

    def wait_for(words: str) -> dict[str, Any]:
        """The first line that contains `words`."""
        assert process.stdout is not None
        signal.alarm(int(OPEN_WAIT_SECONDS))
        try:
            for line in process.stdout:
                if words in line:
                    return dict(json.loads(line))
        finally:
            signal.alarm(0)
        raise AssertionError(f"ended before {words}")

    try:
        yield wait_for
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(OPEN_WAIT_SECONDS)
        process.stdout.close()


def programs_of(page: Page, name: str) -> dict[str, str]:
    """The copied texts for a program, by their titles."""
    page.get_by_role("button", name=name, exact=True).click()
    blocks = page.get_by_role("region", name=name)
    found = {}
    for number in range(blocks.count()):
        title = str(blocks.nth(number).get_attribute("aria-label")).removeprefix(f"{name}: ")
        found[title] = copied(blocks.nth(number))
    return found


def test_settings_for_programs_work_as_they_are_copied(node: Daemon, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.open(f"{node.console_url}/#/join", node.token)
    (curl,) = programs_of(page, "curl").values()
    assert json.loads(shell(curl, tmp_path))["choices"][0]["message"]["content"]
    (python,) = programs_of(page, "Python").values()
    assert shell(f"{sys.executable} - <<'END'\n{python}\nEND", tmp_path).strip()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("goose", GOOSE), ("claude", CLAUDE), ("opencode", ARGUMENTS), ("pi", ARGUMENTS)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (goose,) = programs_of(page, "goose").values()
    assert json.loads(shell(goose, tmp_path, programs))["choices"]
    (claude,) = programs_of(page, "Claude Code").values()
    assert json.loads(shell(claude, tmp_path, programs))["content"]
    opencode = programs_of(page, "opencode")
    provider = json.loads(opencode["In opencode.json:"])["provider"]["mesh-llm"]
    assert shell(opencode["Then:"], tmp_path, programs).split() == ["--model", f"mesh-llm/{MODEL}"]
    pi = programs_of(page, "pi")
    other = json.loads(pi["In ~/.pi/agent/models.json:"])["providers"]["mesh-llm"]
    assert shell(pi["Then:"], tmp_path, programs).split() == ["--provider", "mesh-llm", "--model", MODEL]
    for url in (provider["options"]["baseURL"], other["baseUrl"]):
        with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
            assert MODEL in [one["id"] for one in json.load(answer)["data"]]


def test_command_for_other_devices_keeps_the_options_of_the_start(
    node: Daemon, visitor: Visitor, tmp_path: Path
) -> None:
    page = visitor.open(f"{node.console_url}/#/join", node.token)
    visitor.allow("ERR_")
    visitor.allow("404")
    command = copied(page.get_by_role("region", name="Command that allows other devices"))
    found = shutil.which("mesh-llm")  # a program that the shell finds needs no path
    assert (str(PROGRAM) if found is None or Path(found) != PROGRAM else " mesh-llm ") in command
    assert command.endswith(f"--model {MODEL} --ctx-size 2048 --node-name 'work bench' --listen-all")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    with running(command, elsewhere) as wait_for:
        wait_for('"phase":"serving"')
        status = json.loads(shell(f"MESH_LLM_HOME='{node.home}' {PROGRAM} status --json", elsewhere))
        assert status["name"] == "work bench"
        assert status["models"][0]["engine"]["context_length"] == 2048
        assert status["lan_urls"] != []
    assert node.stop() == 0


def test_invite_command_joins(node: Daemon, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.open(f"{node.console_url}/#/join", node.token)
    page.get_by_role("button", name="Show an invite").click()
    command = copied(page.get_by_role("region", name="Command to join"))
    assert command.startswith("mesh-llm --join mesh")
    # On this same machine it needs a home and ports of its own.
    own = f"{command} --client --json --port 0 --console 0"
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    with running(own, tmp_path, MESH_LLM_HOME=str(tmp_path / "other"), PATH=path) as wait_for:
        wait_for('"phase":"joined"')
        status = json.loads(shell(f"MESH_LLM_HOME='{tmp_path / 'other'}' {PROGRAM} status --json", tmp_path))
        assert [peer["name"] for peer in status["mesh"]["peers"]] == ["work bench"]
        # This client remembers its mesh: what starts it again has no invite in it.
        assert "--join" not in status["start"]["command"]
        assert status["start"]["command"].endswith("mesh-llm --client --json --port 0 --console 0")


def test_commands_of_an_idle_node_serve_and_join(node: Daemon, visit: Callable[..., Visitor], tmp_path: Path) -> None:
    invite = shell(f"MESH_LLM_HOME='{node.home}' {PROGRAM} invite", tmp_path)
    for title, stdin, words in (
        ("Serve a model from the catalogue", "", '"phase":"serving"'),
        ("Join a mesh, share this machine and use its models (it asks for the invite)", invite, '"phase":"joined"'),
    ):
        with daemon(tmp_path / f"idle {len(stdin)}", "--node-name", "idler") as idle:
            visitor = visit()
            visitor.allow("ERR_")
            page = visitor.open(idle.console_url, idle.token)
            command = copied(page.get_by_role("region", name=title))
            with running(command, tmp_path, stdin) as wait_for:
                wait_for(words)
            assert idle.stop() == 0


def test_examples_that_must_be_completed_cannot_be_copied(visitor: Visitor, tmp_path: Path) -> None:
    with daemon(tmp_path / "home") as idle:
        page = visitor.open(idle.console_url, idle.token)
        for title in ("Serve a model file, for example", "Add a running OpenAI-compatible server, for example"):
            block = page.get_by_role("region", name=title)
            expect(block).to_be_visible()
            expect(block.locator("xpath=..").get_by_role("button")).to_have_count(0)


def test_copy_button_is_beside_the_text_on_a_phone(node: Daemon, visit: Callable[..., Visitor]) -> None:
    page = visit(viewport={"width": 390, "height": 760}, is_mobile=True, has_touch=True).open(
        f"{node.console_url}/#/join", node.token
    )
    page.get_by_role("button", name="Show an invite").click()
    page.get_by_role("region", name="Command to join").wait_for()
    overlaps = page.eval_on_selector_all(
        ".command",
        """all => all.map((one) => {
            const text = one.querySelector('pre').getBoundingClientRect()
            const button = one.querySelector('button').getBoundingClientRect()
            return text.right - button.left
        })""",
    )
    assert len(overlaps) >= 3
    assert max(overlaps) <= 0
