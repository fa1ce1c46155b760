"""What help shows of flags, and that they are still understood."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from meshllm.cli import engine, entry, models
from meshllm.cli.flags import Commands


@pytest.mark.parametrize("app", [entry.app, models.app, engine.app])
@pytest.mark.parametrize("command", [[], ["status"], ["download"], ["doctor"], ["show"], ["remove"], ["build"]])
def test_no_flag_is_shown_as_a_value(app: Commands, command: list[str]) -> None:
    told = CliRunner().invoke(app, [*command, "--help"], terminal_width=200).output
    assert "bool" not in told


def test_flags_and_values_are_understood() -> None:
    app = Commands()

    @app.command()
    def say(loud: Annotated[bool, typer.Option("--loud/--soft")] = False, words: str = "nothing") -> None:
        typer.echo(f"{words} {loud}")

    for arguments, said in (
        ([], "nothing False"),
        (["--loud", "--words", "x"], "x True"),
        (["--soft"], "nothing False"),
    ):
        assert CliRunner().invoke(app, arguments).output == f"{said}\n"
    assert CliRunner().invoke(app, ["--loud", "x"]).exit_code == 2
    help_text = CliRunner().invoke(app, ["--help"]).output
    assert "<str>" in help_text
    assert "bool" not in help_text
