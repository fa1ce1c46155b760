"""`mesh-llm download` as its tests run it."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from meshllm.cli import download


def run(*arguments: str) -> str:
    """What it prints. Raises what it raises."""
    app = typer.Typer()
    app.command()(download.download)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout
