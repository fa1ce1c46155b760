"""A daemon whose terminal or pipes are closed under it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshllm.daemon import pidfile
from meshllm.daemon.log_file import log_path
from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM, wait_for_text

OPTIONS = [str(PROGRAM), "--port", "0", "--console", "0"]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home and temporary folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-", ignore_cleanup_errors=True) as scratch:
        yield {**os.environ, "MESH_LLM_HOME": str(tmp_path), "TMPDIR": scratch, "TERM": "xterm"}


def test_daemon_leaves_in_order_when_its_terminal_is_closed(tmp_path: Path, environment: dict[str, str]) -> None:
    controller, terminal = pty.openpty()
    script = "import os, sys; os.setsid(); import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    script += "os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *OPTIONS],
        env=environment, stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while b"--join mesh2-" not in shown:
            shown += os.read(controller, 65536)
        os.close(controller)  # as a terminal window that is closed: the kernel sends SIGHUP
        assert process.wait(OPEN_WAIT_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    log = log_path(tmp_path).read_text()
    assert "stopping signal=SIGHUP" in log
    assert "stopped uptime_seconds=" in log
    assert not (tmp_path / pidfile.PID_FILE).exists()


@pytest.mark.parametrize("options", [[], ["--json"], ["--verbose"], ["--json", "--verbose"]])
def test_daemon_survives_closed_output(tmp_path: Path, environment: dict[str, str], options: list[str]) -> None:
    process = subprocess.Popen(
        [*OPTIONS, *options], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)  # it has begun to write
        process.stdout.close()
        process.stderr.close()
        wait_for_text(process, log_path(tmp_path), "mesh alone")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(OPEN_WAIT_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "stopped uptime_seconds=" in log_path(tmp_path).read_text() or "--json" in options
    log = log_path(tmp_path).read_text()
    assert "stopped" in log
    assert log.count("the terminal cannot be written to (Broken pipe)") == 1
    assert "Traceback" not in log
