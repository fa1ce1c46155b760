"""Requests that end or hold an engine: deep grammars, 5,000 prompts, one that was there at two deaths (rows 9, 11)."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.daemons import MODEL, Daemon, daemon

TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node of its own: its engine is killed."""
    with daemon(tmp_path_factory.mktemp("poison") / "home", "--model", MODEL, "--ctx-size", "2048") as started:
        yield started.wait_until_serving()


def ask(node: Daemon, path: str, **fields: object) -> tuple[int, Any]:
    """Status and body of one request."""
    body = json.dumps({"model": MODEL, **fields}).encode()
    request = urllib.request.Request(f"{node.base_url}{path}", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def engines(node: Daemon) -> list[psutil.Process]:
    return [child for child in node.children() if "llama-server" in child.name()]


def test_deep_grammars_and_many_prompts_are_refused(node: Daemon) -> None:
    before = [process.pid for process in engines(node)]
    status, body = ask(node, "/completions", prompt="x", grammar="root ::= " + "(" * 390_000)
    assert (status, body["error"]["code"]) == (400, "too_large")
    status, body = ask(node, "/completions", prompt=["x"] * 5000)
    assert (status, body["error"]["code"]) == (400, "too_many_prompts")
    assert ask(node, "/completions", prompt="x", max_tokens=1)[0] == 200
    assert [process.pid for process in engines(node)] == before


BOMBS: dict[str, dict[str, object]] = {
    "each rule twice": {
        "grammar": "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1} | a{i + 1}\n" for i in range(40)) + 'a40 ::= "x"\n'
    },
    "optional blanks": {"grammar": "root ::= " + '" "? ' * 200},
    "optional rules": {
        "grammar": "root ::= b b b b b b b b b\nb ::= c? c? c? c? c?\nc ::= d? d? d? d?\nd ::= [a-z]? [a-z ]? [a-z]?"
    },
    "pattern": {"json_schema": {"type": "string", "pattern": "^" + " ?" * 200 + "$"}},
    "sequence breakers": {"dry_multiplier": 1, "dry_sequence_breakers": [str(i) for i in range(50_000)]},
    "samplers": {"samplers": ["infill"] * 5000},
    "windows": {"repeat_last_n": 2**31 - 1, "dry_penalty_last_n": 2**31 - 1, "repeat_penalty": 1.1},
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_request_holds_the_engine(node: Daemon, name: str) -> None:
    """The engine's main loop computes for all slots: another caller is answered, before and after the bomb is."""
    before = [process.pid for process in engines(node)]
    found: list[tuple[int, Any]] = []
    bomb = threading.Thread(
        target=lambda: found.append(ask(node, "/completions", prompt="x", max_tokens=16, **BOMBS[name])), daemon=True
    )
    bomb.start()
    assert ask(node, "/completions", prompt="x", max_tokens=1)[0] == 200
    bomb.join()
    status, body = found[0]
    assert status in (200, 400), body
    assert ask(node, "/completions", prompt="x", max_tokens=1)[0] == 200
    assert [process.pid for process in engines(node)] == before


def test_request_at_two_deaths_of_the_engine_is_refused(node: Daemon) -> None:
    poison = {"prompt": "One, two", "max_tokens": 1500, "ignore_eos": True}
    found: list[tuple[int, Any]] = []
    caller = threading.Thread(target=lambda: found.append(ask(node, "/completions", **poison)), daemon=True)
    caller.start()
    for deaths in (0, 1):
        if deaths:
            node.wait_until_serving(restarts=deaths)
        kill_when_busy(node)
    caller.join()
    assert (found[0][0], found[0][1]["error"]["code"]) == (400, "request_crashed_engine")
    assert ask(node, "/completions", **poison)[1]["error"]["code"] == "request_crashed_engine"
    node.wait_until_serving(restarts=2)
    assert ask(node, "/completions", prompt="x", max_tokens=1)[0] == 200


def kill_when_busy(node: Daemon) -> None:
    """Kill the engine once it computes: after a start it waits."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for process in engines(node):
            if process.cpu_percent(0.3) > 40.0:
                process.send_signal(signal.SIGSEGV)
                return
    raise AssertionError("the engine never computed")
