"""Commands whose standard streams are closed, full, or pipes without a reader."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshllm.daemon.log_file import log_path
from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM, wait_for_text

LINE = "2026-01-31T11:00:00.000Z INFO    meshllm.daemon.app: line\n"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home with a long log, and a temporary folder of its own."""
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.write_text(LINE * 20_000)
    with tempfile.TemporaryDirectory(prefix="mesh-test-", ignore_cleanup_errors=True) as scratch:
        yield {**os.environ, "MESH_LLM_HOME": str(tmp_path), "TMPDIR": scratch}


def shell(environment: dict[str, str], text: str) -> subprocess.CompletedProcess[str]:
    """Run `text` with `mesh-llm` as "$0"."""
    return subprocess.run(
        ["bash", "-c", text, str(PROGRAM)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=OPEN_WAIT_SECONDS,
    )


COMMANDS = ["logs", "--help", "models"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_report_a_full_output_in_plain_words(
    environment: dict[str, str], command: str, unbuffered: str
) -> None:
    done = shell({**environment, "PYTHONUNBUFFERED": unbuffered}, f'"$0" {command} >/dev/full')
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "mesh-llm: The output cannot be written: No space left on device.",
        "  Check the file, disk or terminal that it goes to.",
    ]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_quietly_when_the_reader_of_their_output_is_gone(
    environment: dict[str, str], command: str, unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [PROGRAM, *command.split()],
            env={**environment, "PYTHONUNBUFFERED": unbuffered},
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=OPEN_WAIT_SECONDS, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_command_with_an_error_keeps_its_message_with_all_streams_closed(environment: dict[str, str]) -> None:
    assert shell(environment, '"$0" logs --level loud <&- >&- 2>&-').returncode == 2
    assert shell(environment, '"$0" logs >&-').returncode == 0
    done = shell(environment, '"$0" status >&- <&-')
    assert done.returncode == 1
    assert done.stderr.startswith("mesh-llm: No mesh-llm is running")


@pytest.mark.parametrize(
    ("closed", "debug"),
    [("<&-", ""), (">&-", ""), ("2>&-", "1"), ("<&- >&- 2>&-", ""), ("2>/dev/full >/dev/full", "")],
)
def test_daemon_runs_and_stops_with_closed_streams(
    tmp_path: Path, environment: dict[str, str], closed: str, debug: str
) -> None:
    path = log_path(tmp_path)
    path.unlink()
    environment["MESH_LLM_DEBUG"] = debug
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" --port 0 --console 0 {closed}', str(PROGRAM)],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for_text(process, path, "mesh alone")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=OPEN_WAIT_SECONDS)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "stopped uptime_seconds=" in path.read_text()
    assert "Traceback" not in path.read_text()


def test_streams_open_for_the_other_direction_are_as_closed_ones(environment: dict[str, str]) -> None:
    """Some supervisors give every stream the same descriptor of /dev/null, open for reading."""
    done = shell(environment, '"$0" models 1</dev/null')
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(environment, '"$0" status 2</dev/null').returncode == 1
    done = shell(environment, '"$0" --join - 0>/dev/null')
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
