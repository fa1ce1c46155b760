"""Stops of a whole daemon: what it says meanwhile, signals that come again, signals at bad moments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM, Daemon, daemon

SMALL = ("--model", MODEL, "--ctx-size", "2048")


@contextmanager
def streaming(node: Daemon) -> Iterator[list[bytes]]:
    """A chat that takes longer than a stop waits; its lines, as they come."""
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 2000,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    }
    request = urllib.request.Request(
        f"{node.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    lines: list[bytes] = []
    with urllib.request.urlopen(request, timeout=OPEN_WAIT_SECONDS) as response:
        lines.append(response.readline())

        def read() -> None:
            with suppress(OSError):
                lines.extend(response)

        reader = Thread(target=read, daemon=True)
        reader.start()
        yield lines
        reader.join(OPEN_WAIT_SECONDS)


def status(node: Daemon) -> Any:
    with urllib.request.urlopen(node.owner_request("/api/status"), timeout=30) as response:
        return json.load(response)


def run(node: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *arguments],
        env={**os.environ, "MESH_LLM_HOME": str(node.home)},
        capture_output=True,
        text=True,
        timeout=OPEN_WAIT_SECONDS,
        check=False,
    )


def ended_in_order(node: Daemon) -> None:
    """It ended by itself, closed its files, and left nothing behind."""
    assert node.process.wait(OPEN_WAIT_SECONDS) == 0
    assert not (node.home / "daemon.json").exists()
    assert '"message": "stopped"' in (node.home / "logs" / "daemon.log").read_text()


@pytest.mark.engine
def test_stop_tells_what_it_waits_for_and_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with daemon(tmp_path, *SMALL) as node:
        node.wait_until_serving()
        with streaming(node) as lines:
            assert status(node)["stopping"] is False
            node.process.send_signal(signal.SIGHUP)
            told = node.wait_for(lambda line: line["event"] == "stopping", "the stop")
            assert (told["answers"], told["seconds"]) == (1, 5.0)
            assert status(node)["stopping"] is True
            assert "This node is stopping. It waits for 1 answer" in run(node, "status").stdout
            begun = time.monotonic()
            node.process.send_signal(signal.SIGHUP)
            node.wait_for(lambda line: line["event"] == "answers_cut", "the end of the answer")
            ended_in_order(node)
            # Five seconds are what it would have waited; a loaded machine may take some of them.
            assert time.monotonic() - begun < 4.0
        assert b'"code":"stopping"' in b"".join(lines)


@pytest.mark.engine
def test_stop_command_says_what_the_node_waits_for(tmp_path: Path) -> None:
    with daemon(tmp_path, *SMALL) as node:
        node.wait_until_serving()
        with streaming(node):
            told = run(node, "stop").stdout.splitlines()
        pid = node.process.pid
        assert told == [
            f"mesh-llm (process {pid}) is stopping. 1 answer in progress: waiting some seconds for the end.",
            f"Stopped mesh-llm (process {pid}).",
        ]
        ended_in_order(node)


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signal_while_the_model_is_loaded_stops_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with daemon(tmp_path, *SMALL) as node:
        node.wait_for(lambda line: line["event"] == "model" and line["phase"] == "loading", "loading")
        below = node.children()
        node.process.send_signal(number)
        ended_in_order(node)
        assert [process for process in below if process.is_running()] == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_until_the_end_do_not_interrupt_the_stop(tmp_path: Path, number: signal.Signals) -> None:
    """A terminal that closes sends SIGHUP again and again, and a supervisor SIGTERM on top."""
    with daemon(tmp_path, "--client") as node:
        while node.process.poll() is None:
            with suppress(ProcessLookupError):
                node.process.send_signal(number)
            time.sleep(0.001)
        ended_in_order(node)
