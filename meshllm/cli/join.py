"""`--join`: from what stands on the command line, in a file or on standard input to invites that can be used.

Law: an invite is a secret: no error or log repeats one, and after this none stands in the process's arguments.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from meshllm.cli import hide_secrets
from meshllm.errors import BadInvite, UsageError
from meshllm.wire.mesh.invite import Invite, decode, expired

# A thousand times what one invite takes.
MAX_FILE_BYTES = 1 << 20
# Each has up to 3 ways in, and one that works is enough.
MAX_INVITES = 64
STANDARD_INPUT = "-"
FILE_MARK = "@"
BEGINNING = re.compile(r"mesh[0-9]+-")
FRESH = "Ask for a fresh one: 'mesh-llm invite' prints it on a node of the mesh."


def read(options: list[str], stdin: TextIO | None = None, now_unix: float | None = None) -> tuple[Invite, ...]:
    """The invites that the values of `--join` mean, each once, in their order.

    Takes them out of the process's arguments first of all. Raises BadInvite (damaged, expired, of different meshes),
    UsageError (no such file, nothing in it).
    """
    tokens = [value for value in options if value != STANDARD_INPUT and not value.startswith(FILE_MARK)]
    if not hide_secrets.hide(tokens):
        _advise()
    if options.count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input can be read once only.", advice="Give '--join -' once.")
    found: dict[Invite, str] = {}
    for text, where in _texts(options, stdin or sys.stdin):
        try:
            found.setdefault(decode(text), where)
        except BadInvite as error:
            raise BadInvite(f"{where}: {error.message}", advice=error.advice) from None
        if len(found) > MAX_INVITES:
            raise UsageError(f"More than {MAX_INVITES} invites.", advice="One that works is enough.")
    _check(found, datetime.now(UTC).timestamp() if now_unix is None else now_unix)
    return tuple(found)


def _advise() -> None:
    print(  # noqa: T201 - logging is not set up yet
        "mesh-llm: others on this machine can see the invite in the list of processes. "
        "'--join @FILE' or '--join -' (standard input) keeps it to yourself.",
        file=sys.stderr,
    )


def _texts(options: list[str], stdin: TextIO) -> Iterator[tuple[str, str]]:
    """Each invite's text, and where it stood, in words."""
    for number, value in enumerate(options, 1):
        if value == STANDARD_INPUT:
            yield from _lines(_from_input(stdin), "standard input")
        elif value.startswith(FILE_MARK):
            yield from _lines(_from_file(value[len(FILE_MARK) :]), value[len(FILE_MARK) :])
        else:
            yield value, "--join" if len(options) == 1 else f"--join, number {number}"


def _from_input(stdin: TextIO) -> str:
    if not stdin.isatty():
        return stdin.read(MAX_FILE_BYTES)
    print("Paste the invite, then press Enter:", file=sys.stderr)  # noqa: T201
    return stdin.readline(MAX_FILE_BYTES)


def _from_file(name: str) -> str:
    try:
        with Path(name).expanduser().open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
        raise UsageError(f"The invite cannot be read from {name!r}: {reason}.", advice="Is the path right?") from error


def _lines(text: str, where: str) -> Iterator[tuple[str, str]]:
    """One invite a line; `#` begins a comment. A line that begins like no invite goes on with the one before it, which
    something in between has broken in two."""
    pending, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        part = line.partition("#")[0].strip()
        if not part:
            continue
        if pending and not BEGINNING.match(part):
            pending += part
            continue
        if pending:
            yield pending, f"{where}, line {begun}"
        pending, begun = part, number
    if not pending:
        raise UsageError(
            f"There is no invite in {where}.", advice="'mesh-llm invite' prints one, on a node of the mesh."
        )
    yield pending, f"{where}, line {begun}"


def _check(found: dict[Invite, str], now_unix: float) -> None:
    for invite, where in found.items():
        if expired(invite, now_unix):
            until = datetime.fromtimestamp(invite.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
            raise BadInvite(f"{where}: this invite was good until {until}.", advice=FRESH)
    if len({invite.mesh for invite in found}) > 1:
        raise BadInvite(
            "These invites are of different meshes, and a node belongs to one.",
            advice="Give those of one mesh; for a second mesh, start a second node with a MESH_LLM_HOME of its own.",
        )
