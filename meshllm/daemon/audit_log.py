"""The audit log: who joined, was refused, took a lease or used a key. A JSON object a line in the home's audit.log.

Invariants: `write` never waits for the disk and never raises; the files take at most FILES * MAX_BYTES; control
characters are escaped and secrets redacted; neither equal events nor many of one kind push the other lines out: they
are counted, and the next line of that kind carries the number.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from meshllm.core.membership.certificates import Right
from meshllm.core.records import NODE_ID_BYTES
from meshllm.daemon.log_file import LogFile, RotatingFile
from meshllm.daemon.log_format import LogRecordView, field_text, message_of, timestamp, utc_text
from meshllm.util.rate_limiter import TokenBucket
from meshllm.util.redact import redact

AUDIT_NAME: Final = "audit.log"
MAX_BYTES: Final = 2_000_000
FILES: Final = 5
# An event equal to one of the last 10 minutes is counted, not written.
REPEAT_SECONDS: Final = 600.0
MAX_REMEMBERED: Final = 512
# Lines of one kind: 100 at once, then one in 30 s (2,880 a day, 0.6 MB). What is above is counted.
KIND_BURST: Final = 100.0
KIND_RATE: Final = 1 / 30
MAX_KINDS: Final = 64
# Longest text of a field.
MAX_FIELD: Final = 300
ID_DIGITS, SHOWN_DIGITS = 2 * NODE_ID_BYTES, 10

Field = str | int | bool


class WriteAudit(Protocol):
    """`AuditLog.write`, for those that only report events."""

    def __call__(self, event: str, /, **fields: Field) -> None:
        """Record that `event` (words joined by underscores) happened."""


def no_audit(event: str, /, **fields: Field) -> None:
    """Records nothing: for parts that run without a daemon."""


def audit_path(home: Path) -> Path:
    """The file that is written now; older ones are `audit.log.1` (the newest) to `audit.log.4`."""
    return home / AUDIT_NAME


@dataclass(slots=True)
class _Kind:
    """The lines of one event: what may still be written, and what was not."""

    allowance: TokenBucket
    left_out: int = 0


class AuditLog:
    """Writes the audit log of a home. `start` it once the home is this process's own, `close` it at the end; what is
    written before `start` waits. Used on one thread."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, monotonic."""
        self._file = LogFile(RotatingFile(audit_path(home), MAX_BYTES, FILES))
        self._file.setFormatter(_AuditFormatter())
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._last: OrderedDict[tuple[str, tuple[tuple[str, Field], ...]], float] = OrderedDict()

    def start(self) -> None:
        """Begin to write. A file that cannot be opened is reported in the daemon's log, once."""
        self._file.start()

    def write(self, event: str, /, **fields: Field) -> None:
        """Record that `event` (words joined by underscores) happened: who, what, why in `fields`."""
        now = self._clock()
        kind = self._kind(event, now)
        repeated = self._repeated(event, fields, now)
        if repeated or not kind.allowance.take(now):
            kind.left_out += 1
            return
        if kind.left_out:
            fields["not_written"], kind.left_out = kind.left_out, 0
        self._line(event, fields)

    def close(self) -> None:
        """Write what waits, and how many events were left out. Idempotent."""
        for event, kind in self._kinds.items():
            if kind.left_out:
                self._line(event, {"not_written": kind.left_out})
        self._kinds.clear()
        self._file.close()

    def _kind(self, event: str, now: float) -> _Kind:
        if event not in self._kinds and len(self._kinds) >= MAX_KINDS:
            event = "other"
        return self._kinds.setdefault(event, _Kind(TokenBucket(KIND_RATE, KIND_BURST, now)))

    def _repeated(self, event: str, fields: dict[str, Field], now: float) -> bool:
        """Whether an equal event was written in the last REPEAT_SECONDS."""
        key = (event, tuple(sorted(fields.items())))
        last = self._last.get(key)
        if last is not None and now - last < REPEAT_SECONDS:
            return True
        self._last[key] = now
        self._last.move_to_end(key)
        while len(self._last) > MAX_REMEMBERED:
            self._last.popitem(last=False)
        return False

    def _line(self, event: str, fields: dict[str, Field]) -> None:
        record = logging.LogRecord(__name__, logging.INFO, "", 0, "%s", (event,), None)
        record.fields = fields
        self._file.handle(record)


class _AuditFormatter(logging.Formatter):
    """One JSON object in ASCII: `time`, `event`, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter. A record without fields is the file's own note that lines were lost."""
        fields: dict[str, Field] | None = getattr(record, "fields", None)
        entry: dict[str, Field] = {"time": timestamp(record)}
        if fields is None:
            entry |= {"event": "lines_lost", "reason": message_of(record)}
        else:
            entry |= {"event": record.getMessage()}
            entry |= {name: _bounded(value) for name, value in fields.items() if name not in entry}
        return json.dumps(entry, default=str)


def _bounded(value: Field) -> Field:
    return redact(value[:MAX_FIELD]) if isinstance(value, str) else value


def _readable(name: str, value: Field) -> Field:
    """A field for people: the names of rights, a time instead of seconds, the beginning of an id."""
    if name == "rights" and isinstance(value, int):
        return ",".join([str(right.name).lower() for right in Right if right & value])
    if name == "expires" and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if isinstance(value, str) and len(value) == ID_DIGITS and not set(value) - set("0123456789abcdef"):
        return value[:SHOWN_DIGITS]
    return value


def parse_audit(text: str) -> LogRecordView:
    """The record of a line of the audit log, as people read it: time, event, `name=value`; rights by their names, times
    in UTC, ids as in 'mesh-llm members'. A line that is none stays as it is, without a time."""
    try:
        entry = json.loads(text)
        when = datetime.fromisoformat(entry.pop("time"))
        event = str(entry.pop("event"))
        words = [event, *(f"{name}={field_text(_readable(name, value))}" for name, value in entry.items())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError):
        return LogRecordView(None, "", text)
    return LogRecordView(when, "", f"{utc_text(when)} {' '.join(words)}")
