"""`mesh-llm blackboard`: the commands of the blackboard."""

from __future__ import annotations

import typer

from meshllm.cli.board_mcp import blackboard as serve
from meshllm.cli.flags import Commands, LazyCommand

app = Commands(
    lazy={
        "peek": LazyCommand("meshllm.cli.board_peek", "peek"),
        "install-skill": LazyCommand("meshllm.cli.board_skill", "install_skill"),
    },
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def blackboard(
    context: typer.Context,
    mcp: bool = typer.Option(False, "--mcp", help="Serve the blackboard to an agent on the standard streams."),
) -> None:
    """The blackboard of the mesh."""
    if context.invoked_subcommand is None:
        serve(mcp=mcp)
