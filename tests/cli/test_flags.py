"""Flags in help, and old spellings of options."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from meshllm.cli import engine, entry, models, start
from meshllm.cli.flags import START_RENAMED, Commands, replace_renamed
from meshllm.daemon.settings import Settings
from meshllm.errors import NotRunning


@pytest.mark.parametrize("app", [entry.app, models.app, engine.app])
@pytest.mark.parametrize("command", [[], ["status"], ["download"], ["doctor"], ["show"], ["remove"], ["build"]])
def test_help_shows_no_type_for_flags(app: Commands, command: list[str]) -> None:
    told = CliRunner().invoke(app, [*command, "--help"], terminal_width=200).output
    assert "bool" not in told


def test_flags_and_values_are_parsed() -> None:
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


@pytest.mark.parametrize(
    ("given", "share", "limit"),
    [
        (["--share-rate", "2.5"], "known", 2.5e6),
        (["--share-rate=2.5"], "known", 2.5e6),
        (["--no-share-models"], "none", None),
        (["--no-upload"], "none", None),
        (["--share-models", "--upload-limit", "1"], "known", 1e6),
    ],
)
def test_old_option_names_are_accepted_with_one_line_of_notice(
    monkeypatch: pytest.MonkeyPatch, given: list[str], share: str, limit: float | None
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr(start, "run", lambda settings, **_: started.append(settings))
    done = CliRunner().invoke(entry.app, given, catch_exceptions=False)
    assert done.exit_code == 0
    assert (started[0].share, started[0].upload_limit) == (share, limit)
    assert len(done.stderr.splitlines()) == 1
    assert f"{given[0].partition('=')[0]} is now --" in done.stderr


def test_old_name_of_node_port_is_accepted_by_commands_that_ask_a_node(unused_tcp_port: int) -> None:
    for command in ("status", "invite"):
        with pytest.raises(NotRunning, match=str(unused_tcp_port)):
            CliRunner().invoke(entry.app, [command, "--console", str(unused_tcp_port)], catch_exceptions=False)
        assert "--console" not in CliRunner().invoke(entry.app, [command, "--help"]).output
    done = CliRunner().invoke(entry.app, ["status", f"--console={unused_tcp_port}"])
    assert done.stderr.count("--console is now --node-port") == 1


def test_old_names_are_hidden_in_help_and_left_alone_behind_two_dashes() -> None:
    told = CliRunner().invoke(entry.app, ["--help"], terminal_width=200).output
    assert "--upload-limit" in told
    assert "share-rate" not in told
    assert replace_renamed(["--share-rate", "1", "--", "--share-rate"], START_RENAMED) == [
        "--upload-limit",
        "1",
        "--",
        "--share-rate",
    ]
