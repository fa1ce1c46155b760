"""The benchmark tools compile, count requests and notice errors.

Nothing is timed here. The load generator is shown servers that misbehave, because a benchmark that does not see a lost
stream calls a broken gateway fast.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from scripts.benchmarks import engine, native, targets  # noqa: E402
from scripts.benchmarks.children import get_json, listening, post_json  # noqa: E402
from scripts.benchmarks.scenarios import Results, Scenario  # noqa: E402

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the measuring tools are written in C"
)


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[targets.Target]:
    with ExitStack() as stack:
        yield targets.start_upstream(stack, tmp_path)


def test_fake_upstream_replies_like_a_server(upstream: targets.Target) -> None:
    assert get_json(upstream.port, "/health") == {"status": "ok"}
    assert [model["id"] for model in get_json(upstream.port, "/v1/models")["data"]] == ["fake"]
    chat = post_json(upstream.port, "/v1/chat/completions", {"model": "fake", "messages": []}, 10)
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["role"] == "assistant"
    with pytest.raises(OSError, match="404"):
        get_json(upstream.port, "/nowhere")


def test_fake_upstream_exits_at_the_end_of_its_input(tmp_path: Path) -> None:
    with ExitStack() as stack:
        target = targets.start_upstream(stack, tmp_path)
        assert listening(target.port)
    assert not target.child.process.is_running()
    assert not listening(target.port)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("plain", requests=20),
        Scenario("large", requests=20, prompt_bytes=1_000_000),
        Scenario("timed", connections=8, seconds=0.1),
        Scenario("one_event", requests=20, events=1),
        Scenario("flat_out", connections=8, requests=2, events=3000),
        Scenario("paced", connections=8, requests=1, events=20, pace_us=1000),
    ],
    ids=lambda scenario: scenario.name,
)
def test_load_generator_counts_requests(scenario: Scenario, upstream: targets.Target, tmp_path: Path) -> None:
    report = scenario.run(upstream, tmp_path)
    assert (report["errors"], report["truncated"], report["complaint"]) == (0, 0, "")
    if scenario.requests:
        assert report["requests"] == scenario.requests * scenario.connections
        assert report["events"] == report["requests"] * (scenario.events + 1 if scenario.events else 0)
    assert 0 < report["first_byte_us"]["median"] <= report["total_us"]["max"]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[]}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"


async def ask(answer: bytes, body: Path, *, bytewise: bool = False, **options: Any) -> dict[str, Any]:
    """The load generator's report for a server that replies `answer` and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        for piece in [answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(native.load, port, [body], requests=1, **options)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    file = tmp_path / "body.json"
    file.write_text("{}")
    return file


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        HEAD + chunk((EVENT + DONE)[:30]) + chunk((EVENT + DONE)[30:]) + b"0\r\nX-Trailer: 1\r\n\r\n",
        HEAD + chunk(b": ping\n\n" + EVENT + DONE) + b"0\r\n\r\n",
        HEAD.replace(b"Transfer-Encoding: chunked", b"Connection: close") + EVENT + DONE,
    ],
    ids=["plain", "split", "comment", "until-close"],
)
async def test_load_generator_accepts_a_complete_stream(answer: bytes, bytewise: bool, body: Path) -> None:
    report = await ask(answer, body, bytewise=bytewise, stream=True, events=1)
    assert (report["errors"], report["truncated"], report["events"]) == (0, 0, 1), report["complaint"]


@pytest.mark.parametrize(
    ("answer", "truncated"),
    [
        (b"", 1),
        (HEAD, 1),
        (WHOLE[:-7], 1),
        (HEAD + chunk(EVENT) + b"0\r\n\r\n", 1),
        (WHOLE.replace(b"200 OK", b"502 Bad Gateway"), 0),
        (HEAD + chunk(b'data: {"error":{"message":"no"}}\n\n' + DONE) + b"0\r\n\r\n", 0),
        (HEAD + chunk(EVENT) + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n", 0),
        (HEAD + b"zz\r\n", 1),
        (b"garbage\r\n\r\n", 1),
    ],
    ids=["nothing", "head-only", "cut", "no-done", "status", "error-event", "one-too-many", "bad-size", "garbage"],
)
async def test_load_generator_counts_a_broken_stream(answer: bytes, truncated: int, body: Path) -> None:
    report = await ask(answer, body, stream=True, events=1)
    assert (report["errors"], report["truncated"]) == (1, truncated)
    assert report["complaint"]


async def test_load_generator_uses_a_unix_socket(body: Path, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n{}")
        assert b"Connection: close" in head
        writer.write(WHOLE)
        await writer.drain()
        writer.close()

    socket = tmp_path / "engine.sock"
    server = await asyncio.start_unix_server(serve, socket)
    async with server:
        report = await asyncio.to_thread(
            native.load, socket, [body, body], connections=2, requests=5, stream=True, fresh=True
        )
    assert (report["requests"], report["errors"], report["events"]) == (10, 0, 10), report["complaint"]


def test_bench_gateway_measures_and_cleans_up(tmp_path: Path) -> None:
    without = [word for name in ("ours", "nginx", "aiohttp") for word in ("--without", name)]
    command = [sys.executable, "-m", "scripts.benchmarks", "gateway", "--quick", "--rounds", "1", "--json", *without]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["targets"] == ["direct"]
    assert set(report["rounds"]) == {"first_byte", "first_byte_32k", "throughput", "first_event", "flat_out", "paced"}
    assert not [child for child in psutil.Process().children(recursive=True) if "upstream" in child.name()]


def test_bench_results_compare_within_a_round() -> None:
    results = Results()
    for direct, ours in ((1.0, 2.0), (10.0, 40.0), (2.0, 6.0)):
        results.add("load", "direct", {"rate": direct})
        results.add("load", "ours", {"rate": ours})
    results.add("failed", "direct", {"rate": None})

    def rate(report: dict[str, Any]) -> float:
        value: float = report["rate"]
        return value

    assert results.ratio("load", "ours", "direct", rate) == 3.0
    assert results.added("load", "ours", rate) == 4.0
    assert results.value("failed", "direct", rate) is None
    assert results.ratio("load", "nginx", "direct", rate) is None


def test_bench_engine_finds_the_socket_in_the_status() -> None:
    status = {"console": "x.sock", "models": [{"name": "m", "engine": {"pid": 1, "socket": "/run/a/engine.sock"}}]}
    assert engine.find_socket(status) == Path("/run/a/engine.sock")
    assert engine.find_socket({"models": [{"name": "m"}]}) is None
