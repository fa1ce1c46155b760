"""`mesh-llm logs`: filters, engine logs, following through a rotation."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from meshllm.cli import entry
from meshllm.cli.logs import LogFilter, level_name, moment, show
from meshllm.daemon.log_file import RotatingFile, engine_log, log_path
from meshllm.daemon.log_reader import LogTail
from meshllm.errors import EnvironmentFailure, UsageError

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
LINES = [
    "2026-01-31T11:00:00.000Z INFO    meshllm.daemon.app: mesh-llm started version=0.1.0",
    "2026-01-31T11:30:00.000Z DEBUG   meshllm.gateway: attempt request_id=req_aa11 outcome=ok",
    "2026-01-31T11:30:00.100Z WARNING meshllm.gateway: attempt request_id=req_bb22 outcome=failed",
    "2026-01-31T11:30:00.200Z INFO    meshllm.access: request request_id=req_bb22 status=502",
    "2026-01-31T11:59:00.000Z ERROR   meshllm.util.isolate: it failed\n    Traceback (most recent call last):\n    X",
    json.dumps({"time": "2026-01-31T11:59:30.000Z", "level": "info", "message": "x", "request_id": "req_bb22"}),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a log of two files, of which the older one has the first three records."""
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path))
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.with_name("daemon.log.1").write_text("\n".join(LINES[:3]) + "\n")
    path.write_text("\n".join(LINES[3:]) + "\n")
    return tmp_path


def printed(*arguments: str) -> list[str]:
    done = CliRunner().invoke(entry.app, ["logs", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_logs_prints_all_files_in_order(home: Path) -> None:
    assert printed() == "\n".join(LINES).split("\n")


def test_logs_selects_one_request(home: Path) -> None:
    assert printed("--request", "req_bb22") == [LINES[2], LINES[3], LINES[5]]
    assert printed("--request", "req_bb") == [LINES[2], LINES[3], LINES[5]]


@pytest.mark.parametrize("limit", [[], ["-n", "5"]])
def test_logs_reports_a_request_without_log_lines(home: Path, limit: list[str]) -> None:
    with pytest.raises(EnvironmentFailure, match="No log line of request req_b22 here") as caught:
        printed("--request", "req_b22", *limit)
    assert "Another node may have it" in caught.value.advice
    assert printed("--request", "req_bb22", "-n", "0") == []


def test_logs_refuses_a_text_that_cannot_be_a_request_id(home: Path) -> None:
    done = CliRunner().invoke(entry.app, ["logs", "--request", "two words"])
    assert done.exit_code == 2
    assert "cannot be a request id" in done.output


@pytest.mark.parametrize("bad", ["logs", "logs/daemon.log"])
def test_logs_names_what_is_in_the_place_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path))
    path = tmp_path / bad
    if bad == "logs":
        path.write_text("")
    else:
        path.mkdir(parents=True)
    with pytest.raises(EnvironmentFailure, match=f"There is no log: {path} is (not )?a folder") as caught:
        printed()
    assert f"Move {path} away" in caught.value.advice
    if bad != "logs":
        path.with_name("daemon.log.1").write_text(LINES[0] + "\n")
        done = CliRunner().invoke(entry.app, ["logs"])
        assert done.stdout == LINES[0] + "\n"
        assert f"{path} is a folder" in done.stderr


def test_logs_selects_by_level_and_keeps_tracebacks(home: Path) -> None:
    assert printed("--level", "warning") == [LINES[2], *LINES[4].split("\n")]
    assert printed("--level", "error") == LINES[4].split("\n")


def test_logs_selects_by_time_and_number(home: Path) -> None:
    assert printed("--since", "2026-01-31T11:58:00Z") == "\n".join(LINES[4:]).split("\n")
    assert printed("--since", "2026-01-31T11:59:10+00:00") == [LINES[5]]
    assert printed("--lines", "1") == [LINES[5]]
    assert printed("-n", "0") == []


def test_logs_prints_an_engine_log_with_control_characters_escaped(home: Path) -> None:
    engine_log(home, "Qwen2.5 0.5B").write_text("loading\x1b[2J\nready\n")
    engine_log(home, "Qwen2.5 0.5B").with_suffix(".old.log").write_text("earlier\n")
    assert printed("--engine", "Qwen2.5 0.5B") == ["earlier", "loading\\x1b[2J", "ready"]
    assert printed("--engine", "Qwen2.5 0.5B", "--request", "load") == ["loading\\x1b[2J"]


def test_logs_names_the_engine_logs_that_exist(home: Path) -> None:
    with pytest.raises(UsageError, match="No engine has run"):
        printed("--engine", "x")
    engine_log(home, "rpc-server").touch()
    with pytest.raises(UsageError, match="Engine logs here: rpc-server"):
        printed("--engine", "x")


def test_logs_reports_a_home_without_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="There is no log file") as caught:
        printed()
    assert "MESH_LLM_HOME" in caught.value.advice


def test_show_follows_a_log_that_is_rotated(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "daemon.log", max_bytes=400)
    file.write(LINES[0].encode() + b"\n")
    written: list[str] = []
    rounds = iter(range(1, 30))

    def pause() -> bool:
        number = next(rounds, None)
        if number is None:
            return False
        file.write(f"2026-01-31T11:00:{number:02}.000Z INFO    meshllm.x: line {number}\n".encode())
        return True

    tail = LogTail(file.path)
    show(tail, LogFilter(level="INFO"), 10, follow=True, pause=pause, write=written.append)
    tail.close()
    file.close()
    assert written[0] == LINES[0]
    assert [line.rpartition(" ")[2] for line in written[1:]] == [str(number) for number in range(1, 30)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("10m", NOW - timedelta(minutes=10)),
        (" 2H ", NOW - timedelta(hours=2)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T10:00:00+02:00", datetime(2026, 1, 1, 8, tzinfo=UTC)),
    ],
)
def test_moment_parses_durations_and_dates(text: str, expected: datetime | None) -> None:
    assert moment(text, NOW) == expected


def test_wrong_times_and_levels_are_refused() -> None:
    for text in ("yesterday", "10", "-1h"):
        with pytest.raises(typer.BadParameter, match="is not a time"):
            moment(text, NOW)
    with pytest.raises(typer.BadParameter, match="is not a log level"):
        level_name("loud")
    assert level_name("warn") == "WARNING"
