"""`mesh-llm blackboard`: the commands of the blackboard."""

from __future__ import annotations

from meshllm.cli.flags import Commands, LazyCommand

app = Commands(
    lazy={
        "peek": LazyCommand("meshllm.cli.board_peek", "peek"),
        "install-skill": LazyCommand("meshllm.cli.board_skill", "install_skill"),
    },
    add_completion=False,
)


@app.callback()
def blackboard() -> None:
    """The blackboard of the mesh."""
