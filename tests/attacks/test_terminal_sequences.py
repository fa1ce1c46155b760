"""Text of model files and of other servers does not control the terminal or the log of a node."""

from __future__ import annotations

import http.server
import io
import json
import logging
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy
import pytest
from rich.console import Console

from meshllm.cli import view
from meshllm.core.snapshot import BackendState, EnginePhase, EngineState, ModelState, Snapshot
from meshllm.daemon.log_format import TerminalFormatter
from meshllm.util.format import printable_json
from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM

# Sets the title of a terminal, moves its cursor, and does the first again with an 8-bit control character.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202e\rroot#"


def hostile_model(path: Path) -> Path:
    """A llama of one layer whose tokenizer, description and template hold terminal sequences."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(HOSTILE)
    writer.add_description(HOSTILE)
    writer.add_chat_template(HOSTILE)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(HOSTILE)
    writer.add_token_list(["a", "b", "<s>", "</s>"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Backend(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose models have hostile names."""

    def do_GET(self) -> None:
        """The model list."""
        body = json.dumps({"object": "list", "data": [{"id": f"m {HOSTILE}", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def backend() -> Iterator[str]:
    """The URL of such a server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def shown(home: Path, terminal: bool, until: bytes, *arguments: str) -> bytes:
    """What a node writes to its output, from its start to its end, which is asked for once `until` was written."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [str(PROGRAM), "--port", "0", "--console", "0", *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, "MESH_LLM_HOME": str(home)}, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    output, asked = b"", False
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # a terminal without a writer
                break
            if not data:
                break
            output += data
            if until in output and not asked:
                asked = True
                process.send_signal(signal.SIGINT)
        assert asked, output
        assert process.wait(OPEN_WAIT_SECONDS) == 0
    finally:
        os.close(ours)
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
    return output


def test_backend_does_not_control_the_terminal(tmp_path: Path, backend: str) -> None:
    for terminal in (False, True):
        output = shown(tmp_path / str(terminal), terminal, b"serves nothing", "--backend", backend)
        check(output, terminal=terminal)


def test_invite_and_token_are_printed_on_a_terminal_only(tmp_path: Path) -> None:
    """A service's output ends in a journal that others may read."""
    output = shown(tmp_path / "home", False, b"mesh-llm invite")
    assert b"mesh2-" not in output
    assert b"#token=" not in output
    logs = b"".join(path.read_bytes() for path in (tmp_path / "home" / "logs").iterdir())
    assert b"mesh2-" not in logs + (tmp_path / "home" / "audit.log").read_bytes()
    output = shown(tmp_path / "other", True, b"--join mesh")
    assert b"#token=" in output


@pytest.mark.engine
@pytest.mark.parametrize("terminal", [False, True])
def test_model_file_does_not_control_the_terminal(tmp_path: Path, terminal: bool) -> None:
    model = hostile_model(tmp_path / "hostile.gguf")
    output = shown(tmp_path / "home", terminal, b"failed hostile", "--model", str(model))
    assert b"owned" in output, "the engine's message does not quote the file any more: choose another field"
    check(output, terminal=terminal)
    for path in (tmp_path / "home" / "logs").iterdir():
        assert not set(path.read_bytes()) & {0x1B, 0x07, 0x0D, 0x9B}, path


def check(output: bytes, *, terminal: bool) -> None:
    """The node's own output on a terminal has colours and cursor movements; none of the hostile ones is there."""
    assert b"\x1b]" not in output
    assert b"\x07" not in output
    assert "\u009b".encode() not in output
    assert "\u202e".encode() not in output
    assert b"\x1b[2J" not in output
    if not terminal:
        assert b"\x1b" not in output


def test_viewers_escape_what_the_core_tells() -> None:
    model = replace(ModelState(f"m{HOSTILE}"), reason=HOSTILE, advice=HOSTILE)
    engine = EngineState(EnginePhase.FAILED, reason=HOSTILE, advice=HOSTILE)
    backends = (BackendState("http://b", True, models=(HOSTILE,)), BackendState("http://c", reason=HOSTILE, failures=3))
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, color_system=None, width=200)
        viewer = view.LiveViewer(console) if terminal else view.LineViewer(view.PlainConsole(out))
        viewer.snapshot(Snapshot(engine=engine, models=(model,), backends=backends))
        viewer.no_mesh(HOSTILE)
        viewer.close()
        assert "owned" in out.getvalue()
        check(out.getvalue().encode(), terminal=terminal)
    services = io.StringIO()
    view.JsonViewer(services).no_mesh(HOSTILE)
    check(services.getvalue().encode(), terminal=False)
    assert json.loads(services.getvalue())["reason"] == HOSTILE


def test_log_lines_on_a_terminal_are_escaped_and_hold_no_secret() -> None:
    record = logging.LogRecord("x", logging.ERROR, "", 0, "it said %s with mesh2-abcdefghijkl", (HOSTILE,), None)
    line = TerminalFormatter("%(levelname)s %(message)s").format(record)
    check(line.encode(), terminal=False)
    assert "abcdefghijkl" not in line


@pytest.mark.parametrize("text", [HOSTILE, "plain", "\U0001f600 \U000e0001", "\x7f", "é"])
def test_printable_json_is_the_same_json(text: str) -> None:
    made = json.dumps({"x": text}, ensure_ascii=False)
    safe = printable_json(made)
    assert json.loads(safe) == {"x": text}
    assert all(letter.isprintable() for letter in safe)
