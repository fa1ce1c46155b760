"""Log lines: one record is one line, without control characters and secrets, and can be parsed again."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.daemon.log_format import JsonFormatter, NoticeFormatter, TerminalFormatter, TextFormatter, parse
from meshllm.util.redact import redact

INVITE = "mesh1-" + "Ab_-9" * 20


def record(message: str, *arguments: object, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    found = logging.LogRecord("meshllm.access", level, "", 0, message, arguments or None, None)
    found.fields = fields
    return found


def test_text_formatter_writes_fields_as_key_value() -> None:
    line = TextFormatter().format(record("request", request_id="req_1", status=502, error="no route", seconds=0.25))
    assert line.endswith('INFO    meshllm.access: request request_id=req_1 status=502 error="no route" seconds=0.25')


def test_terminal_shows_the_fields_of_a_request_with_verbose_only() -> None:
    entry = record("/v1/chat/completions 200", request_id="req_1", model="M", error="a\x1b[2J", none=None)
    shown = TerminalFormatter("%(levelname)s %(message)s", fields=True).format(entry)
    assert shown.startswith("INFO /v1/chat/completions 200 request_id=req_1 model=M error=")
    assert shown.isprintable()
    assert "none" not in shown
    assert TerminalFormatter("%(levelname)s %(message)s").format(entry) == "INFO /v1/chat/completions 200"


def test_notice_has_neither_time_nor_logger_and_cannot_control_the_terminal() -> None:
    entry = record("context %d of 8192\x1b[2J", 512, level=logging.WARNING, request_id="req_1")
    shown = NoticeFormatter().format(entry)
    assert shown.startswith("Warning: context 512 of 8192")
    assert shown.isprintable()
    assert "req_1" not in shown


def test_json_formatter_writes_fields_as_members() -> None:
    entry = json.loads(JsonFormatter().format(record("a %s", "b", request_id="req_1", level_=1, none=None)))
    assert (entry["message"], entry["level"], entry["logger"]) == ("a b", "info", "meshllm.access")
    assert entry["request_id"] == "req_1"
    assert "none" not in entry


def test_json_formatter_renames_a_field_that_hides_a_member() -> None:
    odd = record("a")
    odd.fields = {"level": "x", "time": "y"}
    entry = json.loads(JsonFormatter().format(odd))
    assert (entry["level"], entry["level_"], entry["time_"]) == ("info", "x", "y")


@given(st.text(), st.text())
def test_formatters_write_one_printable_line_for_any_text(message: str, value: str) -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record(message.replace("%", "%%"), "x", field=value))
        assert "\n" not in line
        assert "\x1b" not in line
    assert TextFormatter().format(record("%s", message, field=value)).isprintable()


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_formatters_survive_arguments_that_do_not_fit(formatter: logging.Formatter) -> None:
    assert "%d" in formatter.format(record("%d items", "three"))


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_parse_reads_back_time_level_and_request_id(formatter: logging.Formatter) -> None:
    view = parse(formatter.format(record("it failed", level=logging.WARNING, request_id="req_ab:1")))
    assert (view.level, view.request_id) == ("WARNING", "req_ab:1")
    assert view.time is not None
    assert view.time.tzinfo is not None
    for text in ("", "main: server is listening", "{broken", "2026-99-99T00:00:00.000Z INFO x: y", "[]"):
        assert parse(text).time is None


def test_text_formatter_indents_the_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        failed = record("it failed")
        failed.exc_info = sys.exc_info()
    first, *rest = TextFormatter().format(failed).split("\n")
    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert "Traceback" in json.loads(JsonFormatter().format(failed))["traceback"]


@pytest.mark.parametrize(
    "secret",
    [
        INVITE,
        "sk-abcdefgh12345678",
        "hf_abcdefgh12345678",
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----",
    ],
)
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_formatters_redact_secrets(formatter: logging.Formatter, secret: str) -> None:
    line = formatter.format(record("joining with %s", secret, given=secret))
    for part in secret.split("\n"):
        assert part.removeprefix("mesh1-") not in line


@pytest.mark.parametrize(
    ("text", "kept", "secret"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization", "abc.def-123"),
        ('{"api_key": "abcdef"}', "api_key", "abcdef"),
        ("x-api-key=abcdef&a=1", "&a=1", "abcdef"),
        ("HF_TOKEN_SECRET='abcdef'", "HF_TOKEN_SECRET", "abcdef"),
        ("http://me:hunter22@host/v1", "@host/v1", "hunter22"),
        ('"secret": "00ff00ff"', '"secret"', "00ff00ff"),
    ],
)
def test_redact_replaces_the_value_and_keeps_its_name(text: str, kept: str, secret: str) -> None:
    assert kept in redact(text)
    assert secret not in redact(text)
    assert redact(redact(text)) == redact(text)


def test_redact_leaves_ordinary_text_alone() -> None:
    for text in ("prompt_tokens=12 cached_tokens=3", "the key of a node", "wrong_secret", "model mesh1 is ready"):
        assert redact(text) == text
    assert redact("value 0123456789", ["0123456789", "val"]) == "value [redacted]"


@pytest.mark.parametrize("text", ["secret " + "a-" * 500_000, "apikey " + "a." * 500_000 + "@", "secret@" * 100_000])
def test_redact_takes_time_in_proportion_to_the_text(text: str) -> None:
    """By the square of it, this takes hours."""
    assert redact(text) == text


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029"])
def test_json_formatter_escapes_what_ends_a_line_for_some_programs(end: str) -> None:
    line = JsonFormatter().format(logging.LogRecord("x", logging.INFO, "", 0, f"a{end}b", (), None))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == f"a{end}b"
