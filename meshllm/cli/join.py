"""`--join`: reads invites from the command line, a file or standard input, and checks them.

Invariants: no error quotes an invite. After `read`, the process's arguments contain none, where the system allows that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from meshllm.cli import hide_secrets
from meshllm.errors import BadInvite, UsageError
from meshllm.util.format import rough_duration
from meshllm.wire.mesh.invite import Invite, decode

# A thousand times the size of an invite.
MAX_FILE_BYTES = 1 << 20
# Each has up to 3 bootstrap addresses, and one that works is enough.
MAX_INVITES = 64
STANDARD_INPUT = "-"
FILE_MARK = "@"
INVITE_PREFIX = re.compile(r"mesh[0-9]+-")
GET_NEW = "Get a new one: run 'mesh-llm invite' on a node of the mesh."


def read(
    options: list[str],
    stdin: TextIO | None = None,
    now_unix: float | None = None,
    *,
    is_member: Callable[[Invite, float], bool] = lambda invite, now: False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Invite, ...]:
    """The invites that the values of `--join` name, each once, in their order.

    Removes them from the process's arguments first. `is_member`: whether this node is in the mesh of an invite at that
    time; an expired one is then left out, and `say` is called with that: a service starts with the same words forever.
    Raises BadInvite (damaged, expired, of different meshes), UsageError (no such file, empty file).
    """
    tokens = [value for value in options if value != STANDARD_INPUT and not value.startswith(FILE_MARK)]
    if not hide_secrets.hide(tokens):
        _warn_visible()
    if options.count(STANDARD_INPUT) > 1:
        raise UsageError("'--join -' is given more than once.", advice="Standard input can be read once only.")
    found: dict[Invite, str] = {}
    for text, where in _texts(options, stdin or sys.stdin):
        try:
            found.setdefault(decode(text), where)
        except BadInvite as error:
            raise BadInvite(f"{where}: {error.message}", advice=error.advice) from None
        if len(found) > MAX_INVITES:
            raise UsageError(f"More than {MAX_INVITES} invites are given.", advice="One that works is enough.")
    now = datetime.now(UTC).timestamp() if now_unix is None else now_unix
    for invite in [invite for invite in found if not invite.terms.valid_at(now) and is_member(invite, now)]:
        say(f"{_expired(invite, found.pop(invite), now)} This node is a member already and goes on without it.")
    _check(found, now)
    return tuple(found)


def _warn_visible() -> None:
    print(  # noqa: T201 - logging is not set up yet
        "mesh-llm: other users of this machine can read the invite in the process list. "
        "Use '--join @FILE' or '--join -' (standard input) to keep it secret.",
        file=sys.stderr,
    )


def _texts(options: list[str], stdin: TextIO) -> Iterator[tuple[str, str]]:
    """The text of each invite, and where it was found."""
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
        raise UsageError(
            f"The invite cannot be read from {name!r}: {reason}.", advice="Check the path and its permissions."
        ) from error


def _lines(text: str, where: str) -> Iterator[tuple[str, str]]:
    """One invite per line; `#` begins a comment. A line that does not begin like an invite continues the line before
    it: mail programs break long lines."""
    pending, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        part = line.partition("#")[0].strip()
        if not part:
            continue
        if pending and not INVITE_PREFIX.match(part):
            pending += part
            continue
        if pending:
            yield pending, f"{where}, line {begun}"
        pending, begun = part, number
    if not pending:
        raise UsageError(
            f"There is no invite in {where}.", advice="Get one: run 'mesh-llm invite' on a node of the mesh."
        )
    yield pending, f"{where}, line {begun}"


def _expired(invite: Invite, where: str, now_unix: float) -> str:
    until = datetime.fromtimestamp(invite.terms.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    ago = rough_duration(max(0.0, now_unix - invite.terms.expires))
    return f"{where}: this invite expired at {until}, {ago} ago."


def _check(found: dict[Invite, str], now_unix: float) -> None:
    for invite, where in found.items():
        if not invite.terms.valid_at(now_unix):
            raise BadInvite(_expired(invite, where, now_unix), advice=GET_NEW)
    if len({invite.mesh for invite in found}) > 1:
        raise BadInvite(
            "These invites are of different meshes; a node can join only one.",
            advice="Give the invites of one mesh. For a second mesh, start a second node with its own MESH_LLM_HOME.",
        )
