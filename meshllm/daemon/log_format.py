"""The lines of the daemon's log file: text for people, JSON objects for programs, and the parser that reads both.

Invariants: one record is one line (a traceback's lines follow it, each indented); control characters are escaped;
secrets are redacted (`util.redact`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meshllm.util.redact import redact

# The start of each line that belongs to the record above it.
CONTINUATION = "    "
MAX_MESSAGE = 16_384
_RESERVED = frozenset({"time", "level", "logger", "message", "traceback"})
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([A-Z]+) +([^\s:]+): (.*)", re.DOTALL)
# Made once: `json.dumps` makes an encoder for each call with this option.
_quoted = json.JSONEncoder(ensure_ascii=False).encode
_PLAIN_VALUE = re.compile(r"[^\s\"'=\\]+")


@dataclass(frozen=True, slots=True)
class LogRecordView:
    """One record read back from a file. `text` is its lines as written, without the last line's end."""

    time: datetime | None
    level: str
    text: str
    request_id: str = ""


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The members of `extra={"fields": {...}}`; a name that a log line uses itself gets an underscore behind it."""
    fields = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return {}
    return {f"{name}_" if name in _RESERVED else str(name): value for name, value in fields.items()}


def message_of(record: logging.LogRecord) -> str:
    """The record's message, also when its arguments do not fit its format."""
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001 - a log call must not raise
        text = f"{record.msg!r} ({error!r})"
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}... ({len(text)} characters)"


def timestamp(record: logging.LogRecord) -> str:
    """The record's time."""
    return utc_text(datetime.fromtimestamp(record.created, UTC))


def utc_text(time: datetime) -> str:
    """RFC 3339 of a time in UTC, with milliseconds and `Z`: the one form in files and on standard output."""
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"


def escaped(text: str) -> str:
    """`text` on one line, without characters that move a terminal's cursor: they are written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in text
    )


class TextFormatter(logging.Formatter):
    """`TIME LEVEL logger: message key=value ...`, then the traceback's lines, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        parts = [escaped(message_of(record))]
        parts += [f"{name}={field_text(value)}" for name, value in fields_of(record).items() if value is not None]
        lines = [f"{timestamp(record)} {record.levelname:<7} {record.name}: {' '.join(parts)}"]
        if (traceback := _traceback(self, record)) is not None:
            lines += [CONTINUATION + escaped(line) for line in traceback.splitlines()]
        return redact("\n".join(lines))


class TerminalFormatter(logging.Formatter):
    """Lines for a terminal or standard error: secrets redacted, and nothing in them can control the terminal."""

    def __init__(self, form: str, *, fields: bool = False) -> None:
        """`fields`: also the record's fields, as in the file."""
        super().__init__(form)
        self._fields = fields

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        shown = {name: value for name, value in fields_of(record).items() if value is not None} if self._fields else {}
        return " ".join([super().formatMessage(record), *[f"{name}={field_text(shown[name])}" for name in shown]])

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return redact("\n".join(map(escaped, super().format(record).split("\n"))))


class NoticeFormatter(TerminalFormatter):
    """The same as notices for people, as between the lines of a running node: "Warning: ..."; the log file has the time
    and the logger."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return f"{record.levelname.capitalize()}: {super().formatMessage(record)}"


# What some programs take for the end of a line; JSON may have them in a string as they are.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


class JsonFormatter(logging.Formatter):
    """One JSON object: `time`, `level`, `logger`, `message`, the record's fields, `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        text = json.dumps(json_fields(record, self), default=str, ensure_ascii=False)
        return _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_fields(record: logging.LogRecord, formatter: logging.Formatter | None = None) -> dict[str, Any]:
    """The members of a record's JSON object, redacted."""
    entry: dict[str, Any] = {
        "time": timestamp(record),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": redact(message_of(record)),
    }
    entry |= {
        name: redact(value) if isinstance(value, str) else value
        for name, value in fields_of(record).items()
        if value is not None
    }
    if (traceback := _traceback(formatter or logging.Formatter(), record)) is not None:
        entry["traceback"] = redact(traceback)
    return entry


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info else record.exc_text


def field_text(value: object) -> str:
    """A field's value in a text line; in quotes if it contains spaces, quotes or control characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    text = value if isinstance(value, str) else str(value)
    if _PLAIN_VALUE.fullmatch(text) and text.isprintable():
        return text
    return _quoted(text) if text.isprintable() else json.dumps(text)


def parse(text: str) -> LogRecordView:
    """The record that `text` (its first line and the lines that continue it) holds; no time if it is no log line."""
    if text.startswith("{"):
        try:
            entry = json.loads(text)
            when = datetime.fromisoformat(entry["time"])
            return LogRecordView(when, str(entry["level"]).upper(), text, str(entry.get("request_id", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            return LogRecordView(None, "", text)
    found = _LINE.match(text)
    if found is None:
        return LogRecordView(None, "", text)
    # The last one: a message may quote another.
    ids = re.findall(r"(?:^| )request_id=([^\s\"]+)", found[4].partition("\n")[0])
    try:
        when = datetime.fromisoformat(found[1])
    except ValueError:
        return LogRecordView(None, "", text)
    return LogRecordView(when, found[2], text, ids[-1] if ids else "")
