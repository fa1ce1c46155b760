"""The MCP server on standard streams: lines, the end of the input, signals, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.board.mcp_protocol import MAX_MESSAGE_BYTES
from meshllm.board.stdio import Lines

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0


def line(method: str, number: Any = 1, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


def wait(seconds: float, number: Any) -> bytes:
    return line("tools/call", number, name="blackboard_feed", arguments={"wait_seconds": seconds})


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.mcp_rig", "acme/rocket"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def say(server: subprocess.Popen[bytes], data: bytes) -> None:
    assert server.stdin is not None
    server.stdin.write(data)
    server.stdin.flush()


def hear(server: subprocess.Popen[bytes]) -> Any:
    assert server.stdout is not None
    return json.loads(server.stdout.readline())


def test_several_requests_are_answered_as_they_end(server: subprocess.Popen[bytes]) -> None:
    say(server, wait(1.0, "slow") + line("ping", "a") + line("tools/list", "b"))
    assert [hear(server)["id"] for _ in range(3)] == ["a", "b", "slow"]


def test_what_is_no_message_is_answered_and_does_not_end_the_server(server: subprocess.Popen[bytes]) -> None:
    say(server, b"\n\r\n  \n{\n\xff\xfe\n[]\n" + b"x" * (MAX_MESSAGE_BYTES * 3) + b"\n" + line("ping", 5))
    assert [hear(server).get("error", {}).get("code") for _ in range(5)] == [-32700, -32700, -32600, -32600, None]


def test_the_last_requests_are_answered_after_the_end_of_the_input(server: subprocess.Popen[bytes]) -> None:
    """`echo '...' | mesh-llm blackboard --mcp`, also without a line break at the end."""
    out, errors = server.communicate(line("ping", 1) + line("tools/list", 2).strip(), timeout=PATIENCE)
    assert [json.loads(each)["id"] for each in out.splitlines()] == [1, 2]
    assert errors == b""
    assert server.returncode == 0


def test_the_end_of_the_input_ends_the_server_soon(server: subprocess.Popen[bytes]) -> None:
    say(server, wait(50, 1) + line("ping", 2))
    assert hear(server)["id"] == 2
    assert server.stdin is not None
    begun = time.monotonic()
    server.stdin.close()
    server.wait(PATIENCE)
    # 0.5 s of it for the request in progress; the bar is one second on an idle machine, and this one may be slow.
    assert time.monotonic() - begun < PATIENCE / 4
    assert server.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_without_a_traceback(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    say(server, line("ping") + wait(50, 2))
    hear(server)
    server.send_signal(number)
    _, errors = server.communicate(timeout=PATIENCE)
    assert (server.returncode, errors) == (0, b"")


def test_a_client_that_closes_the_output_ends_the_server(server: subprocess.Popen[bytes]) -> None:
    say(server, line("ping"))
    hear(server)
    assert server.stdout is not None
    assert server.stderr is not None
    server.stdout.close()
    say(server, line("ping"))
    server.wait(PATIENCE)
    assert server.returncode == 0
    assert server.stderr.read() == b""


def test_a_client_that_does_not_read_does_not_keep_the_server(server: subprocess.Popen[bytes]) -> None:
    say(server, line("tools/list") * 200)  # some 400 KB, more than a pipe holds
    assert server.stdin is not None
    server.stdin.close()
    server.wait(PATIENCE)
    assert server.returncode == 0


def test_streams_that_another_made_non_blocking_are_waited_for() -> None:
    source, to_server = os.pipe()
    from_server, target = os.pipe()
    for descriptor in (source, target):
        os.set_blocking(descriptor, False)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.mcp_rig"], cwd=ROOT, stdin=source, stdout=target, stderr=subprocess.PIPE
    ) as process:
        os.close(source)
        os.close(target)
        count = 100
        for number in range(count):  # some 200 KB of answers, more than a pipe holds
            os.write(to_server, line("tools/list", number))
            time.sleep(0.001)
        time.sleep(0.5)  # the server meets a full pipe
        received = bytearray()
        while received.count(b"\n") < count:
            received += os.read(from_server, 1 << 16)
        os.close(to_server)
        assert process.wait(PATIENCE) == 0
        os.close(from_server)
    assert sorted(json.loads(each)["id"] for each in bytes(received).splitlines()) == list(range(count))


def test_nothing_but_messages_is_on_standard_output(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys, tests.mcp_rig as rig\n"
        "from meshllm.board import stdio\n"
        "real = stdio.private_output\n"
        "def private():\n    own = real(); print('stray'); os.write(1, b'stray too\\n'); return own\n"
        "stdio.private_output = private\n"
        "asyncio.run(rig.serve_stdio(''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=line("ping"), capture_output=True, timeout=PATIENCE
    )
    assert [json.loads(each)["id"] for each in done.stdout.splitlines()] == [1]
    assert b"stray" in done.stderr
    assert b"stray too" in done.stderr


def test_input_and_output_can_be_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(line("ping", 1) + line("ping", 2))
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        subprocess.run(
            [sys.executable, "-m", "tests.mcp_rig"], cwd=ROOT, stdin=source, stdout=target, check=True, timeout=PATIENCE
        )
    assert [json.loads(each)["id"] for each in (tmp_path / "out").read_bytes().splitlines()] == [1, 2]


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 30))
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], size: int) -> None:
    lines = [each.replace(b"\n", b" ").strip() for each in lines]
    data = b"\n".join([*lines, b""])
    found: list[bytes] = []
    too_long: list[None] = []
    reader = Lines(found.append, lambda: too_long.append(None), 20)
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    reader.close()
    assert found == [each for each in lines if 0 < len(each) <= 20]
    assert len(too_long) == sum(len(each) > 20 for each in lines)


async def test_a_flood_of_input_waits_until_it_is_taken() -> None:
    """The reading thread keeps some chunks, not the whole flood."""
    from meshllm.board import stdio
    from meshllm.board.mcp import McpSetting
    from meshllm.board.mcp_tools import LocalCalls
    from tests.local_board import LocalBoard
    from tests.mcp_rig import Clock, nonces

    source, flood = os.pipe()
    drain, target = os.pipe()
    clock = Clock()
    board = LocalBoard("ada", now=clock)
    setting = McpSetting(LocalCalls(lambda: board), "1", clock, asyncio.get_running_loop().time, nonces())
    serving = asyncio.create_task(stdio.serve(setting, source=source, target=target))  # noqa: TID251 - ends here
    sent = 0
    os.set_blocking(flood, False)
    received = bytearray()

    def read() -> None:
        while data := os.read(drain, 1 << 16):
            received.extend(data)

    reading = asyncio.get_running_loop().run_in_executor(None, read)
    message = line("ping")
    async with asyncio.timeout(PATIENCE):
        while sent < 3000:
            try:
                os.write(flood, message)
                sent += 1
            except BlockingIOError:
                await asyncio.sleep(0)
        os.close(flood)
        await serving
        os.close(target)
        await reading
    for descriptor in (source, drain):
        os.close(descriptor)
    answers = [json.loads(each) for each in bytes(received).splitlines()]
    assert len(answers) == 3000
