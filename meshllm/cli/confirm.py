"""Asks before an act that cannot be undone."""

from __future__ import annotations

import sys

import typer

from meshllm.errors import UsageError


def confirm(question: str, *, yes: bool) -> None:
    """Ask `question`, unless `yes`; anything but a yes ends the command.

    Raises UsageError if standard input is no terminal: whatever comes from there was not meant as an answer.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "Standard input is not a terminal, so this cannot be confirmed.",
            advice="Add --yes to do it without a question.",
        )
    typer.confirm(question, abort=True)
