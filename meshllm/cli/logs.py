"""`mesh-llm logs`: prints the log of the daemon or of an engine process, and follows it."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meshllm.errors import EnvironmentFailure

if TYPE_CHECKING:
    from meshllm.daemon.log_format import LogRecordView
    from meshllm.daemon.log_reader import LogTail

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FOLLOW_SECONDS = 0.25
COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which records to print. `since`: records without a time follow the one before them."""

    level: str = "DEBUG"
    request_id: str = ""
    since: datetime | None = None

    def accepts(self, record: LogRecordView) -> bool:
        """Whether the record is printed. An id may be given by its beginning."""
        if record.level in LEVELS and LEVELS.index(record.level) < LEVELS.index(self.level):
            return False
        if self.request_id:
            # Lines of other programs have no field for the id.
            matches = (
                self.request_id in record.text if record.time is None else record.request_id.startswith(self.request_id)
            )
            if not matches:
                return False
        return self.since is None or record.time is None or record.time >= self.since


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing new lines until Ctrl-C.")] = False,
    engine: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The log of the engine process of this model (rpc-server: the worker's)."),
    ] = "",
    request: Annotated[
        str,
        typer.Option(metavar="ID", help="Only lines of this request (the x-request-id of its response)."),
    ] = "",
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help="Only lines of this level and above: debug, info, warning, error.")
    ] = "debug",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only newer lines: 10m, 2h, 1d, or 2026-01-31T12:00:00Z.")
    ] = "",
    audit: Annotated[
        bool,
        typer.Option("--audit", help="The audit log: who joined, was refused, took a lease, used a key."),
    ] = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines", "-n", min=0, metavar="N", help="Only the last N lines. Default: 200, or all with a filter."
        ),
    ] = None,
) -> None:
    """Print the log of the node of MESH_LLM_HOME, whether it is running or not."""
    from meshllm import paths

    wanted = LogFilter(level_name(level), request_id(request), moment(since, datetime.now(UTC)))
    if lines is None and not (request or since):
        lines = 200
    if audit and (engine or request or level != "debug"):
        raise typer.BadParameter("The audit log has no levels, requests or engines. Leave out the other filters.")
    tail = open_audit(paths.home()) if audit else open_log(paths.home(), engine)
    try:
        found = show(tail, wanted, lines, follow=follow, pause=_pause, audit=audit)
    except KeyboardInterrupt:
        return
    finally:
        tail.close()
    if request and not found:
        raise EnvironmentFailure(
            f"No log line of request {request} here.",
            advice="Another node may have it, or it was rotated away, or left out by the limit of access lines (see "
            "docs/operations.md).",
        )


def level_name(text: str) -> str:
    """The name of a level as the log writes it. Raises typer.BadParameter."""
    name = {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(text.strip().upper(), text.strip().upper())
    if name not in LEVELS:
        raise typer.BadParameter(f"{text!r} is not a log level. Give debug, info, warning or error.")
    return name


def request_id(text: str) -> str:
    """`text` if it can be a request id or the beginning of one. Raises typer.BadParameter."""
    if text and not REQUEST_ID.fullmatch(text):
        raise typer.BadParameter(
            f"{text!r} cannot be a request id: an id has at most 128 letters, digits and . _ : - and no spaces."
        )
    return text


def moment(text: str, now: datetime) -> datetime | None:
    """The time that `text` means: a duration before `now`, or a date and time (UTC without a zone); None if empty.

    Raises typer.BadParameter.
    """
    if not text:
        return None
    if found := re.fullmatch(r"([0-9]{1,7})\s*([smhd])", text.strip().lower()):
        return now - timedelta(seconds=int(found[1]) * UNIT_SECONDS[found[2]])
    try:
        given = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time. Give a duration (10m, 2h, 1d) or a date and time (2026-01-31T12:00:00Z)."
        ) from None
    return given if given.tzinfo is not None else given.replace(tzinfo=UTC)


def open_log(home: Path, engine: str) -> LogTail:
    """The daemon's log, or that of the engine process of a model.

    Raises UsageError if there is none, EnvironmentFailure if it cannot be read. Rotated files are shown without it.
    """
    from meshllm.daemon.log_file import engine_log, log_path, log_problem
    from meshllm.daemon.log_reader import LogTail
    from meshllm.errors import UsageError

    path = engine_log(home, engine) if engine else log_path(home)
    # The log of an engine process has one rotated file.
    tail = LogTail(path, (path.with_suffix(".old.log"),) if engine else None)
    try:
        path.open("rb").close()
    except FileNotFoundError:
        pass
    except OSError as error:
        problem = log_problem(path, error)
        if not tail.found:
            raise EnvironmentFailure(f"There is no log: {problem.message}.", advice=problem.advice) from error
        typer.echo(f"mesh-llm: only older lines are shown: {problem.message}. {problem.advice}", err=True)
    if tail.found:
        return tail
    if not engine:
        raise UsageError(
            f"There is no log file {path}.",
            advice="A node writes it when it starts. If the node has another home, set MESH_LLM_HOME to it.",
        )
    known = sorted(
        file.stem for file in path.parent.glob("*.log") if file != log_path(home) and ".old" not in file.name
    )
    raise UsageError(
        f"There is no engine log {path}.",
        advice=f"Engine logs here: {', '.join(known)}." if known else "No engine has run with this home.",
    )


def open_audit(home: Path) -> LogTail:
    """The audit log of the node of `home`. Raises UsageError if there is none."""
    from meshllm.daemon.audit_log import FILES, audit_path
    from meshllm.daemon.log_file import rotated
    from meshllm.daemon.log_reader import LogTail
    from meshllm.errors import UsageError

    path = audit_path(home)
    tail = LogTail(path, tuple(rotated(path, number) for number in range(1, FILES)))
    if not tail.found:
        raise UsageError(
            f"There is no audit log {path} that can be read.",
            advice="A node writes it when it starts. If the node has another home, set MESH_LLM_HOME to it.",
        )
    return tail


def show(
    tail: LogTail,
    wanted: LogFilter,
    lines: int | None,
    *,
    follow: bool,
    pause: Callable[[], bool],
    write: Callable[[str], None] | None = None,
    audit: bool = False,
) -> bool:
    """Print the last `lines` records that `wanted` accepts; then, with `follow`, new ones until `pause` is False.
    `audit`: they are lines of the audit log.

    Returns whether `wanted` accepted any.
    """
    write = write or _write
    count = 0
    texts = _accepted(tail, wanted, audit=audit)
    if lines is not None:
        last: deque[str] = deque(maxlen=lines)
        for text in texts:
            count += 1
            last.append(text)
        texts = iter(last)
    for text in texts:
        count += 1
        write(text)
    while follow and pause():
        for text in _accepted(tail, wanted, audit=audit):
            count += 1
            write(text)
    return count > 0


def _accepted(tail: LogTail, wanted: LogFilter, *, audit: bool) -> Iterator[str]:
    from meshllm.daemon.audit_log import parse_audit
    from meshllm.daemon.log_format import parse

    records = map(parse_audit if audit else parse, tail.read())
    return _shown(record for record in records if wanted.accepts(record))


def _shown(records: Iterable[LogRecordView]) -> Iterator[str]:
    """The records' text, coloured on a terminal, with control characters of other programs escaped."""
    from meshllm.daemon.log_format import escaped

    colours = sys.stdout.isatty()
    for record in records:
        text = "\n".join(map(escaped, record.text.split("\n")))
        colour = COLOURS.get(record.level) if colours else None
        yield typer.style(text, fg=colour) if colour else text


def _write(text: str) -> None:
    typer.echo(text)


def _pause() -> bool:
    import time

    sys.stdout.flush()
    time.sleep(FOLLOW_SECONDS)
    return True
